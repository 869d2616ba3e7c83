// The 25 instructions of IFEval (Zhou et al. 2023), as its official checker judges them, quirks included: what a quirk
// lets pass, published figures count as passed.

import type { InstructionCheck } from './instruction_arguments.js'
import { detectLanguage } from './language_detect.js'
import { countMatches, hasMatch, hasWholeMatch } from './pattern_search.js'
import { countSentences } from './punkt_sentences.js'
import {
  countOf,
  countWords,
  isDigitAt,
  isLower,
  isPythonJson,
  isSpaceAt,
  isUpper,
  strip,
  stripOf,
} from './python_text.js'
import type { ReadingMemo } from './reading_memo.js'
import { everyToken } from './word_tokenize.js'

const DIVIDER = '***'
const RESPONSES_DIVIDER = '******'
const CONSTRAINED_RESPONSES = ['My answer is yes.', 'My answer is no.', 'My answer is maybe.']

export const GOOGLE_INSTRUCTIONS: Readonly<Record<string, InstructionCheck>> = {
  'keywords:existence': (response, args) => args.texts('keywords').every((keyword) => hasMatch(response, keyword)),
  'keywords:frequency': (response, args) =>
    args.holds(countMatches(response, args.words('keyword')), 'relation', 'frequency'),
  'keywords:forbidden_words': (response, args) =>
    !args.texts('forbidden_words').some((word) => hasWholeMatch(response, word)),
  'keywords:letter_frequency': (response, args) =>
    args.holds(letterCount(response, args.character('letter')), 'let_relation', 'let_frequency'),
  'language:response_language': (response, args) =>
    (detectLanguage(response, args.memo) ?? args.text('language')) === args.text('language'),
  'length_constraints:number_sentences': (response, args) =>
    args.holds(countSentences(response, args.memo), 'relation', 'num_sentences'),
  'length_constraints:number_paragraphs': (response, args) =>
    paragraphCount(response.split(DIVIDER)) === args.integer('num_paragraphs'),
  'length_constraints:number_words': (response, args) => args.holds(countWords(response), 'relation', 'num_words'),
  'length_constraints:nth_paragraph_first_word': (response, args) => {
    const paragraphs = response.split('\n\n')
    const filled = paragraphs.filter((paragraph) => strip(paragraph) !== '').length
    const nth = args.integer('nth_paragraph')
    if (nth < 1 || nth > filled || filled !== args.integer('num_paragraphs')) return false
    return firstWordOf(paragraphs[nth - 1]!) === args.text('first_word').toLowerCase()
  },
  'detectable_content:number_placeholders': (response, args) =>
    placeholderCount(response) >= args.integer('num_placeholders'),
  'detectable_content:postscript': (response, args) => {
    const marker = args.words('postscript_marker')
    const text = response.toLowerCase()
    if (marker === 'P.P.S') return /p\.\s?p\.\s?s/u.test(text)
    if (marker === 'P.S.') return /p\.\s?s\./u.test(text)
    return hasMatch(text, marker.toLowerCase())
  },
  'detectable_format:number_bullet_lists': (response, args) =>
    starBulletCount(response) + dashBulletCount(response) === args.integer('num_bullets'),
  'detectable_format:constrained_response': (response) =>
    CONSTRAINED_RESPONSES.some((option) => response.includes(option)),
  'detectable_format:number_highlighted_sections': (response, args) =>
    highlightCount(response) >= args.integer('num_highlights'),
  'detectable_format:multiple_sections': (response, args) =>
    sectionCount(response, args.words('section_spliter')) >= args.integer('num_sections'),
  'detectable_format:json_format': (response) => isPythonJson(withoutFence(response)),
  'detectable_format:title': (response) => response.split('\n').some(hasTitle),
  'combination:two_responses': (response) => {
    const parts = response.split(RESPONSES_DIVIDER)
    const filled = parts.map(strip).filter((part) => part !== '')
    return paragraphCount(parts) === 2 && filled[0] !== filled[1]
  },
  'combination:repeat_prompt': (response, args) =>
    strip(response)
      .toLowerCase()
      .startsWith(strip(args.text('prompt_to_repeat')).toLowerCase()),
  'startend:end_checker': (response, args) =>
    stripOf(strip(response), '"')
      .toLowerCase()
      .endsWith(strip(args.text('end_phrase')).toLowerCase()),
  'startend:quotation': (response) => {
    const text = strip(response)
    return text.length > 1 && text.startsWith('"') && text.endsWith('"')
  },
  'change_case:capital_word_frequency': (response, args) =>
    args.holds(capitalWordCount(response, args.memo), 'capital_relation', 'capital_frequency'),
  'change_case:english_capital': (response, args) => isUpper(response) && mayBeEnglish(response, args.memo),
  'change_case:english_lowercase': (response, args) => isLower(response) && mayBeEnglish(response, args.memo),
  'punctuation:no_comma': (response) => !response.includes(','),
}

function capitalWordCount(response: string, memo: ReadingMemo): number {
  let count = 0
  const add = (text: string, begin: number, end: number) => {
    if (isUpper(text, begin, end)) count++
    return true
  }
  everyToken(response, add, memo)
  return count
}

/** Occurrences of a character, in any case. */
export function letterCount(response: string, letter: string): number {
  return countOf(response.toLowerCase(), letter.toLowerCase())
}

