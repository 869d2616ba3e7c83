// Words and punctuation as NLTK's `word_tokenize` cuts them (its Penn Treebank rules), for instructions that count
// tokens. The rules are applied to one sentence at a time, as there.

import { isDigitAt, isSpaceAt, SPACE_CLASS, splitWords, wordWidth } from './python_text.js'
import { ReadingMemo } from './reading_memo.js'
import { punktSentences } from './sentence_split.js'

const W = '[\\p{L}\\p{N}_]'
const NOT_W = `(?!${W})`

// Traits of a text: which of the characters it has that some pattern needs.
const BEFORE_QUOTES = 1 << 0
const DOUBLE_QUOTE = 1 << 1
const APOSTROPHE = 1 << 2
const COLON = 1 << 3
const FULL_STOP = 1 << 4
const SYMBOL = 1 << 5
const END_MARK = 1 << 6
const ASTERISK = 1 << 7
const BRACKET = 1 << 8
const DASH = 1 << 9
const AFTER_QUOTES = 1 << 10
/** `mm`, `nn` or `tt`, in any case: one is in each contraction that is cut. */
const DOUBLED = 1 << 11
/** An apostrophe and one of the letters that come behind it in what is cut by the letter. */
const CLITIC = 1 << 12
const LETTERS_OF_CLITICS = 'lLrRvVtTyYnN'
/** Two in a row. */
const APOSTROPHES = 1 << 13
const FULL_STOPS = 1 << 14
const [APOSTROPHE_CODE, FULL_STOP_CODE, M_CODE, N_CODE, T_CODE] = [0x27, 0x2e, 0x6d, 0x6e, 0x74]

const TRAITS = new Map<number, number>(
  (
    [
      ['\u00ab\u201c\u2018\u201e`', BEFORE_QUOTES],
      ['"', DOUBLE_QUOTE],
      ["'", APOSTROPHE],
      [':,', COLON],
      ['.', FULL_STOP],
      [';@#$%&', SYMBOL],
      ['?!', END_MARK],
      ['*', ASTERISK],
      ['][(){}<>', BRACKET],
      ['-', DASH],
      ['\u00bb\u201d\u2019', AFTER_QUOTES],
    ] as const
  ).flatMap(([characters, trait]) => [...characters].map((one) => [one.charCodeAt(0), trait] as const)),
)
const ASCII_TRAITS = Uint16Array.from({ length: 128 }, (_, code) => TRAITS.get(code) ?? 0)

function traitOf(code: number): number {
  return code < 128 ? ASCII_TRAITS[code]! : code > 0x201e ? 0 : (TRAITS.get(code) ?? 0)
}

function traitsOf(text: string): number {
  let traits = 0
  let before = 0
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    traits |= traitOf(code)
    const letter = code | 0x20
    if (letter === before) traits |= doubledTrait(code)
    else if (before === APOSTROPHE_CODE && LETTERS_OF_CLITICS.includes(text[at]!)) traits |= CLITIC
    before = letter
  }
  return traits
}

/** The trait of two of a character in a row; of letters it is the same in any case. */
function doubledTrait(code: number): number {
  if (code === APOSTROPHE_CODE) return APOSTROPHES
  if (code === FULL_STOP_CODE) return FULL_STOPS
  const letter = code | 0x20
  return letter === M_CODE || letter === N_CODE || letter === T_CODE ? DOUBLED : 0
}

/** A change to a text, and the traits of which a text must have one for it to be tried at all. */
type Rule = [change: (text: string) => string, needs: number]

const pattern =
  (regExp: RegExp, replacement: string): Rule[0] =>
  (text) =>
    text.replace(regExp, replacement)
const literal =
  (part: string, replacement: string): Rule[0] =>
  (text) =>
    text.replaceAll(part, replacement)
const apart = (trait: number): Rule => [(text) => setApart(text, trait), trait]

