// A sentence with marks between its characters: where a tokenizer wants a blank that the text does not have. Rules look
// at the marks as if the blanks stood there, and no rule writes the text anew.

import { isSpaceCode, isWordAt, isWordBefore } from './python_text.js'

// Traits: which of the characters a sentence has that some rule looks for.
export const BEFORE_QUOTES = 1 << 0
export const DOUBLE_QUOTE = 1 << 1
export const APOSTROPHE = 1 << 2
export const COLON = 1 << 3
export const FULL_STOP = 1 << 4
export const SYMBOL = 1 << 5
export const END_MARK = 1 << 6
export const ASTERISK = 1 << 7
export const BRACKET = 1 << 8
export const AFTER_QUOTES = 1 << 9
/** Two in a row. */
export const APOSTROPHES = 1 << 10
export const FULL_STOPS = 1 << 11
export const DASHES = 1 << 12
/** `mm`, `nn` or `tt`, in any case: one is in each contraction that is cut. */
export const DOUBLED = 1 << 13

const TRAITS: readonly (readonly [characters: string, trait: number])[] = [
  ['\u00ab\u201c\u2018\u201e`', BEFORE_QUOTES],
  ['"', DOUBLE_QUOTE],
  ["'", APOSTROPHE],
  [':,', COLON],
  ['.', FULL_STOP],
  [';@#$%&', SYMBOL],
  ['?!', END_MARK],
  ['*', ASTERISK],
  ['][(){}<>', BRACKET],
  ['\u00bb\u201d\u2019', AFTER_QUOTES],
]
const [LAST_PLAIN, LAST_QUOTE] = [0x7f, 0x201e]
const traitOfCode = new Uint16Array(LAST_QUOTE + 1)
for (const [characters, trait] of TRAITS) {
  for (const one of characters) traitOfCode[one.charCodeAt(0)] = trait
}
/** The trait of two of a character in a row; of letters it is the same in any case. */
const traitOfTwo = new Uint16Array(LAST_PLAIN + 1)
for (const [letters, trait] of [
  ["'", APOSTROPHES],
  ['.', FULL_STOPS],
  ['-', DASHES],
  ['mntMNT', DOUBLED],
] as const) {
  for (const one of letters) traitOfTwo[one.charCodeAt(0)] = trait
}

// What is marked at a place.
const CUT = 1
const OPENING = 2

const [QUOTE, LETTER_S, LONG_S, CASE_BIT, BLANK] = [0x22, 0x73, 0x17f, 0x20, 0x20]

export class SentenceMarks {
  text = ''
  /** In UTF-16 units; less than that of the text where a rule has taken off the white space at its end. */
  length = 0
  /** The UTF-16 units. */
  codes = new Uint16Array(256)
  #marks = new Uint8Array(257)
  #traits = 0

  /** Begins another sentence. */
  reset(text: string): void {
    this.text = text
    this.length = text.length
    if (text.length > this.codes.length) {
      this.codes = new Uint16Array(2 * text.length)
      this.#marks = new Uint8Array(2 * text.length + 1)
    }
    this.#marks.fill(0, 0, text.length + 1)
    this.#traits = 0
    const { codes } = this
    let traits = 0
    let before = 0
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at)
      codes[at] = code
      if (code <= LAST_QUOTE) traits |= traitOfCode[code]!
      if ((code | CASE_BIT) === (before | CASE_BIT) && code <= LAST_PLAIN) traits |= traitOfTwo[code]!
      before = code
    }
    this.#traits = traits
  }

  /** Whether the sentence has one of the traits. */
  has(traits: number): boolean {
    return (this.#traits & traits) !== 0
  }

  /** Marks a blank before the character at a place. */
  cut(at: number): void {
    this.#marks[at]! |= CUT
  }

  isCut(at: number): boolean {
    return (this.#marks[at]! & CUT) !== 0
  }

  /** Takes back the blank at a place. */
  join(at: number): void {
    this.#marks[at]! &= ~CUT
  }

  /** Makes the `width` characters at a place an opening quote. */
  open(at: number, width: number): void {
    this.cut(at)
    this.cut(at + width)
    this.#marks[at]! |= OPENING
  }

  isOpening(at: number): boolean {
    return (this.#marks[at]! & OPENING) !== 0
  }

  /** Whether there is a blank, of the text or marked, before (not at) the character at a place. */
  isBehindBlank(at: number): boolean {
    return this.isCut(at) || this.codes[at - 1] === BLANK
  }

  /** Whether a blank, of the text or marked, is what comes at a place. */
  isBlankAt(at: number): boolean {
    return this.isCut(at) || (at < this.length && this.codes[at] === BLANK)
  }

  /** Blanks around each character with one of the traits. */
  setApart(traits: number): void {
    if (!this.has(traits)) return
    for (let at = 0; at < this.length; at++) {
      const code = this.codes[at]!
      if (code > LAST_QUOTE || (traitOfCode[code]! & traits) === 0) continue
      this.cut(at)
      this.cut(at + 1)
    }
  }

  /** Whether a word in lower case stands at a place, in any case and in one piece. */
  hasLetters(at: number, word: string): boolean {
    if (at < 0 || at + word.length > this.length) return false
    for (let i = 0; i < word.length; i++) {
      const [code, letter] = [this.codes[at + i]!, word.charCodeAt(i)]
      if ((code | CASE_BIT) !== letter && !(letter === LETTER_S && code === LONG_S)) return false
      if (i > 0 && this.isCut(at + i)) return false
    }
    return true
  }

  /** Whether what lies between two places is bordered by what is no part of a word. */
  isWhole(begin: number, end: number): boolean {
    const beginsWord = this.isCut(begin) || !isWordBefore(this.text, begin)
    return beginsWord && (end >= this.length || this.isCut(end) || !isWordAt(this.text, end))
  }

  /** What lies between blanks and white space. */
  tokens(): string[] {
    const tokens: string[] = []
    this.everyToken((text, begin, end) => tokens.push(text.slice(begin, end)) > 0)
    return tokens.slice() // Of the length that they need, as there may be very many short lists.
  }

  /** Whether `holds` is true for each token, up to the first for which it is not. */
  everyToken(holds: (text: string, begin: number, end: number) => boolean): boolean {
    const { codes, length, text } = this
    const marks = this.#marks
    for (let at = 0; at < length; ) {
      if (isSpaceCode(codes[at]!)) {
        at++
        continue
      }
      const begin = at++
      while (at < length && (marks[at]! & CUT) === 0 && !isSpaceCode(codes[at]!)) at++
      let isGoingOn: boolean
      if (marks[begin]! & OPENING) isGoingOn = holds('``', 0, 2)
      else if (codes[begin] === QUOTE) isGoingOn = holds("''", 0, 2)
      else isGoingOn = holds(text, begin, at)
      if (!isGoingOn) return false
    }
    return true
  }
}
