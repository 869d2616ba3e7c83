// Sentences by the rule list of IFEval's newer instructions (IFEvalG): patterns that protect full stops which end
// nothing, and ends where nothing else does. Here each rule looks at the full stops alone and marks them, as patterns
// would write a long text anew twenty times. For the older ones see punkt_sentences.ts.

import { isSpaceCode, SPACE_CLASS, strip } from './python_text.js'
import { countUpTo, type KnownPart, knownPart, ReadingMemo } from './reading_memo.js'

// What a full stop is, where it does not end a sentence like `?` and `!` do.
const PROTECTED = 1
/** The sentence ends behind it. */
const ENDS = 2
/** It ends a sentence and belongs to none. */
const GONE = 4

const STARTERS =
  `(?:Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He${SPACE_CLASS}|She${SPACE_CLASS}|It${SPACE_CLASS}|They${SPACE_CLASS}` +
  `|Their${SPACE_CLASS}|Our${SPACE_CLASS}|We${SPACE_CLASS}|But${SPACE_CLASS}|However${SPACE_CLASS}` +
  `|That${SPACE_CLASS}|This${SPACE_CLASS}|Wherever)`
/** Behind the full stop of an acronym or a suffix. */
const STARTER = new RegExp(` ${STARTERS}`, 'y')
const TITLES = ['Mr', 'St', 'Mrs', 'Ms', 'Dr']
const DOMAINS = ['com', 'net', 'org', 'io', 'gov', 'edu', 'me']
const SUFFIXES = ['Inc', 'Ltd', 'Jr', 'Sr', 'Co']
const TITLE_ENDS = codesOf('rts')
const DOMAIN_STARTS = codesOf('cnoigem')
const SUFFIX_ENDS = codesOf('cdro')
const RULES = [
  ...[protectWords, protectNumbers, endRuns, protectDegrees, protectInitialsApart, endAcronyms],
  ...[protectTriples, protectPairs, endSuffixes, protectInitials],
]
/** Blanks around a text: as patterns look for them there, and so that no rule looks beyond. */
const BORDER = ' '.repeat(6)
const [BLANK, FULL_STOP] = [0x20, 0x2e]

/** The sentences of a text by the rules of IFEvalG, without white space around them. An empty last one is dropped. */
export function splitSentences(text: string, memo = new ReadingMemo()): string[] {
  const part = knownPart(memo.splitTexts, text)
  const sentences = part && !part.whole.dropsStops ? partSentences(part) : wholeSentences(text, memo)
  if (sentences.at(-1) === '') sentences.pop()
  return sentences
}

/** What is known of a text. */
export interface SplitText {
  text: string
  /** With blanks for line breaks and around it, and what was swapped. */
  marked: string
  /** With an empty one behind the last end. */
  sentences: readonly string[]
  /** Where they end in `marked`. */
  ends: readonly number[]
  /** Whether a full stop was dropped at a word that belongs to the match: the next one may be another one in a part. */
  dropsStops: boolean
}

function wholeSentences(text: string, memo: ReadingMemo): string[] {
  const stops = new MarkedStops(`${BORDER}${text.replaceAll('\n', ' ')}${BORDER}`)
  for (const rule of RULES) {
    if (stops.places.length === 0) break
    rule(stops)
    stops.leaveOpenOnes()
  }
  for (const pair of ['.\u201d', '."', '!"', '?"']) if (stops.text.includes(pair[1]!)) stops.swap(pair)
  const found = stops.sentences(text)
  memo.splitTexts.push(found)
  return [...found.sentences]
}

/** The sentences of a part of a known text: no rule looks beyond white space but for what is dropped. */
function partSentences({ whole: { marked, sentences, ends }, begin, end }: KnownPart<SplitText>): string[] {
  const first = countUpTo(ends, begin + BORDER.length)
  const last = countUpTo(ends, end + BORDER.length - 1)
  const between = (from: number, to: number) => strip(marked.slice(from, to))
  if (first >= last) return [between(begin + BORDER.length, end + BORDER.length)]
  const opening = between(begin + BORDER.length, ends[first]!)
  return [opening, ...sentences.slice(first + 1, last), between(ends[last - 1]!, end + BORDER.length)]
}

