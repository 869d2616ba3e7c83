// What every verifier is: a pure function from a completion and the truth of its row to a score. Faults of the data are
// thrown (ERR_DATA), for a wrong label must not train a model; nothing that a model writes may throw.

import { CaravanError, type ErrorCode } from '../base/errors.js'

export interface VerifyInput {
  /** What the model wrote, without the prompt. */
  completion: string
  /** The text that the model answered. Few verifiers look at it. */
  prompt?: string
  /** The label of the row; its form is the verifier's own. */
  groundTruth?: unknown
  /** Tokens of the completion, for verifiers of length. */
  tokenCount?: number
  /** Further columns of the row (`instruction_id_list`, `kwargs`, ...). */
  row?: Readonly<Record<string, unknown>>
}

export interface Verdict {
  /** 0 (refused) to 1 (accepted). */
  score: number
  /** Why, in one clause. */
  reason: string
  /** What was read out of the completion, where the verifier extracts an answer. */
  extracted?: string
  /** Per instruction, for verifiers of instructions: judged as written, and at its most favourable reading. */
  strict?: boolean[]
  loose?: boolean[]
}

export interface Verifier {
  /** How rows and command lines call it: snake_case. */
  readonly name: string
  /** One line for a list of verifiers. */
  readonly summary: string
  /** Reads what the verifier needs, once, before its first verdict; it may take longer than a verdict. */
  prepare?(): void
  /** Linear time in the completion. Throws ERR_DATA for a label or column that is not what this verifier needs. */
  verify(input: VerifyInput): Verdict
}

/** Longest completion that is judged, in UTF-16 units: about twice what 32 768 tokens of English are. */
export const MAX_COMPLETION_LENGTH = 2 ** 18

const PASSED_ON = new Set<ErrorCode>(['ERR_DATA', 'ERR_FILE'])

/**
 * Runs `verifier` so that a fault in its code costs the row its reward and not the run its life: whatever it throws
 * becomes score 0 with the reason, a score outside [0, 1] likewise. ERR_DATA, the fault of a row, and ERR_FILE, that of
 * an incomplete installation, are passed on: they would be rewards of 0 without end.
 */
export function guardedVerify(verifier: Verifier, input: VerifyInput): Verdict {
  if (typeof input.completion !== 'string') {
    throw labelFault(verifier.name, 'completion', 'text', input.completion)
  }
  if (input.completion.length > MAX_COMPLETION_LENGTH) {
    return refused(
      `the completion has ${input.completion.length} characters; at most ${MAX_COMPLETION_LENGTH} are read`,
    )
  }
  try {
    const verdict = verifier.verify(input)
    if (verdict.score >= 0 && verdict.score <= 1) return verdict
    return refused(`${verifier.name} gave the score ${verdict.score}, which is not within [0, 1]`)
  } catch (error) {
    if (error instanceof CaravanError && PASSED_ON.has(error.code)) throw error
    return refused(`${verifier.name} failed: ${error instanceof Error ? error.message : String(error)}`)
  }
}

export function accepted(reason: string, extracted?: string): Verdict {
  return extracted === undefined ? { score: 1, reason } : { score: 1, reason, extracted }
}

export function refused(reason: string, extracted?: string): Verdict {
  return extracted === undefined ? { score: 0, reason } : { score: 0, reason, extracted }
}

/** ERR_DATA for a column of a row that a verifier cannot use. */
export function labelFault(verifier: string, field: string, wanted: string, got: unknown): CaravanError {
  const shown = got === undefined ? 'nothing' : excerpt(JSON.stringify(got) ?? String(got), 60)
  return new CaravanError('ERR_DATA', `${verifier}: \`${field}\` must be ${wanted}; got ${shown}`, {
    details: { verifier, field },
    hint: 'correct the row, or choose the verifier that its label is for',
  })
}

/** The label as text; numbers are written out. ERR_DATA for anything else. */
export function truthText(verifier: string, groundTruth: unknown): string {
  if (typeof groundTruth === 'string') return groundTruth
  if (typeof groundTruth === 'number' && Number.isFinite(groundTruth)) return String(groundTruth)
  throw labelFault(verifier, 'ground_truth', 'text or a number', groundTruth)
}

/** The label as a list of texts; one text is a list of one. ERR_DATA for anything else and for an empty list. */
export function truthTexts(verifier: string, groundTruth: unknown): string[] {
  if (!Array.isArray(groundTruth)) return [truthText(verifier, groundTruth)]
  if (groundTruth.length === 0) throw labelFault(verifier, 'ground_truth', 'text, or a list of texts', groundTruth)
  return groundTruth.map((one: unknown) => truthText(verifier, one))
}

/** The beginning of a text, for messages. */
export function excerpt(text: string, length = 40): string {
  return text.length <= length ? text : `${text.slice(0, length)}... (${text.length} characters)`
}
