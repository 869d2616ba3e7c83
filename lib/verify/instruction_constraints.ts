// Verifier for "tell me about X" prompts with constraints on the form of the answer. It judges form, not truth: a wrong
// fact about the right entity passes. Every check is one or two linear scans, so hostile text costs no more than prose.

import { CaravanError, nearestName } from '../base/errors.js'
import type { Verdict } from './problem_answer.js'
import { labelFault, type Verifier } from './verifier.js'

export type InstructionConstraint =
  | { kind: 'caps' } //                                  no lower-case letter
  | { kind: 'lower' } //                                 no upper-case letter
  | { kind: 'nocomma' } //                               no comma
  | { kind: 'end'; phrase: string } //                   last words
  | { kind: 'start'; phrase: string } //                 first words
  | { kind: 'bullets'; count: number } //                exactly `count` lines that start with "- " or "* "
  | { kind: 'kw'; word: string; count: number } //       `word` exactly `count` times
  | { kind: 'quote' } //                                 the whole answer in double quotes
  | { kind: 'nsent'; count: number } //                  exactly `count` sentences
  | { kind: 'avoid'; word: string } //                   never `word`
  | { kind: 'title' } //                                 a title in << >> on one line
  | { kind: 'ps' } //                                    a postscript that starts with P.S.

export type ConstraintKind = InstructionConstraint['kind']

export const CONSTRAINT_KINDS: readonly ConstraintKind[] = [
  'caps',
  'lower',
  'nocomma',
  'end',
  'start',
  'bullets',
  'kw',
  'quote',
  'nsent',
  'avoid',
  'title',
  'ps',
]

export interface InstructionTruth {
  /** What the answer must name, in any case. */
  entity: string
  constraints: readonly InstructionConstraint[]
  /** Also refuse an answer that says one sentence twice: the cheapest way to pad an answer for reward. */
  distinctSentences?: boolean
}

export interface ConstraintResult {
  kind: ConstraintKind
  passed: boolean
  reason: string
}

export interface InstructionVerdict extends Verdict {
  /** One result per constraint of the truth, in its order, whether or not the whole answer passes. */
  constraints: ConstraintResult[]
}

const MIN_WORDS = 4
const MIN_CASED_LETTERS = 6
const CASED_LETTER = /[\p{Lu}\p{Ll}]/gu
const WORD_CHARACTER = /[\p{L}\p{N}]/u

/** What several checks look at, computed once per answer. */
class Reading {
  readonly text: string
  readonly lower: string
  #bare: string | undefined
  #sentences: readonly string[] | undefined

  constructor(answer: string) {
    this.text = answer.trim()
    this.lower = this.text.toLowerCase()
  }

  /** In lower case, without white space and double quotes at either end. */
  get bare(): string {
    this.#bare ??= withoutOuter(this.lower)
    return this.#bare
  }

  get sentences(): readonly string[] {
    this.#sentences ??= sentencesOf(this.text)
    return this.#sentences
  }
}

/**
 * Accepts an answer that ended by itself, has at least 4 words, names the entity and meets every constraint. Phrases
 * and words are compared without regard to case. Throws ERR_DATA for an unknown kind or an impossible parameter.
 */
export function verifyInstruction(answer: string, truth: InstructionTruth, ended = true): InstructionVerdict {
  const reading = new Reading(answer)
  const constraints = truth.constraints.map((constraint) => checkConstraint(reading, constraint))
  const refusal = refusalOf(reading, truth, ended) ?? constraints.find((result) => !result.passed)?.reason
  return refusal === undefined
    ? { score: 1, reason: 'every constraint holds', constraints }
    : { score: 0, reason: refusal, constraints }
}

function refusalOf(reading: Reading, truth: InstructionTruth, ended: boolean): string | undefined {
  if (!ended) return 'the answer did not end within its token limit'
  const words = wordsUpTo(reading.lower, MIN_WORDS)
  if (words < MIN_WORDS) return `expected at least ${MIN_WORDS} words, got ${words}`
  if (!lowerContains(reading.lower, truth.entity)) return `the answer does not name ${truth.entity}`
  if (truth.distinctSentences && hasRepeatedSentence(reading.sentences)) return 'the answer says one sentence twice'
  return undefined
}

function checkConstraint(reading: Reading, constraint: InstructionConstraint): ConstraintResult {
  const found = shortcoming(reading, constraint)
  return found === undefined
    ? { kind: constraint.kind, passed: true, reason: 'holds' }
    : { kind: constraint.kind, passed: false, reason: `${constraint.kind}: ${found}` }
}

