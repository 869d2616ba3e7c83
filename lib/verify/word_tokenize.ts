// Words and punctuation as NLTK's `word_tokenize` cuts them (its Penn Treebank rules), for instructions that count
// tokens. There each rule is a pattern that puts blanks into a sentence; here each is a scan that marks their places,
// as patterns would write a long sentence anew twenty times.

import { punktSentences } from './punkt_sentences.js'
import { isDigitAt, isSpaceCode, wordWidth } from './python_text.js'
import { ReadingMemo } from './reading_memo.js'
import * as trait from './sentence_marks.js'
import { SentenceMarks } from './sentence_marks.js'

const [NEWLINE, QUOTE, APOSTROPHE, COMMA, DASH, FULL_STOP, COLON, BACKTICK] = [
  ...[0x0a, 0x22, 0x27, 0x2c],
  ...[0x2d, 0x2e, 0x3a, 0x60],
] as [number, number, number, number, number, number, number, number]

/** A token: what lies between two places of a text, which is not always the one that was asked about. */
export type TokenVisitor = (text: string, begin: number, end: number) => boolean

/** Longest sentence of which the tokens are kept. */
const SHORT_SENTENCE = 256

/** The tokens of a text. Linear time. */
export function tokenizeWords(text: string, memo?: ReadingMemo): string[] {
  const all: string[] = []
  everyToken(text, (source, begin, end) => all.push(source.slice(begin, end)) > 0, memo)
  return all
}

/** Whether `holds` is true for each token of a text, in order, up to the first for which it is not. Linear time. */
export function everyToken(text: string, holds: TokenVisitor, memo = new ReadingMemo()): boolean {
  const marks = new SentenceMarks()
  for (const sentence of punktSentences(text, memo)) {
    if (sentence.length > SHORT_SENTENCE) {
      if (!markedTokens(marks, sentence.text).everyToken(holds)) return false
      continue
    }
    sentence.tokens ??= shortTokens(marks, sentence.text, memo)
    for (const token of sentence.tokens) if (!holds(token, 0, token.length)) return false
  }
  return true
}

function shortTokens(marks: SentenceMarks, sentence: string, memo: ReadingMemo): readonly string[] {
  let tokens = memo.tokens.get(sentence)
  if (tokens === undefined) {
    tokens = markedTokens(marks, sentence).tokens()
    memo.tokens.set(sentence, tokens)
  }
  return tokens
}

function markedTokens(marks: SentenceMarks, sentence: string): SentenceMarks {
  marks.reset(sentence)
  markTokens(marks)
  return marks
}

/** The rules, in the order of NLTK. */
function markTokens(marks: SentenceMarks): void {
  if (marks.has(trait.BEFORE_QUOTES)) markBeforeQuotes(marks)
  if (marks.has(trait.DOUBLE_QUOTE | trait.APOSTROPHES)) markOpeningQuotes(marks)
  if (marks.has(trait.APOSTROPHE)) markAfterApostrophes(marks)
  if (marks.has(trait.FULL_STOP)) partFullStop(marks, ']})>"\'\u00bb\u201d\u2019 ')
  if (marks.has(trait.COLON)) markColons(marks)
  if (marks.has(trait.FULL_STOPS)) markRuns(marks, FULL_STOP, Number.POSITIVE_INFINITY)
  marks.setApart(trait.SYMBOL)
  if (marks.has(trait.FULL_STOP)) partFullStop(marks, ']})>"\'')
  marks.setApart(trait.END_MARK)
  if (marks.has(trait.APOSTROPHE)) markBeforeBlanks(marks)
  marks.setApart(trait.ASTERISK | trait.BRACKET)
  if (marks.has(trait.DASHES)) markRuns(marks, DASH, 2)
  marks.cut(0)
  marks.cut(marks.length)
  marks.setApart(trait.AFTER_QUOTES)
  if (marks.has(trait.APOSTROPHES)) markRuns(marks, APOSTROPHE, 2)
  marks.setApart(trait.DOUBLE_QUOTE)
  if (marks.has(trait.APOSTROPHE)) markClitics(marks)
  if (marks.has(trait.DOUBLED)) markContractions(marks)
  if (marks.has(trait.APOSTROPHE)) markTis(marks)
}

/** `([\u00ab\u201c\u2018\u201e]|`+)`, and of a run of backticks each two. */
function markBeforeQuotes(marks: SentenceMarks): void {
  marks.setApart(trait.BEFORE_QUOTES)
  for (let at = 1; at < marks.length; at++) {
    if (marks.codes[at] === BACKTICK && marks.codes[at - 1] === BACKTICK) marks.join(at++)
  }
}

