// Words and punctuation as NLTK's `word_tokenize` cuts them (its Penn Treebank rules), for instructions that count
// tokens. The rules are applied to one sentence at a time, as there.

import { isSpaceAt, SPACE_CLASS, splitWords } from './python_text.js'
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
const DOUBLED_LETTERS = 'mnt'
/** An apostrophe and one of the letters that come behind it in what is cut by the letter. */
const CLITIC = 1 << 12
const LETTERS_OF_CLITICS = 'lLrRvVtTyYnN'
/** Two in a row. */
const APOSTROPHES = 1 << 13
const FULL_STOPS = 1 << 14
const [APOSTROPHE_CODE, FULL_STOP_CODE] = [0x27, 0x2e]

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
  return DOUBLED_LETTERS.includes(String.fromCharCode(code | 0x20)) ? DOUBLED : 0
}

/**
 * A pattern, what it becomes, and the traits of which a text must have one for the pattern to be tried at all. A trait
 * alone: each of its characters is set apart.
 */
type Rule = [pattern: RegExp, replacement: string, needs: number] | number

// Bounded patterns and runs of one character: linear time. The rule for the last full stop is not: it is a function.
const OPENING: Rule[] = [
  [/([\u00ab\u201c\u2018\u201e]|`+)/g, ' $1 ', BEFORE_QUOTES],
  [/^"/g, '``', DOUBLE_QUOTE],
  [/(``)/g, ' $1 ', BEFORE_QUOTES | DOUBLE_QUOTE],
  [/([ ([{<])("|'{2})/g, '$1 `` ', DOUBLE_QUOTE | APOSTROPHES],
  [new RegExp(`(')(?!re|ve|ll|m|t|s|d|n)(${W})${NOT_W}`, 'giu'), '$1 $2', APOSTROPHE],
]
const PUNCTUATION: Rule[] = [
  [/([:,])([^\p{Nd}])/gu, ' $1 $2', COLON],
  [/([:,])(?=\n?$)/g, ' $1 ', COLON],
  [/\.{2,}/g, ' $& ', FULL_STOPS],
  SYMBOL,
]
const CLOSING: Rule[] = [END_MARK, [/([^'])' /g, "$1 ' ", APOSTROPHE], ASTERISK, BRACKET, [/--/g, ' -- ', DASH]]
const CLITICS: Rule[] = [
  AFTER_QUOTES,
  [/''/g, " '' ", APOSTROPHES],
  [/"/g, " '' ", DOUBLE_QUOTE],
  [/([^' ])('[sS]|'[mM]|'[dD]|') /g, '$1 $2 ', APOSTROPHE | DOUBLE_QUOTE],
  [/([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) /g, '$1 $2 ', CLITIC],
  [new RegExp(`(?<!${W})(d)('ye)${NOT_W}`, 'giu'), ' $1 $2 ', CLITIC],
  [new RegExp(`(?<!${W})(more)('n)${NOT_W}`, 'giu'), ' $1 $2 ', CLITIC],
  [new RegExp(` ('t)(is|was)${NOT_W}`, 'giu'), ' $1 $2 ', CLITIC],
]
const CONTRACTION = new RegExp(`(?<!${W})(?:(can)(not)|(gim|lem)(me)|(gon)(na)|(got)(ta))${NOT_W}`, 'giu')
const WANNA = new RegExp(`(?<!${W})(wan)(na)(?=${SPACE_CLASS})`, 'giu')

/** The tokens of a text. Linear time. */
export function tokenizeWords(text: string, memo = new ReadingMemo()): string[] {
  const tokens: string[] = []
  for (const sentence of punktSentences(text, memo)) {
    let own = memo.tokens.get(sentence)
    if (own === undefined) {
      own = sentenceTokens(sentence)
      memo.tokens.set(sentence, own)
    }
    for (const token of own) tokens.push(token)
  }
  return tokens
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
  for (const rule of rules) {
    if (typeof rule === 'number') result = traits & rule ? setApart(result, rule) : result
    else if (traits & rule[2]) result = result.replace(rule[0], rule[1])
  }
  return result
}

/** Blanks around each character with the trait: a pattern takes four times as long where there are many. */
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

/** Sets the full stop at the end of the text, before any `closers` and white space, apart from its word. */
function parted(text: string, closers: string): string {
  let end = text.length
  while (end > 0 && isSpaceAt(text, end - 1)) end--
  let at = end
  while (at > 0 && closers.includes(text[at - 1]!)) at--
  if (text[at - 1] !== '.' || at < 2 || text[at - 2] === '.') return text
  return `${text.slice(0, at - 1)} . ${text.slice(at, end)} `
}
