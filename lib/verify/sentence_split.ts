// Two ways to find sentences, for instructions that count them. `splitSentences` is the rule list that IFEval's newer
// instructions use; `countSentences` follows Punkt (Kiss & Strunk 2006), which its older ones use: a full stop ends a
// sentence unless its word is a known abbreviation or an initial, or the next word shows that the sentence goes on.
// Punkt learned its words from newspapers; here they are three short lists.

import { isSpace, SPACE_CLASS, strip } from './python_text.js'

// Private-use characters stand for a protected full stop and for an end, as no text has them.
const DOT = '\ue000'
const END = '\ue001'
const STARTERS =
  `(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He${SPACE_CLASS}|She${SPACE_CLASS}|It${SPACE_CLASS}|They${SPACE_CLASS}` +
  `|Their${SPACE_CLASS}|Our${SPACE_CLASS}|We${SPACE_CLASS}|But${SPACE_CLASS}|However${SPACE_CLASS}` +
  `|That${SPACE_CLASS}|This${SPACE_CLASS}|Wherever)`
const SUFFIXES = '(Inc|Ltd|Jr|Sr|Co)'

// Every pattern has a bounded length, but the runs of dots, which begin at their first dot alone: linear time.
const RULES: [pattern: RegExp, replacement: string | ((match: string) => string)][] = [
  [/(Mr|St|Mrs|Ms|Dr)\./g, `$1${DOT}`],
  [/\.(com|net|org|io|gov|edu|me)/g, `${DOT}$1`],
  [/([0-9])\.([0-9])/g, `$1${DOT}$2`],
  [/\.{2,}/g, (dots) => DOT.repeat(dots.length) + END],
  [/Ph\.D\./g, `Ph${DOT}D${DOT}`],
  [new RegExp(`${SPACE_CLASS}([A-Za-z])\\. `, 'g'), ` $1${DOT} `],
  [new RegExp(`([A-Z]\\.[A-Z]\\.(?:[A-Z]\\.)?) ${STARTERS}`, 'g'), `$1${END} $2`],
  [/([A-Za-z])\.([A-Za-z])\.([A-Za-z])\./g, `$1${DOT}$2${DOT}$3${DOT}`],
  [/([A-Za-z])\.([A-Za-z])\./g, `$1${DOT}$2${DOT}`],
  [new RegExp(` ${SUFFIXES}\\. ${STARTERS}`, 'g'), ` $1${END} $2`],
  [new RegExp(` ${SUFFIXES}\\.`, 'g'), ` $1${DOT}`],
  [/ ([A-Za-z])\./g, ` $1${DOT}`],
  [/\.\u201d/g, '\u201d.'],
  [/\."/g, '".'],
  [/!"/g, '"!'],
  [/\?"/g, '"?'],
  [/[.?!]/g, `$&${END}`],
]

/** The sentences of a text by the rules of IFEvalG, without white space around them. An empty last one is dropped. */
export function splitSentences(text: string): string[] {
  let marked = ` ${text}  `.replace(/\n/g, ' ')
  for (const [pattern, replacement] of RULES) marked = marked.replace(pattern, replacement as string)
  const sentences = marked.replaceAll(DOT, '.').split(END).map(strip)
  if (sentences.at(-1) === '') sentences.pop()
  return sentences
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

const STOPS = '.?!'
const NON_WORD = new Set(')";}]*:@\'({[?!')
const NOT_AT_START = new Set('("`{[:;&#*@)}]-,')
const CLOSERS = new Set('"\')]}')

/** Number of sentences by Punkt's decisions with English parameters. Linear time. */
export function countSentences(text: string): number {
  return sentenceSlices(text).length
}

/** The sentences that `countSentences` counts. */
export function punktSentences(text: string): string[] {
  return sentenceSlices(text).map(([begin, end]) => text.slice(begin, end))
}

/** Begin and end of each sentence; closing quotes and brackets after a stop go with the sentence that it ends. */
function sentenceSlices(text: string): [begin: number, end: number][] {
  const slices: [number, number][] = []
  let begin = 0
  for (const { end, next } of sentenceBreaks(text)) {
    const closed = closersEnd(text, next)
    if (closed > next) slices.push([begin, closed])
    else if (begin < end) slices.push([begin, end])
    begin = closed
    while (closed > next && isSpace(text[begin])) begin++
  }
  let end = text.length
  while (end > 0 && isSpace(text[end - 1])) end--
  if (begin < end) slices.push([begin, end])
  return slices
}

/** The end of closing quotes and brackets at `begin` that stand alone, or `begin`. */
function closersEnd(text: string, begin: number): number {
  let at = begin
  while (at < text.length && CLOSERS.has(text[at]!)) at++
  return at === text.length || isSpace(text[at]) || text.startsWith('--', at) ? at : begin
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

function sentenceBreaks(text: string): Break[] {
  const breaks: Break[] = []
  let previous: Candidate | undefined
  const decide = (candidate: Candidate) => {
    const { at, wordBegin, nextBegin, nextEnd, isApart } = candidate
    const context = text.slice(wordBegin, isApart ? nextEnd : at + 2)
    if (hasBreak(tokensOf(context))) breaks.push({ end: at + 1, next: isApart ? nextBegin : at + 1 })
  }
  for (let at = 0; at < text.length; at++) {
    if (!STOPS.includes(text[at]!)) continue
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
  const isApart = isSpace(text[nextBegin])
  if (!isApart && !NON_WORD.has(text[nextBegin] ?? '')) return undefined
  while (isApart && isSpace(text[nextBegin])) nextBegin++
  if (nextBegin >= text.length) return undefined
  let nextEnd = nextBegin + 1
  while (isApart && nextEnd < text.length && !isSpace(text[nextEnd])) nextEnd++
  const floor = previous?.at ?? 0
  let wordBegin = at
  while (wordBegin > floor && !isAsciiSpace(text[wordBegin - 1]!)) wordBegin--
  // No white space since the last candidate: its word goes on.
  if (wordBegin - 1 <= floor) wordBegin = previous?.wordBegin ?? 0
  return { at, wordBegin, nextBegin, nextEnd, isApart }
}

function isAsciiSpace(character: string): boolean {
  return ' \t\n\r\v\f'.includes(character)
}

/** Punkt's tokens: words without the punctuation around them, but with a final full stop. */
function tokensOf(context: string): string[] {
  const tokens: string[] = []
  for (let at = 0; at < context.length; ) {
    if (isSpace(context[at])) {
      at++
      continue
    }
    const run = multiCharacterEnd(context, at)
    const end = run > at ? run : NOT_AT_START.has(context[at]!) ? at + 1 : wordEnd(context, at)
    tokens.push(context.slice(at, end))
    at = end
  }
  return tokens
}

function wordEnd(context: string, begin: number): number {
  let at = begin + 1
  while (at < context.length && !endsWord(context, at)) at++
  return at
}

function endsWord(context: string, at: number): boolean {
  const character = context[at]!
  if (isSpace(character) || NON_WORD.has(character) || multiCharacterEnd(context, at) > at) return true
  if (character !== ',') return false
  const next = context[at + 1]
  return next === undefined || isSpace(next) || NON_WORD.has(next) || multiCharacterEnd(context, at + 1) > at + 1
}

/** The end of `--`, `...` or `. . .` at a place, or the place itself. */
function multiCharacterEnd(context: string, at: number): number {
  const character = context[at]
  if (character !== '-' && character !== '.') return at
  if (context[at + 1] === character) {
    let end = at + 2
    while (context[end] === character) end++
    return end
  }
  let end = at
  while (character === '.' && context[end] === '.' && isSpace(context[end + 1])) end += 2
  return end - at >= 4 && context[end] === '.' ? end + 1 : at
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
function hasBreak(tokens: readonly string[]): boolean {
  for (let i = 0; i + 1 < tokens.length; i++) if (breaksBefore(tokens[i]!, tokens[i + 1]!)) return true
  return false
}

function breaksBefore(token: string, next: string): boolean {
  const ending = endingOf(token)
  if (!token.endsWith('.')) return ending === 'break'
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