/** What is wrong with the answer under one constraint, or undefined when the constraint holds. */
function shortcoming(reading: Reading, constraint: InstructionConstraint): string | undefined {
  const { text, lower } = reading
  switch (constraint.kind) {
    case 'caps':
      return caseShortcoming(text, text.toUpperCase(), 'capital')
    case 'lower':
      return caseShortcoming(text, lower, 'lower-case')
    case 'nocomma':
      return text.includes(',') ? 'expected no comma' : undefined
    case 'end':
      return reading.bare.endsWith(bare(required(constraint, 'phrase')))
        ? undefined
        : `expected "${constraint.phrase}" last`
    case 'start':
      return reading.bare.startsWith(bare(required(constraint, 'phrase')))
        ? undefined
        : `expected "${constraint.phrase}" first`
    case 'bullets':
      return countShortcoming(bulletCount(text), constraint, 'bullets')
    case 'kw':
      return countShortcoming(occurrences(lower, required(constraint, 'word')), constraint, `"${constraint.word}"`)
    case 'quote':
      return text.length > 2 && text.startsWith('"') && text.endsWith('"')
        ? undefined
        : 'expected double quotes around all'
    case 'nsent':
      return countShortcoming(reading.sentences.length, constraint, 'sentences')
    case 'avoid':
      return occurrences(lower, required(constraint, 'word')) > 0 ? `expected no "${constraint.word}"` : undefined
    case 'title':
      return text.includes('<<') && text.split('\n').some(hasTitle) ? undefined : 'expected a title in << >>'
    case 'ps':
      return hasPostscript(lower) ? undefined : 'expected a postscript that starts with P.S.'
    default:
      throw unknownKind(constraint)
  }
}

function caseShortcoming(text: string, cased: string, name: string): string | undefined {
  if (text !== cased) return `expected ${name} letters only`
  let letters = 0
  for (const _ of text.matchAll(CASED_LETTER)) if (++letters === MIN_CASED_LETTERS) return undefined
  return `expected at least ${MIN_CASED_LETTERS} ${name} letters, got ${letters}`
}

function countShortcoming(
  found: number,
  constraint: { kind: string; count: number },
  what: string,
): string | undefined {
  if (!Number.isSafeInteger(constraint.count) || constraint.count < 0) {
    throw new CaravanError(
      'ERR_DATA',
      `constraint ${constraint.kind}: count must be a whole number of at least 0; got ${String(constraint.count)}`,
      { details: { constraint }, hint: 'Correct the constraint in the data row.' },
    )
  }
  return found === constraint.count ? undefined : `expected exactly ${constraint.count} of ${what}, got ${found}`
}

function required<K extends 'phrase' | 'word'>(constraint: { kind: string } & Record<K, string>, key: K): string {
  const value: unknown = constraint[key]
  if (typeof value === 'string' && value.trim() !== '') return value
  throw new CaravanError(
    'ERR_DATA',
    `constraint ${constraint.kind}: ${key} must be text; got ${JSON.stringify(value)}`,
    {
      details: { constraint },
      hint: 'Correct the constraint in the data row.',
    },
  )
}

function unknownKind(constraint: never): CaravanError {
  const kind = String((constraint as { kind?: unknown }).kind)
  const near = nearestName(kind, CONSTRAINT_KINDS)
  return new CaravanError('ERR_DATA', `unknown constraint kind "${kind}"; known: ${CONSTRAINT_KINDS.join(', ')}`, {
    details: { constraint },
    hint: near === undefined ? 'Use one of the known kinds.' : `Did you mean "${near}"?`,
  })
}

/** The words of a text in lower case: runs of letters and digits, apostrophes inside a word included. Linear time. */
export function wordsOf(text: string): string[] {
  return wordsOfLower(text.toLowerCase())
}

