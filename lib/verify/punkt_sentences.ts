// Sentences as Punkt finds them (Kiss & Strunk 2006), which IFEval's older instructions count: a full stop ends a
// sentence unless its word is a known abbreviation or an initial, or the next word shows that the sentence goes on.
// Punkt learned its words from newspapers; here they are three short lists.

import { isSpaceAt } from './python_text.js'
import { countUpTo, type KnownPart, knownPart, ReadingMemo } from './reading_memo.js'

/** Words that Punkt's English model knows as abbreviations: those in everyday use, by kind. "e.g" is none to it. */
const ABBREVIATIONS = new Set(
  [
    'mr mrs ms messrs dr prof st sr jr gen col lt maj adm rep reps sen', // persons
    'inc ltd corp co cos bros cie', // firms
    'jan feb aug sept sep oct nov dec tues wed fri', // days and months
    'ala ariz calif colo conn fla ga ill kan ky mich minn nev okla ore pa tenn va vt wash wis w.va ct', // states
    'u.s u.k u.n u.s.a u.s.s.r n.y n.j n.c n.d n.h n.m s.c d.c r.i l.a', // places
    'a.m p.m a.d ph.d m.b.a b.v n.v s.a s.p.a', // hours, degrees, forms of firms
    'ave ft yr vs mg ok sw chg', // units and the like
    'c d e f g h k l m n p r s t v w', // initials; the other letters are judged by what follows
    'a.a a.c a.g a.h a.s a.t b.f c.v d.h d.w e.f e.h e.l e.m f.g f.j g.d g.f g.k h.c h.f h.m j.b j.c j.j j.k j.p j.r',
    'l.f l.p m.j r.a r.h r.j r.k r.t s.g s.s t.j w.c w.r w.w',
  ].flatMap((words) => words.split(' ')),
)

/** Words that begin sentences so often that they end the one before, even after an abbreviation. */
const SENTENCE_STARTERS = new Set(
  (
    'according although among and are as at because before but by can did do does during each few finally first ' +
    'for from had has have he her here his how however i if in indeed instead is it its let many meanwhile more ' +
    'moreover most my nevertheless no now of on once one or our over several she should since so some such that the ' +
    'their then there therefore these they this those though through thus to under until was we were what when where ' +
    'whether which while who why will with would yet you your'
  ).split(' '),
)

const NON_WORD = codesOf(')";}]*:@\'({[?!')
const NOT_AT_START = codesOf('("`{[:;&#*@)}]-,')
const CLOSERS = codesOf('"\')]}')
const [DASH_CODE, DOT_CODE, COMMA_CODE] = [0x2d, 0x2e, 0x2c]

/** A table of ASCII: 1 at the codes of `characters`. */
function codesOf(characters: string): Uint8Array {
  const table = new Uint8Array(128)
  for (const character of characters) table[character.charCodeAt(0)] = 1
  return table
}

/** A sentence where it stands in the text that it was found in. */
export class Sentence {
  /** Its tokens, once they have been asked for (word_tokenize.ts). */
  tokens: readonly string[] | undefined

  constructor(
    private readonly source: string,
    private readonly begin: number,
    private readonly end: number,
  ) {}

  get length(): number {
    return this.end - this.begin
  }

  get text(): string {
    return this.source.slice(this.begin, this.end)
  }
}

/** Number of sentences by Punkt's decisions with English parameters. Linear time. */
export function countSentences(text: string, memo?: ReadingMemo): number {
  return punktSentences(text, memo).length
}

/** The sentences that `countSentences` counts. */
export function punktSentences(text: string, memo = new ReadingMemo()): readonly Sentence[] {
  const part = knownPart(memo.punktTexts, text)
  // Punkt overlooks white space that is first in a text.
  if (part !== undefined && part.begin !== 1 && !isSpaceAt(text, 0)) return partSentences(part)
  const found = new PunktText(text)
  eachBreak(text, (end, next) => found.breakAt(end, next))
  memo.punktTexts.push(found)
  return [...found.sentences, ...found.rest()]
}

/** What is known of a text, or of a part of it that ends before white space. */
export class PunktText {
  /** Those that end at a break. */
  readonly sentences: Sentence[] = []
  /** Of each break: the place behind its stop, the next one that is no white space, where the next sentence begins
   * (behind what closes this one), and the number of sentences by then. */
  readonly ends: number[] = []
  readonly nexts: number[] = []
  readonly begins: number[] = []
  readonly counts: number[] = []

