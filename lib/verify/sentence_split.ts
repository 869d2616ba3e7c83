// Two ways to find sentences, for instructions that count them. `splitSentences` is the rule list that IFEval's newer
// instructions use; `countSentences` follows Punkt (Kiss & Strunk 2006), which its older ones use: a full stop ends a
// sentence unless its word is a known abbreviation or an initial, or the next word shows that the sentence goes on.
// Punkt learned its words from newspapers; here they are three short lists.

import { isSpaceAt, SPACE_CLASS, strip } from './python_text.js'
import { ReadingMemo } from './reading_memo.js'

// Private-use characters stand for a protected full stop and for an end, as no text has them.
const DOT = '\ue000'
const END = '\ue001'
const END_CODE = 0xe001
const STARTERS =
  `(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He${SPACE_CLASS}|She${SPACE_CLASS}|It${SPACE_CLASS}|They${SPACE_CLASS}` +
  `|Their${SPACE_CLASS}|Our${SPACE_CLASS}|We${SPACE_CLASS}|But${SPACE_CLASS}|However${SPACE_CLASS}` +
  `|That${SPACE_CLASS}|This${SPACE_CLASS}|Wherever)`
const SUFFIXES = '(Inc|Ltd|Jr|Sr|Co)'

/** A change to a text, and what a text must have for it to be tried at all. */
type Rule = [change: (text: string) => string, needs: RegExp]

const pattern =
  (regExp: RegExp, replacement: string | ((match: string) => string)): Rule[0] =>
  (text) =>
    text.replace(regExp, replacement as string)
const literal =
  (part: string, replacement: string): Rule[0] =>
  (text) =>
    text.replaceAll(part, replacement)
const STOP = /\./
const STOP_AND_LETTER = /\.[A-Za-z]/
const STOP_AND_BLANK = /\. /

// Every pattern has a bounded length, but the runs of dots, which begin at their first dot alone: linear time.
const RULES: Rule[] = [
  [pattern(/(Mr|St|Mrs|Ms|Dr)\./g, `$1${DOT}`), STOP],
  [pattern(/\.(com|net|org|io|gov|edu|me)/g, `${DOT}$1`), STOP_AND_LETTER],
  [pattern(/([0-9])\.([0-9])/g, `$1${DOT}$2`), /\.[0-9]/],
  [pattern(/\.{2,}/g, (dots) => DOT.repeat(dots.length) + END), /\.\./],
  [pattern(/Ph\.D\./g, `Ph${DOT}D${DOT}`), STOP_AND_LETTER],
  [withInitialsApart, STOP_AND_BLANK],
  [pattern(new RegExp(`([A-Z]\\.[A-Z]\\.(?:[A-Z]\\.)?) ${STARTERS}`, 'g'), `$1${END} $2`), STOP_AND_LETTER],
  [pattern(/([A-Za-z])\.([A-Za-z])\.([A-Za-z])\./g, `$1${DOT}$2${DOT}$3${DOT}`), STOP_AND_LETTER],
  [pattern(/([A-Za-z])\.([A-Za-z])\./g, `$1${DOT}$2${DOT}`), STOP_AND_LETTER],
  [pattern(new RegExp(` ${SUFFIXES}\\. ${STARTERS}`, 'g'), ` $1${END} $2`), STOP_AND_BLANK],
  [pattern(new RegExp(` ${SUFFIXES}\\.`, 'g'), ` $1${DOT}`), STOP],
  [withInitials, STOP],
  [literal('.\u201d', '\u201d.'), STOP],
  [literal('."', '".'), STOP],
  [literal('!"', '"!'), /!/],
  [literal('?"', '"?'), /\?/],
]

/** Protects the full stop of a letter between white space and a blank; both become blanks. */
function withInitialsApart(text: string): string {
  let result = ''
  let begin = 0
  for (let at = text.indexOf('. '); at >= 0; at = text.indexOf('. ', at + 1)) {
    // The white space may be what ended the initial before: that one is taken, then.
    if (at - 2 < begin || !isLetterAt(text, at - 1) || !isSpaceAt(text, at - 2)) continue
    result += `${text.slice(begin, at - 2)} ${text[at - 1]}${DOT} `
    begin = at + 2
  }
  return result + text.slice(begin)
}