/**
 * Parts with something in them, where only the first and the last may have nothing: -1 when another one is empty, as
 * an empty part in the middle breaks the instruction.
 */
export function paragraphCount(parts: readonly string[]): number {
  const isEmpty = parts.map((part) => strip(part) === '')
  const last = parts.length - 1
  if (isEmpty.some((empty, i) => empty && i > 0 && i < last)) return -1
  return parts.length - (isEmpty[0] ? 1 : 0) - (last > 0 && isEmpty[last] ? 1 : 0)
}

/** Letters below which a verdict about the language is chance ("hello" is Finnish to the detector). */
const LEAST_LETTERS = 8
const MOST_READ = 10_000

/** Text that gives no clue to its language passes: as capitals give none, and a word or two. */
function mayBeEnglish(response: string, memo: ReadingMemo): boolean {
  let letters = 0
  for (const _ of response.slice(0, MOST_READ).matchAll(/\p{L}/gu)) if (++letters === LEAST_LETTERS) break
  return letters < LEAST_LETTERS || (detectLanguage(response, memo) ?? 'en') === 'en'
}

/** The first word in lower case, without quotes before it and cut at the first punctuation mark. */
function firstWordOf(paragraph: string): string {
  const [word = ''] = /^[^\s]*/u.exec(strip(paragraph)) ?? []
  let begin = 0
  while (word[begin] === "'") begin++
  while (word[begin] === '"') begin++
  let end = begin
  while (end < word.length && !'.,?!\'"'.includes(word[end]!)) end++
  return word.slice(begin, end).toLowerCase()
}

/** `[...]` within a line. */
export function placeholderCount(response: string): number {
  let count = 0
  for (const line of response.split('\n')) {
    for (let open = line.indexOf('['); open >= 0; ) {
      const close = line.indexOf(']', open + 1)
      if (close < 0) break
      count++
      open = line.indexOf('[', close + 1)
    }
  }
  return count
}

/** Lines that begin with one asterisk; a bare asterisk takes the line after it along. */
function starBulletCount(response: string): number {
  let count = 0
  for (let line = 0; line < response.length; ) {
    const at = skipSpace(response, line)
    const isBullet = response[at] === '*' && at + 1 < response.length && response[at + 1] !== '*'
    if (isBullet) count++
    line = lineAfter(response, isBullet ? at + 2 : at)
  }
  return count
}

/** Lines that begin with a dash. */
function dashBulletCount(response: string): number {
  let count = 0
  for (let line = 0; line < response.length; ) {
    const at = skipSpace(response, line)
    if (response[at] === '-') count++
    line = lineAfter(response, at)
  }
  return count
}

function skipSpace(response: string, from: number): number {
  let at = from
  while (at < response.length && isSpaceAt(response, at)) at++
  return at
}

function lineAfter(response: string, from: number): number {
  const newline = response.indexOf('\n', from)
  return newline < 0 ? response.length : newline + 1
}

/** `*...*` with something inside, and again `**...**`: bold text counts once, emphasis once. */
function highlightCount(response: string): number {
  return starredCount(response, '*') + starredCount(response, '**')
}

/** Passages of one line between two marks, with something else than white space inside; none has an asterisk inside. */
function starredCount(response: string, mark: string): number {
  let count = 0
  for (let open = response.indexOf(mark); open >= 0; ) {
    const begin = open + mark.length
    const end = starOrLineEnd(response, begin)
    if (!response.startsWith(mark, end)) {
      // Nothing opens before the end of the line; of several asterisks the next may do.
      open = response.indexOf(mark, response[end] === '*' ? open + 1 : end)
      continue
    }
    if (strip(response.slice(begin, end)) !== '') count++
    open = response.indexOf(mark, end + mark.length)
  }
  return count
}

function starOrLineEnd(response: string, from: number): number {
  let at = from
  while (at < response.length && response[at] !== '*' && response[at] !== '\n') at++
  return at
}

/** Occurrences of the splitter with a number behind it. */
function sectionCount(response: string, splitter: string): number {
  let count = 0
  for (let at = response.indexOf(splitter); at >= 0; ) {
    let digits = at + splitter.length
    if (isSpaceAt(response, digits)) digits++
    let end = digits
    // A digit of one unit: half of one of two is none.
    while (response.codePointAt(end)! <= 0xffff && isDigitAt(response, end)) end++
    if (end > digits) count++
    at = response.indexOf(splitter, end > digits ? end : at + 1)
  }
  return count
}

function withoutFence(response: string): string {
  let text = strip(response)
  for (const fence of ['```json', '```Json', '```JSON', '```'])
    if (text.startsWith(fence)) text = text.slice(fence.length)
  if (text.endsWith('```')) text = text.slice(0, -3)
  return strip(text)
}

/** `<<...>>` with more than brackets and blanks inside; the widest pair of brackets counts. */
function hasTitle(line: string): boolean {
  const open = line.indexOf('<<')
  const close = line.lastIndexOf('>>')
  if (open < 0 || close < open + 2) return false
  let begin = open
  while (line[begin] === '<') begin++
  let end = close + 2
  while (end > begin && line[end - 1] === '>') end--
  return strip(line.slice(begin, end)) !== ''
}