// Bounded patterns, runs of one character and scans: linear time. What a text can be full of is no pattern, which would
// take several times as long; neither is the rule for the last full stop, which would not be linear.
const OPENING: Rule[] = [
  [pattern(/([\u00ab\u201c\u2018\u201e]|`+)/g, ' $1 '), BEFORE_QUOTES],
  [pattern(/^"/g, '``'), DOUBLE_QUOTE],
  [literal('``', ' `` '), BEFORE_QUOTES | DOUBLE_QUOTE],
  [pattern(/([ ([{<])("|'{2})/g, '$1 `` '), DOUBLE_QUOTE | APOSTROPHES],
  [afterApostrophes, APOSTROPHE],
]
const PUNCTUATION: Rule[] = [
  [aroundColons, COLON],
  [pattern(/([:,])(?=\n?$)/g, ' $1 '), COLON],
  [pattern(/\.{2,}/g, ' $& '), FULL_STOPS],
  apart(SYMBOL),
]
const CLOSING: Rule[] = [
  apart(END_MARK),
  [pattern(/([^'])' /g, "$1 ' "), APOSTROPHE],
  apart(ASTERISK),
  apart(BRACKET),
  [literal('--', ' -- '), DASH],
]
const CLITICS: Rule[] = [
  apart(AFTER_QUOTES),
  [literal("''", " '' "), APOSTROPHES],
  [literal('"', " '' "), DOUBLE_QUOTE],
  [pattern(/([^' ])('[sS]|'[mM]|'[dD]|') /g, '$1 $2 '), APOSTROPHE | DOUBLE_QUOTE],
  [pattern(/([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) /g, '$1 $2 '), CLITIC],
  [pattern(new RegExp(`(?<!${W})(d)('ye)${NOT_W}`, 'giu'), ' $1 $2 '), CLITIC],
  [pattern(new RegExp(`(?<!${W})(more)('n)${NOT_W}`, 'giu'), ' $1 $2 '), CLITIC],
  [pattern(new RegExp(` ('t)(is|was)${NOT_W}`, 'giu'), ' $1 $2 '), CLITIC],
]
const CONTRACTION = new RegExp(`(?<!${W})(?:(can)(not)|(gim|lem)(me)|(gon)(na)|(got)(ta))${NOT_W}`, 'giu')
const WANNA = new RegExp(`(?<!${W})(wan)(na)(?=${SPACE_CLASS})`, 'giu')

/** The tokens of a text. Linear time. */
export function tokenizeWords(text: string, memo = new ReadingMemo()): string[] {
  const all: string[] = []
  for (const sentence of punktSentences(text, memo)) {
    let tokens = memo.tokens.get(sentence)
    if (tokens === undefined) {
      tokens = sentenceTokens(sentence)
      memo.tokens.set(sentence, tokens)
    }
    for (const token of tokens) all.push(token)
  }
  return all
}

function sentenceTokens(sentence: string): string[] {
  const traits = traitsOf(sentence)
  let text = applied(sentence, OPENING, traits)
  text = parted(text, ']})>"\'\u00bb\u201d\u2019 ')
  text = applied(text, PUNCTUATION, traits)
  text = parted(text, ']})>"\'')
  text = applied(` ${applied(text, CLOSING, traits)} `, CLITICS, traits)
  return splitWords(traits & DOUBLED ? text.replace(CONTRACTION, parts).replace(WANNA, parts) : text)
}

/** The two parts of a contraction, apart. */
function parts(_: string, ...groups: (string | number | undefined)[]): string {
  const [first, second] = groups.slice(0, -2).filter((group) => group !== undefined)
  return ` ${first} ${second} `
}

function applied(text: string, rules: readonly Rule[], traits: number): string {
  let result = text
  for (const [change, needs] of rules) if (traits & needs) result = change(result)
  return result
}

/** Blanks around each character with the trait. */
function setApart(text: string, trait: number): string {
  let result = ''
  let begin = 0
  for (let at = 0; at < text.length; at++) {
    if ((traitOf(text.charCodeAt(at)) & trait) === 0) continue
    result += `${text.slice(begin, at)} ${text[at]} `
    begin = at + 1
  }
  return result + text.slice(begin)
}

/** Blanks around colons and commas, but before a digit and at the end: `([:,])([^\p{Nd}])`. */
function aroundColons(text: string): string {
  let result = ''
  let begin = 0
  for (let at = 0; at + 1 < text.length; at++) {
    if ((traitOf(text.charCodeAt(at)) & COLON) === 0 || isDigitAt(text, at + 1)) continue
    result += `${text.slice(begin, at)} ${text[at]} `
    begin = at + 1
    at++ // The next character belongs to the match: of ",," the first comma is set apart.
  }
  return result + text.slice(begin)
}

/** Letters that stay with an apostrophe before them: of "'s", "'m" and the like; the last one folds to an s. */
const KEPT_LETTERS = 'mMtTsSdDnN\u017f'

/** A blank between an apostrophe and the only letter of a word. */
function afterApostrophes(text: string): string {
  let result = ''
  let begin = 0
  for (let at = text.indexOf("'"); at >= 0; at = text.indexOf("'", at + 1)) {
    const width = wordWidth(text, at + 1)
    if (width === 0 || wordWidth(text, at + 1 + width) > 0 || KEPT_LETTERS.includes(text[at + 1]!)) continue
    result += `${text.slice(begin, at + 1)} `
    begin = at + 1
  }
  return result + text.slice(begin)
}

/** Sets the full stop at the end of the text, before any `closers` and white space, apart from its word. */
function parted(text: string, closers: string): string {
  let end = text.length
  while (end > 0 && isSpaceAt(text, end - 1)) end--
  let at = end
  while (at > 0 && closers.includes(text[at - 1]!)) at--
  if (text[at - 1] !== '.' || at < 2 || text[at - 2] === '.') return text
  return `${text.slice(0, at - 1)} . ${text.slice(at, end)} `
}