const INSIDE = '[\\p{L}\\p{N}]'
const WORD = /[\p{L}\p{N}]+(?:['\u2019][\p{L}\p{N}]+)*/gu
const ONE_WORD = /^[\p{L}\p{N}]+(?:['\u2019][\p{L}\p{N}]+)*$/u

function wordsOfLower(lower: string): string[] {
  return lower.match(WORD) ?? []
}

/** How many words there are, counted up to `most`. */
function wordsUpTo(lower: string, most: number): number {
  let count = 0
  for (const _ of lower.matchAll(WORD)) if (++count === most) break
  return count
}

/** Whether `phrase` occurs in `text` as whole words, without regard to case. Linear time. */
export function containsPhrase(text: string, phrase: string): boolean {
  return lowerContains(text.toLowerCase(), phrase)
}

function lowerContains(lower: string, phrase: string): boolean {
  const needle = phrase.toLowerCase()
  if (needle === '') return false
  for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, at + 1)) {
    if (!isWordCharacter(lower[at - 1]) && !isWordCharacter(lower[at + needle.length])) return true
  }
  return false
}

function isWordCharacter(char: string | undefined): boolean {
  return char !== undefined && WORD_CHARACTER.test(char)
}

/** How many words of `lower` are `word`: as many as `wordsOf` has, without making them. */
function occurrences(lower: string, word: string): number {
  const wanted = word.toLowerCase()
  if (!ONE_WORD.test(wanted)) return 0
  const whole = new RegExp(
    `${wanted}(?<!(?:${INSIDE}|${INSIDE}['\u2019])${wanted})(?!${INSIDE}|['\u2019]${INSIDE})`,
    'gu',
  )
  let count = 0
  for (const _ of lower.matchAll(whole)) count++
  return count
}

/**
 * The sentences of a text: they end at a run of `. ! ?` (closing quotes and brackets included) before white space, at
 * a line break and at the end of the text. Pieces without a letter or digit do not count. Linear time.
 */
export function sentencesOf(text: string): string[] {
  const sentences: string[] = []
  let begin = 0
  let stopped = false
  for (let i = 0; i <= text.length; i++) {
    const role = i === text.length ? 'break' : roleOf(text.charCodeAt(i))
    if (role === 'break' || (role === 'space' && stopped)) {
      const piece = text.slice(begin, i)
      if (WORD_CHARACTER.test(piece)) sentences.push(piece.trim())
      begin = i + 1
      stopped = false
    } else if (role === 'stop') stopped = true
    else if (role !== 'closer') stopped = false
  }
  return sentences
}

type Role = 'stop' | 'closer' | 'space' | 'break' | 'other'

const ROLES = new Map<number, Role>([
  ...roles('.!?', 'stop'),
  ...roles('"\')]\u201d\u2019', 'closer'),
  ...roles(' \t\r\u00a0', 'space'),
  ...roles('\n', 'break'),
])

function roles(characters: string, role: Role): [number, Role][] {
  return [...characters].map((character) => [character.charCodeAt(0), role])
}

function roleOf(code: number): Role {
  const isPlain = (code > 63 && code < 93) || (code > 93 && code < 160) // letters: most of any text, no look-up
  return isPlain ? 'other' : (ROLES.get(code) ?? 'other')
}

function hasRepeatedSentence(sentences: readonly string[]): boolean {
  const seen = new Set<string>()
  for (const sentence of sentences) if (seen.size === seen.add(wordsOf(sentence).join(' ')).size) return true
  return false
}

/** Without white space and double quotes at either end. */
function withoutOuter(text: string): string {
  let begin = 0
  let end = text.length
  while (begin < end && isOuter(text[begin]!)) begin++
  while (end > begin && isOuter(text[end - 1]!)) end--
  return text.slice(begin, end)
}

const bare = (text: string) => withoutOuter(text.toLowerCase())

function isOuter(char: string): boolean {
  return '"\u201c\u201d'.includes(char) || char.trim() === ''
}

function bulletCount(text: string): number {
  let count = 0
  for (const line of text.split('\n')) {
    if (!line.includes('- ') && !line.includes('* ')) continue
    const item = line.trim()
    if ((item.startsWith('- ') || item.startsWith('* ')) && WORD_CHARACTER.test(item)) count++
  }
  return count
}

function hasTitle(line: string): boolean {
  const open = line.indexOf('<<')
  const close = line.lastIndexOf('>>')
  return open >= 0 && close > open + 2 && WORD_CHARACTER.test(line.slice(open + 2, close))
}

function hasPostscript(lower: string): boolean {
  const at = lower.lastIndexOf('p.s.')
  if (at < 0 || (at > 0 && lower[at - 1]!.trim() !== '')) return false
  return WORD_CHARACTER.test(lower.slice(at + 4))
}

/** The verifier by name: the label is an InstructionTruth. */
export const instructionConstraints: Verifier = {
  name: 'instruction_constraints',
  summary: 'the answer names an entity and meets every constraint of the label',
  verify({ completion, groundTruth }) {
    const truth = (groundTruth ?? {}) as Partial<InstructionTruth>
    if (typeof truth.entity !== 'string' || !Array.isArray(truth.constraints)) {
      throw labelFault('instruction_constraints', 'ground_truth', 'an entity and a list of constraints', groundTruth)
    }
    const { score, reason } = verifyInstruction(completion, truth as InstructionTruth)
    return { score, reason }
  },
}
