// Verifier for word problems whose answer ends in the line `#### N`. Digits are compared as text, not as numbers, so
// that a completion of a million digits costs linear time and can never round to the right value.

import { CaravanError } from '../base/errors.js'
import { labelFault, type Verifier } from './verifier.js'

/** The outcome of verifying one answer: 1 accepted, 0 refused, and why in one clause. */
export interface Verdict {
  score: 0 | 1
  reason: string
}

export interface ProblemTruth {
  /** The right result: a safe integer. */
  answer: number
}

const MARKER = '#### '

/**
 * The integer of the last line `#### -?\d+` as canonical text (no leading zeros, no minus zero), or undefined when the
 * text, white space at its end apart, does not end in such a line. Linear time.
 */
export function finalAnswer(text: string): string | undefined {
  const trimmed = text.trimEnd()
  const line = trimmed.slice(trimmed.lastIndexOf('\n') + 1)
  if (!line.startsWith(MARKER)) return undefined
  const negative = line[MARKER.length] === '-'
  const first = MARKER.length + (negative ? 1 : 0)
  if (first === line.length) return undefined
  let significant = -1
  for (let i = first; i < line.length; i++) {
    const digit = line.charCodeAt(i) - 48
    if (digit < 0 || digit > 9) return undefined
    if (digit > 0 && significant < 0) significant = i
  }
  if (significant < 0) return '0'
  return (negative ? '-' : '') + line.slice(significant)
}

/**
 * Accepts an answer that ended by itself and whose last line is `#### N` with N equal to `truth.answer`. `ended` is
 * false when generation stopped at the token cap. Throws ERR_DATA when the truth is not a safe integer.
 */
export function verifyProblemAnswer(answer: string, truth: ProblemTruth, ended = true): Verdict {
  if (!Number.isSafeInteger(truth.answer)) {
    throw new CaravanError('ERR_DATA', `problem truth: answer must be a safe integer; got ${String(truth.answer)}`, {
      details: { answer: truth.answer },
      hint: 'Give each problem row an integer answer.',
    })
  }
  if (!ended) return { score: 0, reason: 'the answer did not end within its token limit' }
  const given = finalAnswer(answer)
  if (given === undefined) return { score: 0, reason: 'the last line is not "#### N" with an integer N' }
  const expected = String(truth.answer === 0 ? 0 : truth.answer)
  if (given !== expected) return { score: 0, reason: `expected ${expected}, got ${excerpt(given)}` }
  return { score: 1, reason: `the answer is ${expected}` }
}

function excerpt(digits: string): string {
  return digits.length <= 24 ? digits : `${digits.slice(0, 24)}... (${digits.length} characters)`
}

/** The verifier by name: the label is the integer. */
export const problemAnswer: Verifier = {
  name: 'problem_answer',
  summary: 'the last line is "#### N" with the integer of the label',
  verify({ completion, groundTruth }) {
    if (typeof groundTruth !== 'number') throw labelFault('problem_answer', 'ground_truth', 'an integer', groundTruth)
    return verifyProblemAnswer(completion, { answer: groundTruth })
  },
}
