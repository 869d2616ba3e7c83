// The 25 constraint functions of the Tulu 3 paper's instruction-following rewards, by the names that its data has
// (`func_name`). Their rules differ from IFEval's: words are cut at blanks, counts are exact, case counts. Two that
// were wrong when the paper's model was trained (placeholders always passed, the choice was the wrong way round)
// are as they were corrected later.

import { nearestName } from '../base/errors.js'
import { lengthFault } from './ifeval.js'
import { placeholderCount } from './ifeval_google.js'
import { InstructionArguments, type InstructionCheck } from './instruction_arguments.js'
import { detectLanguage, knownLanguages } from './language_detect.js'
import { parsePythonLiteral } from './python_literal.js'
import { countOf, isPythonJson, isSpace, roundHalfEven, splitWords, strip, wordTokens } from './python_text.js'
import { withoutThinking } from './thinking.js'
import { accepted, labelFault, refused, type Verdict, type Verifier, type VerifyInput } from './verifier.js'

const QUANTIFIERS = ['at least', 'around', 'at most'] as const

export const PAPER_FUNCTIONS: Readonly<Record<string, InstructionCheck>> = {
  verify_keywords: (text, args) => {
    const lower = text.toLowerCase()
    return args.texts('keyword_list').every((keyword) => lower.includes(keyword.toLowerCase()))
  },
  verify_keyword_frequency: (text, args) => {
    const word = args.words('word').toLowerCase()
    return wordTokens(text.toLowerCase()).filter((token) => token === word).length === args.integer('N')
  },
  validate_forbidden_words: (text, args) => {
    const lower = text.toLowerCase()
    return !args.texts('forbidden_words').some((word) => lower.includes(word.toLowerCase()))
  },
  verify_letter_frequency: (text, args) => countOf(text, args.character('letter')) === args.integer('N'),
  validate_response_language: (text, args) => detectLanguage(text) === args.words('language'),
  verify_paragraph_count: (text, args) => {
    const paragraphs = text
      .split(/\r\n|[\n\r]/)
      .map(strip)
      .join('\n')
      .split('* * *')
      .map(strip)
    return !paragraphs.includes('') && paragraphs.length === args.integer('N')
  },
  validate_word_constraint: (text, args) => satisfies(splitWords(text).length, args, tenth(args.integer('N'))),
  verify_sentence_constraint: (text, args) => satisfies(sentenceCount(text), args, 1),
  validate_paragraphs: (text, args) => {
    const paragraphs = text.split('\n\n')
    const nth = args.integer('i')
    if (paragraphs.length !== args.integer('N') || nth < 1 || nth > paragraphs.length) return false
    return strip(paragraphs[nth - 1]!).startsWith(args.text('first_word'))
  },
  verify_postscript: (text, args) => {
    const marker = args.words('postscript_marker')
    const at = text.indexOf(marker)
    return at >= 0 && strip(text.slice(at)).length > marker.length
  },
  validate_placeholders: (text, args) => placeholderCount(text) >= args.integer('N'),
  verify_bullet_points: (text, args) =>
    text.split('\n').filter((line) => /^[*-]/.test(strip(line))).length === args.integer('N'),
  validate_title: (text) => text.split('\n').some(hasTitle),
  validate_choice: (text, args) => args.texts('options').some((option) => text.includes(option)),
  validate_highlighted_sections: (text, args) => highlightCount(text) >= args.integer('N'),
  validate_sections: (text, args) => {
    const sections = text.split(args.words('section_splitter'))
    return sections.length - (sections[0] === '' ? 1 : 0) === args.integer('N')
  },
  validate_json_format: isPythonJson,
  validate_repeat_prompt: (text, args) => text.startsWith(args.text('original_prompt')),
  validate_two_responses: (text) => {
    const parts = text.split('******').map(strip)
    return parts.length === 2 && parts[0] !== parts[1]
  },
  validate_uppercase: (text) => text === text.toUpperCase(),
  validate_lowercase: (text) => text === text.toLowerCase(),
  validate_frequency_capital_words: (text, args) => {
    const words = text.match(/(?<![\p{L}\p{N}_])[A-Z]+(?![\p{L}\p{N}_])/gu) ?? []
    return satisfies(words.length, args, tenth(args.integer('N')))
  },
  validate_end: (text, args) => text.endsWith(args.text('end_phrase')),
  validate_quotation: (text) => text.startsWith('"') && text.endsWith('"'),
  validate_no_commas: (text) => !text.includes(','),
}

/** Judges a completion by one function: label `{"func_name": ..., arguments}`, as JSON or an object. */
export const ifevalPaper: Verifier = {
  name: 'ifeval_paper',
  summary: 'one constraint function of the Tulu 3 paper, named by func_name in the label',
  prepare: () => void knownLanguages(),
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const label = typeof groundTruth === 'string' ? parsedLabel(groundTruth) : groundTruth
    if (typeof label !== 'object' || label === null || Array.isArray(label)) {
      throw labelFault('ifeval_paper', 'ground_truth', 'an object with func_name', groundTruth)
    }
    const name = (label as { func_name?: unknown }).func_name
    const check = typeof name === 'string' && Object.hasOwn(PAPER_FUNCTIONS, name) ? PAPER_FUNCTIONS[name] : undefined
    if (typeof name !== 'string' || check === undefined) {
      const near = typeof name === 'string' ? nearestName(name.slice(0, 80), Object.keys(PAPER_FUNCTIONS)) : undefined
      throw labelFault('ifeval_paper', 'func_name', `a known function${near ? ` (is "${near}" meant?)` : ''}`, name)
    }
    const args = new InstructionArguments(name, label as Record<string, unknown>)
    const response = withoutThinking(completion)
    const fault = lengthFault(response)
    if (fault !== undefined) return refused(fault)
    return check(response, args) ? accepted(`${name} holds`) : refused(`${name} does not hold`)
  },
}

function parsedLabel(text: string): unknown {
  try {
    return parsePythonLiteral(text)
  } catch {
    throw labelFault('ifeval_paper', 'ground_truth', 'JSON with func_name', text)
  }
}

function tenth(n: number): number {
  return Math.max(roundHalfEven(n * 0.1), 1)
}

function satisfies(count: number, args: InstructionArguments, tolerance: number): boolean {
  const n = args.integer('N')
  const quantifier = args.oneOf('quantifier', QUANTIFIERS)
  if (quantifier === 'around') return Math.abs(count - n) <= tolerance
  return quantifier === 'at least' ? count >= n : count <= n
}

/** Pieces between blanks that follow `. ? !`, but for those after "e.g." and "Dr.". */
function sentenceCount(text: string): number {
  let count = 1
  for (let at = 1; at < text.length; at++) {
    if (isSpace(text[at]) && '.?!'.includes(text[at - 1]!) && !isAbbreviation(text.slice(Math.max(0, at - 4), at)))
      count++
  }
  return count
}

function isAbbreviation(before: string): boolean {
  return /[\p{L}\p{N}_]\.[\p{L}\p{N}_][^\n]$/u.test(before) || /[A-Z][a-z]\.$/.test(before)
}

function hasTitle(line: string): boolean {
  const open = line.indexOf('<<')
  return open >= 0 && line.indexOf('>>', open + 2) >= 0
}

/** `*...*` within a line, each asterisk used once. */
function highlightCount(text: string): number {
  let count = 0
  for (const line of text.split('\n')) count += Math.floor(countOf(line, '*') / 2)
  return count
}
