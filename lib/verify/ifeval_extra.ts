// The 29 instructions that open-instruct's IFEvalG adds to those of IFEval, as its checker judges them. Where a rule is
// looser than its name (a one-letter word is a palindrome), it is kept, for rewards to be comparable.

import { letterCount, paragraphCount } from './ifeval_google.js'
import type { InstructionArguments, InstructionCheck } from './instruction_arguments.js'
import { countMatches } from './pattern_search.js'
import { countOf, isSpaceAt, splitWords, strip, wordWidth } from './python_text.js'
import { splitSentences } from './sentence_split.js'
import { everyToken, tokenizeWords } from './word_tokenize.js'

const DIVIDER = '***'
const RESPONSES_DIVIDER = '******'

export const EXTRA_INSTRUCTIONS: Readonly<Record<string, InstructionCheck>> = {
  'copy:repeat_phrase': repeatsPhrase,
  'copy:copy': copiesPrompt,
  'copy:copying_simple': copiesPrompt,
  'new:copy_span_idx': (response, args) => {
    const characters = [...args.text('prompt_to_repeat')]
    return isSame(response, characters.slice(args.integer('n_start'), args.integer('n_end')).join(''))
  },
  'copy:copying_multiple': (response, args) => {
    const copies = response.split(RESPONSES_DIVIDER)
    return copies.length === args.integer('N') && copies.every((copy) => isSame(copy, args.text('prompt_to_repeat')))
  },
  'detectable_format:sentence_hyphens': (response, args) => {
    const wanted = splitSentences(response.replaceAll('-', ' '), args.memo)
    const parts = response.split('-', wanted.length)
    return parts.every((part, i) => strip(part) === part && part === wanted[i])
  },
  'detectable_format:square_brackets': (response) =>
    splitWords(response).every((word) => word.startsWith('[') && word.endsWith(']')),
  'detectable_format:bigram_wrapping': (response) => {
    const words = splitWords(response)
    for (let i = 0; i + 1 < words.length; i += 2) {
      if (!words[i]!.startsWith('<<') || !words[i + 1]!.endsWith('>>')) return false
    }
    return true
  },
  'keywords:no_adjacent_consecutive': (response) => hasNoNeighbouringInitials(splitWords(response)),
  'keywords:word_once': (response, args) => countMatches(response, args.words('keyword')) === 1,
  'keywords:word_count_different_numbers': (response, args) =>
    args.holds(countMatches(response, args.words('keyword')), 'relation', 'frequency'),
  'keywords:exclude_word_harder': (response, args) => !response.includes(` ${args.words('keyword')} `),
  'keywords:palindrome': (response) => splitWords(response).some(isPalindrome),
  'keywords:keyword_specific_position': (response, args) => {
    const sentence = splitSentences(response, args.memo)[args.integer('n') - 1]
    return sentence !== undefined && tokenizeWords(sentence, args.memo)[args.integer('m') - 1] === args.words('keyword')
  },
  'keywords:start_end': (response, args) => {
    const words = tokenizeWords(response, args.memo)
    return words.length >= 2 && words[0]!.toLowerCase() === words.at(-1)!.toLowerCase()
  },
  'paragraphs:paragraphs': (response) => paragraphCount(response.split(DIVIDER)) === 2,
  'paragraphs:paragraphs2': (response) => paragraphCount(response.split('\n\n')) === 2,
  'first_word:first_word_sent': (response, args) =>
    splitSentences(response, args.memo).every((sentence) => isSame(firstWordOf(sentence), args.words('first_word'))),
  'first_word:first_word_answer': (response, args) => isSame(firstWordOf(response), args.words('first_word')),
  'last_word:last_word_sent': (response, args) =>
    splitSentences(response, args.memo).every((sentence) => isSame(lastWordOf(sentence), args.words('last_word'))),
  'last_word:last_word_answer': (response, args) => isSame(lastWordOf(response), args.words('last_word')),
  'punctuation:punctuation_dot': (response) => !response.includes('.'),
  'punctuation:punctuation_exclamation': (response) => !response.includes('!'),
  'count:lowercase_counting': (response, args) =>
    (response.match(/(?<![\p{L}\p{N}_])[a-z]+(?![\p{L}\p{N}_])/gu) ?? []).length <= args.integer('N'),
  'count:counting_composition': hasComposition,
  'count:count_unique': (response, args) => {
    const seen = new Set<string>()
    const isNew = (word: string) => !seen.has(word) && seen.add(word) !== undefined
    return everyToken(response, (text, begin, end) => isNew(text.slice(begin, end)), args.memo)
  },
  'count:count_increment_word': (response, args) =>
    countMatches(response, args.words('keyword1')) === 1 && countMatches(response, args.words('keyword2')) === 2,
  'letters:letter_counting': (response, args) => args.holds(asciiLetterCount(response), 'relation', 'N'),
  'letters:letter_counting2': (response, args) =>
    args.holds(letterCount(response, args.character('letter')), 'let_relation', 'let_frequency'),
}