/** Opening quotes: `^"`, and then `([ ([{<])("|'{2})`. */
function markOpeningQuotes(marks: SentenceMarks): void {
  const { codes } = marks
  if (codes[0] === QUOTE) marks.open(0, 1)
  for (let at = 1; at < marks.length; at++) {
    const width = codes[at] === QUOTE ? 1 : codes[at] === APOSTROPHE && codes[at + 1] === APOSTROPHE ? 2 : 0
    if (width === 0 || at + width > marks.length) continue
    if (!marks.isBehindBlank(at) && !isOneOf(codes[at - 1]!, '([{<')) continue
    marks.open(at, width)
    at += width // What comes next is behind this quote, not behind the blank after it.
  }
}

/** Letters that stay with an apostrophe before them: of "'s", "'m" and the like; the last one folds to an s. */
const KEPT_LETTERS = new Set([...'mMtTsSdDnN\u017f'].map((one) => one.charCodeAt(0)))

/** No character of a word has a lower code. */
const FIRST_OF_WORDS = 0x30

/** A blank between an apostrophe and the only letter of a word. */
function markAfterApostrophes(marks: SentenceMarks): void {
  const { codes, text } = marks
  for (let at = 0; at < marks.length; at++) {
    if (codes[at] !== APOSTROPHE || codes[at + 1]! < FIRST_OF_WORDS) continue
    const width = wordWidth(text, at + 1)
    const isOnlyOne = width > 0 && (codes[at + 1 + width] === APOSTROPHE || wordWidth(text, at + 1 + width) === 0)
    if (isOnlyOne && !KEPT_LETTERS.has(codes[at + 1]!)) marks.cut(at + 1)
  }
}

/**
 * Sets the full stop at the end of the sentence, before any `closers` and white space, apart from its word; all of the
 * white space becomes one blank.
 */
function partFullStop(marks: SentenceMarks, closers: string): void {
  const { codes } = marks
  let end = marks.length
  while (end > 0 && isSpaceCode(codes[end - 1]!)) end--
  const isBarred = (at: number) => at < end && marks.isCut(at) && !closers.includes(' ')
  let at = end
  while (at > 0 && !isBarred(at) && !marks.isOpening(at - 1) && isOneOf(codes[at - 1]!, closers)) at--
  const stop = at - 1
  if (isBarred(at) || stop < 1 || codes[stop] !== FULL_STOP) return
  if (codes[stop - 1] === FULL_STOP && !marks.isCut(stop)) return
  marks.cut(stop)
  marks.cut(stop + 1)
  marks.cut(end)
  marks.length = end
}

/** Blanks around colons and commas, but before a digit: `([:,])([^\p{Nd}])`, and `([:,])(?=\n?$)`. */
function markColons(marks: SentenceMarks): void {
  const { codes } = marks
  const isColon = (at: number) => codes[at] === COLON || codes[at] === COMMA
  const setApart = (at: number) => {
    marks.cut(at)
    marks.cut(at + 1)
  }
  for (let at = 0; at < marks.length; at++) {
    if (!isColon(at)) continue
    const isBeforeBlank = marks.isCut(at + 1)
    if (!isBeforeBlank && (at + 1 === marks.length || isDigitAt(marks.text, at + 1))) continue
    setApart(at)
    if (!isBeforeBlank) at++ // The next character belongs to the match: of ",," the first comma is set apart.
  }
  const last = marks.length - 1
  if (marks.isCut(marks.length)) return
  if (isColon(last)) setApart(last)
  else if (last > 0 && codes[last] === NEWLINE && !marks.isCut(last) && isColon(last - 1)) setApart(last - 1)
}

/** Sets runs of two or more of a character apart, in pieces of at most `most`; what is left of one stays as it is. */
function markRuns(marks: SentenceMarks, code: number, most: number): void {
  for (let begin = 0; begin < marks.length; ) {
    let end = begin + 1
    if (marks.codes[begin] === code) while (end < marks.length && marks.codes[end] === code && !marks.isCut(end)) end++
    for (let at = begin; at + 1 < end; at += most) {
      marks.cut(at)
      marks.cut(Math.min(at + most, end))
    }
    begin = end
  }
}

/** `([^'])' `: an apostrophe before a blank. */
function markBeforeBlanks(marks: SentenceMarks): void {
  for (let at = 1; at < marks.length; at++) {
    if (marks.codes[at] === APOSTROPHE && marks.codes[at - 1] !== APOSTROPHE && marks.isBlankAt(at + 1)) marks.cut(at)
  }
}