  constructor(
    readonly text: string,
    private begin = 0,
    private readonly length = text.length,
  ) {}

  /** Ends a sentence; closing quotes and brackets after the stop go with it. */
  breakAt(end: number, next: number): void {
    const { text, begin } = this
    const closed = closersEnd(text, next, this.length)
    if (closed > next) this.sentences.push(new Sentence(text, begin, closed))
    else if (begin < end) this.sentences.push(new Sentence(text, begin, end))
    this.begin = closed
    while (closed > next && this.begin < this.length && isSpaceAt(text, this.begin)) this.begin++
    this.ends.push(end)
    this.nexts.push(next)
    this.begins.push(this.begin)
    this.counts.push(this.sentences.length)
  }

  /** The sentence behind the last break, if there is something. */
  rest(): Sentence[] {
    let end = this.length
    while (end > 0 && isSpaceAt(this.text, end - 1)) end--
    return this.begin < end ? [new Sentence(this.text, this.begin, end)] : []
  }
}

/** The end of closing quotes and brackets at `begin` that stand alone, or `begin`. */
function closersEnd(text: string, begin: number, length: number): number {
  let at = begin
  while (at < length && CLOSERS[text.charCodeAt(at)]) at++
  return at >= length || isSpaceAt(text, at) || text.startsWith('--', at) ? at : begin
}

/**
 * The sentences of a part of a known text. What ends a sentence is judged by the word that it ends and by the next one,
 * so that only the last word of the part, which has no next one, is looked at anew.
 */
function partSentences({ whole, begin, end }: KnownPart<PunktText>): Sentence[] {
  const { text } = whole
  let lastWord = end
  while (lastWord > begin && isSpaceAt(text, lastWord - 1)) lastWord--
  while (lastWord > begin && !isAsciiSpace(text.charCodeAt(lastWord - 1))) lastWord--
  const [first, behind] = [countUpTo(whole.ends, begin), countUpTo(whole.ends, lastWord)]
  const opening = new PunktText(text, begin, end)
  if (first < behind) opening.breakAt(whole.ends[first]!, whole.nexts[first]!)
  const same = first < behind ? whole.sentences.slice(whole.counts[first], whole.counts[behind - 1]) : []
  const closing = new PunktText(text, first < behind ? whole.begins[behind - 1] : begin, end)
  eachBreak(text.slice(lastWord, end), (at, next) => closing.breakAt(at + lastWord, next + lastWord))
  return [...opening.sentences, ...same, ...closing.sentences, ...closing.rest()]
}

function eachBreak(text: string, found: (end: number, next: number) => void): void {
  const known = new Map<string, boolean>()
  let previous: Candidate | undefined
  const decide = ({ at, wordBegin, nextBegin, nextEnd, isApart }: Candidate) => {
    let isBreak: boolean | undefined = true // A question or exclamation mark is a token, and ends the sentence.
    if (text.charCodeAt(at) === DOT_CODE) {
      const context = text.slice(wordBegin, isApart ? nextEnd : at + 2)
      isBreak = known.get(context)
      if (isBreak === undefined) {
        isBreak = hasBreak(tokensOf(context))
        known.set(context, isBreak)
      }
    }
    if (isBreak) found(at + 1, isApart ? nextBegin : at + 1)
  }
  for (let at = 0; at < text.length; at++) {
    if (!isStop(text.charCodeAt(at))) continue
    const candidate = candidateAt(text, at, previous)
    if (candidate === undefined) continue
    if (previous !== undefined && previous.at <= candidate.wordBegin) decide(previous)
    previous = candidate
  }
  if (previous !== undefined) decide(previous)
}

/** A stop that may end a sentence, with the word before it and what comes after. */
interface Candidate {
  at: number
  wordBegin: number
  nextBegin: number
  nextEnd: number
  /** Whether white space lies between. */
  isApart: boolean
}

function isStop(code: number): boolean {
  return code === DOT_CODE || code === 0x3f || code === 0x21
}