function asciiLetterCount(text: string): number {
  let count = 0
  for (let at = 0; at < text.length; at++) {
    const letter = text.charCodeAt(at) | 0x20
    if (letter >= 97 && letter <= 122) count++
  }
  return count
}

function copiesPrompt(response: string, args: InstructionArguments): boolean {
  return isSame(response, args.text('prompt_to_repeat'))
}

function isSame(a: string, b: string): boolean {
  return a === b || strip(a).toLowerCase() === strip(b).toLowerCase()
}

function firstWordOf(text: string): string {
  let begin = 0
  while (isSpaceAt(text, begin)) begin++
  let end = begin
  while (end < text.length && !isSpaceAt(text, end)) end++
  return text.slice(begin, end)
}

/** The last word without punctuation: without `[^\p{L}\p{N}_\s]`. */
function lastWordOf(text: string): string {
  let end = text.length
  while (end > 0 && isSpaceAt(text, end - 1)) end--
  let begin = end
  while (begin > 0 && !isSpaceAt(text, begin - 1)) begin--
  const parts: string[] = []
  for (let at = begin; at < end; ) {
    const from = at
    // This mark is white space to `\s`, though none to Python's `split`.
    for (let width = 1; width > 0; at += width) width = text[at] === '\ufeff' ? 1 : wordWidth(text, at)
    if (at > from) parts.push(text.slice(from, at))
    else at++
  }
  return parts.join('')
}

/** No two words in a row begin with letters that follow each other in the alphabet. */
function hasNoNeighbouringInitials(words: readonly string[]): boolean {
  const codes = words.map((word) => String.fromCodePoint(word.codePointAt(0)!).toLowerCase().codePointAt(0)!)
  return codes.every((code, i) => i === 0 || code - codes[i - 1]! !== 1)
}

function isPalindrome(word: string): boolean {
  const characters = [...word]
  return characters.every((character, i) => character === characters[characters.length - 1 - i])
}

/**
 * Exactly `small_n` passages from the first to the last word of the phrase, within a line and not overlapping, and each
 * of them the phrase with exactly one word changed.
 */
function repeatsPhrase(response: string, args: InstructionArguments): boolean {
  const phrase = splitWords(args.words('phrase'))
  const wanted = args.integer('small_n')
  let found = 0
  for (const passage of passagesBetween(response, phrase[0]!, phrase.at(-1)!)) {
    if (++found > wanted || !differsInOneWord(splitWords(passage), phrase)) return false
  }
  return found === wanted
}

/** `first ... last` within a line, with at least two blanks' worth in between, the shortest from each start on. */
function* passagesBetween(response: string, first: string, last: string): Generator<string> {
  const opening = `${first} `
  const closing = ` ${last}`
  let close = -1
  for (let at = response.indexOf(opening); at >= 0; ) {
    const inner = at + opening.length
    if (close < inner) close = response.indexOf(closing, inner)
    if (close < 0) return
    const end = close + closing.length
    const newline = response.indexOf('\n', inner)
    const isOfLine = newline < 0 || end <= newline
    if (isOfLine) yield response.slice(at, end)
    at = response.indexOf(opening, isOfLine ? end : newline)
  }
}

function differsInOneWord(words: readonly string[], phrase: readonly string[]): boolean {
  return words.length === phrase.length && words.filter((word, i) => word !== phrase[i]).length === 1
}

/** Three paragraphs of `n_sent` sentences of `n_words` tokens each. An empty part at an end fails like any other. */
function hasComposition(response: string, args: InstructionArguments): boolean {
  const [sentenceCount, wordCount] = [args.integer('n_sent'), args.integer('n_words')]
  if (countOf(response, DIVIDER) > 4) return false
  const paragraphs = response.split(DIVIDER)
  if (paragraphCount(paragraphs) !== 3) return false
  return paragraphs.every((paragraph) => {
    const sentences = splitSentences(strip(paragraph))
    if (sentences.length !== sentenceCount) return false
    return sentences.every((sentence) => tokenizeWords(sentence, args.memo).length === wordCount)
  })
}