const LONG_CLITICS = ['ll', 'LL', 're', 'RE', 've', 'VE']

/** What begins with an apostrophe or has one in it. Each rule sees the blanks of those before. */
function markClitics(marks: SentenceMarks): void {
  const { codes, text } = marks
  const places: number[] = []
  for (let at = 0; at < marks.length; at++) {
    // One before another one is part of no rule.
    if (codes[at] === APOSTROPHE && (codes[at + 1] !== APOSTROPHE || at + 1 === marks.length)) places.push(at)
  }
  const endsWord = (at: number) => at > 0 && !marks.isBehindBlank(at) && codes[at - 1] !== APOSTROPHE
  for (const at of places) {
    if (!endsWord(at)) continue
    const isLetter = at + 1 < marks.length && !marks.isCut(at + 1) && isOneOf(codes[at + 1]!, 'sSmMdD')
    if (marks.isBlankAt(at + 1) || (isLetter && marks.isBlankAt(at + 2))) marks.cut(at)
  }
  for (const at of places) {
    if (marks.isCut(at) || marks.isCut(at + 1)) continue
    if (isNegation(codes, at) && marks.isBlankAt(at + 2) && endsWord(at - 1)) marks.cut(at - 1)
    if (at + 2 >= marks.length || marks.isCut(at + 2) || !marks.isBlankAt(at + 3)) continue
    if (endsWord(at) && LONG_CLITICS.includes(text.slice(at + 1, at + 3))) marks.cut(at)
  }
  markPhrase(marks, places, ['d', 'ye'])
  markPhrase(marks, places, ['more', 'n'])
}

/** "n't" or "N'T". */
function isNegation(codes: Uint16Array, apostrophe: number): boolean {
  if (apostrophe === 0) return false
  const [before, after] = [codes[apostrophe - 1]!, codes[apostrophe + 1]!]
  return (before === 0x6e && after === 0x74) || (before === 0x4e && after === 0x54)
}

/** Two words that an apostrophe joins, as parts of which the second begins with it. */
function markPhrase(marks: SentenceMarks, places: readonly number[], [before, after]: [string, string]): void {
  for (const at of places) {
    const [begin, end] = [at - before.length, at + 1 + after.length]
    if (marks.isCut(at) || marks.isCut(at + 1) || !marks.hasLetters(at + 1, after)) continue
    if (!marks.hasLetters(begin, before) || !marks.isWhole(begin, end)) continue
    for (const place of [begin, at, end]) marks.cut(place)
  }
}

/** "'tis" and "'twas" behind a blank. From the end on: the blank behind one is none for the next. */
function markTis(marks: SentenceMarks): void {
  for (let at = marks.length - 3; at >= 0; at--) {
    if (marks.codes[at] !== APOSTROPHE || !marks.hasLetters(at + 1, 't')) continue
    if (!marks.isBehindBlank(at) || marks.isCut(at + 1) || marks.isCut(at + 2)) continue
    const verb = ['is', 'was'].find((word) => marks.hasLetters(at + 2, word))
    if (verb === undefined || !marks.isWhole(at + 1, at + 2 + verb.length)) continue
    for (const place of [at, at + 2, at + 2 + verb.length]) marks.cut(place)
  }
}

/** Contractions, by the two letters in their middle: the cut is between them. */
const CONTRACTIONS = ['cannot', 'gimme', 'lemme', 'gonna', 'gotta', 'wanna'].map((word) => ({
  word,
  middle: word.charCodeAt(2),
  /** This one stands before white space alone. */
  isBeforeSpace: word === 'wanna',
}))

function markContractions(marks: SentenceMarks): void {
  for (let at = 2; at + 1 < marks.length; at++) {
    const letter = marks.codes[at]! | 0x20
    if (letter !== (marks.codes[at + 1]! | 0x20)) continue
    for (const { word, middle, isBeforeSpace } of CONTRACTIONS) {
      const [begin, end] = [at - 2, at - 2 + word.length]
      if (letter !== middle || !marks.hasLetters(begin, word) || !marks.isWhole(begin, end)) continue
      if (isBeforeSpace && !marks.isCut(end) && !isSpaceCode(marks.codes[end]!)) continue
      for (const place of [begin, at + 1, end]) marks.cut(place)
    }
  }
}

function isOneOf(code: number, characters: string): boolean {
  return characters.includes(String.fromCharCode(code))
}