function candidateAt(text: string, at: number, previous: Candidate | undefined): Candidate | undefined {
  let nextBegin = at + 1
  const isApart = isSpaceAt(text, nextBegin)
  if (!isApart && !NON_WORD[text.charCodeAt(nextBegin)]) return undefined
  while (isApart && isSpaceAt(text, nextBegin)) nextBegin++
  if (nextBegin >= text.length) return undefined
  let nextEnd = nextBegin + 1
  while (isApart && nextEnd < text.length && !isSpaceAt(text, nextEnd)) nextEnd++
  const floor = previous?.at ?? 0
  let wordBegin = at
  while (wordBegin > floor && !isAsciiSpace(text.charCodeAt(wordBegin - 1))) wordBegin--
  // No white space since the last candidate: its word goes on.
  if (wordBegin - 1 <= floor) wordBegin = previous?.wordBegin ?? 0
  return { at, wordBegin, nextBegin, nextEnd, isApart }
}

function isAsciiSpace(code: number): boolean {
  return code === 32 || (code >= 9 && code <= 13)
}

/** Punkt's tokens, one at a time: words without the punctuation around them, but with a final full stop. */
function* tokensOf(context: string): Generator<string> {
  for (let at = 0; at < context.length; ) {
    if (isSpaceAt(context, at)) {
      at++
      continue
    }
    const run = multiCharacterEnd(context, at)
    const end = run > at ? run : NOT_AT_START[context.charCodeAt(at)] ? at + 1 : wordEnd(context, at)
    yield context.slice(at, end)
    at = end
  }
}

function wordEnd(context: string, begin: number): number {
  let at = begin + 1
  while (at < context.length && !endsWord(context, at)) at++
  return at
}

function endsWord(context: string, at: number): boolean {
  const code = context.charCodeAt(at)
  if (isSpaceAt(context, at) || NON_WORD[code] || multiCharacterEnd(context, at) > at) return true
  if (code !== COMMA_CODE) return false
  const next = at + 1
  if (next >= context.length || isSpaceAt(context, next) || NON_WORD[context.charCodeAt(next)]) return true
  return multiCharacterEnd(context, next) > next
}

/** The end of `--`, `...` or `. . .` at a place, or the place itself. */
function multiCharacterEnd(context: string, at: number): number {
  const code = context.charCodeAt(at)
  if (code !== DASH_CODE && code !== DOT_CODE) return at
  if (context.charCodeAt(at + 1) === code) {
    let end = at + 2
    while (context.charCodeAt(end) === code) end++
    return end
  }
  let end = at
  while (code === DOT_CODE && context.charCodeAt(end) === DOT_CODE && isSpaceAt(context, end + 1)) end += 2
  return end - at >= 4 && context.charCodeAt(end) === DOT_CODE ? end + 1 : at
}

type Ending = 'break' | 'abbreviation' | 'ellipsis' | 'none'

const NUMBER = /^-?[.,]?\p{Nd}[\p{Nd},.-]*$/u
const INITIAL = /^[\p{L}_]\.$/u

function endingOf(token: string): Ending {
  if (token === '.' || token === '?' || token === '!') return 'break'
  if (/^\.\.+$/.test(token)) return 'ellipsis'
  if (!token.endsWith('.') || token.endsWith('..')) return 'none'
  const word = token.slice(0, -1).toLowerCase()
  const lastPart = word.slice(word.lastIndexOf('-') + 1)
  return ABBREVIATIONS.has(word) || ABBREVIATIONS.has(lastPart) ? 'abbreviation' : 'break'
}

/** Whether any token but the last ends a sentence. */
function hasBreak(tokens: Iterable<string>): boolean {
  let previous: string | undefined
  for (const token of tokens) {
    if (previous !== undefined && breaksBefore(previous, token)) return true
    previous = token
  }
  return false
}

function breaksBefore(token: string, next: string): boolean {
  if (!token.endsWith('.')) return token === '?' || token === '!'
  const ending = endingOf(token)
  const isInitial = INITIAL.test(token)
  if (isInitial || NUMBER.test(token)) {
    const starts = startsSentence(next)
    const isName = isInitial && starts === undefined && isCapitalized(next)
    return ending === 'break' && starts !== false && !isName
  }
  return ending === 'break' || (ending !== 'none' && startsSentence(next) === true)
}

/** Whether a word is the first of a sentence: yes, no, or undefined where its form does not tell. */
function startsSentence(word: string): boolean | undefined {
  if (';:,.!?'.includes(word)) return false
  if (isCapitalized(word) && SENTENCE_STARTERS.has(word.toLowerCase())) return true
  return /^\p{Lowercase}/u.test(word) ? false : undefined
}

function isCapitalized(word: string): boolean {
  return /^\p{Uppercase}/u.test(word)
}