/** Protects the full stop of a letter behind a blank. */
function withInitials(text: string): string {
  let result = ''
  let begin = 0
  for (let at = text.indexOf('.'); at >= 0; at = text.indexOf('.', at + 1)) {
    if (at - 2 < begin || !isLetterAt(text, at - 1) || text[at - 2] !== ' ') continue
    result += text.slice(begin, at) + DOT
    begin = at + 1
  }
  return result + text.slice(begin)
}

function isLetterAt(text: string, at: number): boolean {
  const letter = text.charCodeAt(at) | 0x20
  return letter >= 97 && letter <= 122
}

/** The sentences of a text by the rules of IFEvalG, without white space around them. An empty last one is dropped. */
export function splitSentences(text: string): string[] {
  let marked = ` ${text}  `.replace(/\n/g, ' ')
  for (const [change, needs] of RULES) if (needs.test(marked)) marked = change(marked)
  const sentences = endedPieces(marked)
  if (sentences.at(-1) === '') sentences.pop()
  return sentences
}

/** What lies between the marks of an end, and ends with `.`, `?` or `!`. */
function endedPieces(marked: string): string[] {
  const hasDots = marked.includes(DOT)
  const pieceOf = (begin: number, end: number) => {
    const piece = strip(marked.slice(begin, end))
    return hasDots ? piece.replaceAll(DOT, '.') : piece
  }
  const pieces: string[] = []
  let begin = 0
  for (let at = 0; at < marked.length; at++) {
    const code = marked.charCodeAt(at)
    if (code !== END_CODE && !isStop(code)) continue
    pieces.push(pieceOf(begin, code === END_CODE ? at : at + 1))
    begin = at + 1
  }
  pieces.push(pieceOf(begin, marked.length))
  return pieces
}

function isStop(code: number): boolean {
  return code === 0x2e || code === 0x3f || code === 0x21
}

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

/** Number of sentences by Punkt's decisions with English parameters. Linear time. */
export function countSentences(text: string, memo = new ReadingMemo()): number {
  return sentenceSlices(text, memo).length
}

/** The sentences that `countSentences` counts. */
export function punktSentences(text: string, memo = new ReadingMemo()): string[] {
  return sentenceSlices(text, memo).map(([begin, end]) => text.slice(begin, end))
}

/** Begin and end of each sentence; closing quotes and brackets after a stop go with the sentence that it ends. */
function sentenceSlices(text: string, memo: ReadingMemo): [begin: number, end: number][] {
  const slices: [number, number][] = []
  let begin = 0
  for (const { end, next } of sentenceBreaks(text, memo.breaks)) {
    const closed = closersEnd(text, next)
    if (closed > next) slices.push([begin, closed])
    else if (begin < end) slices.push([begin, end])
    begin = closed
    while (closed > next && isSpaceAt(text, begin)) begin++
  }
  let end = text.length
  while (end > 0 && isSpaceAt(text, end - 1)) end--
  if (begin < end) slices.push([begin, end])
  return slices
}

/** The end of closing quotes and brackets at `begin` that stand alone, or `begin`. */
function closersEnd(text: string, begin: number): number {
  let at = begin
  while (CLOSERS[text.charCodeAt(at)]) at++
  return at >= text.length || isSpaceAt(text, at) || text.startsWith('--', at) ? at : begin
}

interface Break {
  /** After the stop. */
  end: number
  /** Where the next sentence begins. */
  next: number
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

function sentenceBreaks(text: string, known: Map<string, boolean>): Break[] {
  const breaks: Break[] = []
  let previous: Candidate | undefined
  const decide = ({ at, wordBegin, nextBegin, nextEnd, isApart }: Candidate) => {
    const context = text.slice(wordBegin, isApart ? nextEnd : at + 2)
    let isBreak = known.get(context)
    if (isBreak === undefined) {
      isBreak = hasBreak(tokensOf(context))
      known.set(context, isBreak)
    }
    if (isBreak) breaks.push({ end: at + 1, next: isApart ? nextBegin : at + 1 })
  }
  for (let at = 0; at < text.length; at++) {
    if (!isStop(text.charCodeAt(at))) continue
    const candidate = candidateAt(text, at, previous)
    if (candidate === undefined) continue
    if (previous !== undefined && previous.at <= candidate.wordBegin) decide(previous)
    previous = candidate
  }
  if (previous !== undefined) decide(previous)
  return breaks
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