/** A text and what its full stops are. */
class MarkedStops {
  readonly codes: Uint16Array
  /** Of the full stops that were open before the rule that looks at them. */
  readonly places: number[] = []
  readonly #marks: Uint8Array
  #isChanged = false

  constructor(readonly text: string) {
    const codes = new Uint16Array(text.length)
    this.codes = codes
    this.#marks = new Uint8Array(text.length)
    for (let at = 0; at < text.length; at++) {
      codes[at] = text.charCodeAt(at)
      if (codes[at] === FULL_STOP) this.places.push(at)
    }
  }

  mark(at: number, what: number): void {
    this.#marks[at]! |= what
  }

  /** Whether there is a full stop that no rule has protected so far. */
  isOpen(at: number): boolean {
    return this.codes[at] === FULL_STOP && (this.#marks[at]! & (PROTECTED | GONE)) === 0
  }

  leaveOpenOnes(): void {
    let count = 0
    for (const at of this.places) if (this.isOpen(at)) this.places[count++] = at
    this.places.length = count
  }

  /** Makes the white space at a place a blank. */
  setBlank(at: number): void {
    if (this.codes[at] === BLANK) return
    this.codes[at] = BLANK
    this.#isChanged = true
  }

  isLetter(at: number): boolean {
    const letter = this.codes[at]! | 0x20
    return letter >= 97 && letter <= 122
  }

  isCapital(at: number): boolean {
    return this.codes[at]! >= 65 && this.codes[at]! <= 90
  }

  isDigit(at: number): boolean {
    return this.codes[at]! >= 48 && this.codes[at]! <= 57
  }

  /** Swaps the two characters of each such pair; a protected full stop begins none. */
  swap(pair: string): void {
    const [first, second] = [pair.charCodeAt(0), pair.charCodeAt(1)]
    const { codes } = this
    for (let at = 0; at + 1 < codes.length; at++) {
      if (codes[at] !== first || codes[at + 1] !== second || (first === FULL_STOP && !this.isOpen(at))) continue
      codes[at] = second
      codes[++at] = first
      this.#isChanged = true
    }
  }

  /** What lies between ends, without white space around it. */
  sentences(of: string): SplitText {
    const { codes } = this
    const marked = this.#isChanged ? Buffer.from(codes.buffer).toString('utf16le') : this.text
    const found = { text: of, marked, sentences: [] as string[], ends: [] as number[], dropsStops: false }
    let begin = 0
    const add = (end: number) => {
      let last = end
      while (begin < last && isSpaceCode(codes[begin]!)) begin++
      while (begin < last && isSpaceCode(codes[last - 1]!)) last--
      found.sentences.push(marked.slice(begin, last))
      found.ends.push(end)
      begin = end
    }
    for (let at = 0; at < codes.length; at++) {
      if (!isStopCode(codes[at]!)) continue
      const mark = codes[at] === FULL_STOP ? this.#marks[at]! : 0
      if (mark === GONE) {
        add(at)
        begin = at + 1
        found.dropsStops = true
      }
      if ((mark & (PROTECTED | GONE)) === 0) add(at + 1)
      if (mark & ENDS) add(at + 1)
    }
    add(codes.length)
    return found
  }
}

function isStopCode(code: number): boolean {
  return code === FULL_STOP || code === 0x3f || code === 0x21
}

/** `(Mr|St|Mrs|Ms|Dr)\.` and `\.(com|net|org|io|gov|edu|me)`. */
function protectWords(stops: MarkedStops): void {
  const { codes, text } = stops
  for (const at of stops.places) {
    const isTitle = TITLE_ENDS[codes[at - 1]!] === 1 && endsWithAny(text, TITLES, at) !== undefined
    if (isTitle || (DOMAIN_STARTS[codes[at + 1]!] === 1 && DOMAINS.some((domain) => text.startsWith(domain, at + 1)))) {
      stops.mark(at, PROTECTED)
    }
  }
}

/** `([0-9])\.([0-9])`: of "1.2.3" the first, as the 2 belongs to it. */
function protectNumbers(stops: MarkedStops): void {
  let end = 0
  for (const at of stops.places) {
    if (at - 1 < end || !stops.isOpen(at) || !stops.isDigit(at - 1) || !stops.isDigit(at + 1)) continue
    stops.mark(at, PROTECTED)
    end = at + 2
  }
}

/** `\.{2,}` ends a sentence as a whole. */
function endRuns(stops: MarkedStops): void {
  for (const at of stops.places) {
    if (!stops.isOpen(at) || !stops.isOpen(at + 1)) continue
    let end = at
    while (stops.isOpen(end)) stops.mark(end++, PROTECTED)
    stops.mark(end - 1, ENDS)
  }
}

/** `Ph\.D\.`. */
function protectDegrees(stops: MarkedStops): void {
  for (const at of stops.places) {
    if (!stops.isCapital(at + 1) || !stops.text.startsWith('Ph.D.', at - 2)) continue
    if (!stops.isOpen(at) || !stops.isOpen(at + 2)) continue
    for (const place of [at, at + 2]) stops.mark(place, PROTECTED)
  }
}

/** A letter between white space, which becomes a blank, and a blank. */
function protectInitialsApart(stops: MarkedStops): void {
  let end = 0
  for (const at of stops.places) {
    if (stops.codes[at + 1] !== BLANK || !stops.isOpen(at)) continue
    // The white space may be what ended the initial before: that one is taken, then.
    if (at - 2 < end || !stops.isLetter(at - 1) || !isSpaceCode(stops.codes[at - 2]!)) continue
    stops.setBlank(at - 2)
    stops.mark(at, PROTECTED)
    end = at + 2
  }
}

/** `[A-Z]\.[A-Z]\.` before a word that begins a sentence. */
function endAcronyms(stops: MarkedStops): void {
  for (const at of stops.places) {
    if (!stops.isCapital(at - 1) || !stops.isCapital(at - 3) || stops.codes[at + 1] !== BLANK) continue
    if (stops.isOpen(at) && stops.isOpen(at - 2) && starterEnd(stops.text, at + 1) > 0) stops.mark(at, ENDS)
  }
}

function protectTriples(stops: MarkedStops): void {
  protectAcronyms(stops, 3)
}

function protectPairs(stops: MarkedStops): void {
  protectAcronyms(stops, 2)
}

/** `([A-Za-z])\.` several times in a row. */
function protectAcronyms(stops: MarkedStops, letters: number): void {
  let end = 0
  for (const first of stops.places) {
    if (first - 1 < end) continue
    let at = first
    while (at < first + 2 * letters && stops.isOpen(at) && stops.isLetter(at - 1)) at += 2
    if (at < first + 2 * letters) continue
    for (at = first; at < first + 2 * letters; at += 2) stops.mark(at, PROTECTED)
    end = at - 1
  }
}

/** ` (Inc|Ltd|Jr|Sr|Co)\.`: it ends a sentence where the next word begins one. */
function endSuffixes(stops: MarkedStops): void {
  let end = 0
  for (const at of stops.places) {
    const suffix = SUFFIX_ENDS[stops.codes[at - 1]!] === 1 ? endsWithAny(stops.text, SUFFIXES, at) : undefined
    if (suffix === undefined) continue
    const begin = at - suffix.length - 1
    if (stops.codes[begin] !== BLANK) continue
    const starter = begin < end ? 0 : starterEnd(stops.text, at + 1)
    stops.mark(at, starter > 0 ? GONE : PROTECTED)
    if (starter > 0) end = starter
  }
}

/** A letter behind a blank. */
function protectInitials(stops: MarkedStops): void {
  for (const at of stops.places) {
    if (stops.isOpen(at) && stops.isLetter(at - 1) && stops.codes[at - 2] === BLANK) stops.mark(at, PROTECTED)
  }
}

function endsWithAny(text: string, words: readonly string[], end: number): string | undefined {
  return words.find((word) => text.endsWith(word, end))
}

/** A table of ASCII: 1 at the codes of `characters`. */
function codesOf(characters: string): Uint8Array {
  const table = new Uint8Array(128)
  for (const character of characters) table[character.charCodeAt(0)] = 1
  return table
}

/** The end of a word that begins a sentence, with the blank before it, or 0. */
function starterEnd(text: string, at: number): number {
  STARTER.lastIndex = at
  return STARTER.test(text) ? STARTER.lastIndex : 0
}
