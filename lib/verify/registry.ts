// All verifiers by name. A new one is a file of its own and a line here; those of users are named by their paths
// (verifier_module.ts).

import { CaravanError, nearestName } from '../base/errors.js'
import { gsm8k, publishedGsm8k } from './gsm8k.js'
import { ifeval } from './ifeval.js'
import { ifevalPaper } from './ifeval_paper.js'
import { instructionConstraints } from './instruction_constraints.js'
import { math, strictMath } from './math.js'
import { multipleChoice } from './multiple_choice.js'
import { problemAnswer } from './problem_answer.js'
import { stringF1, stringMatch } from './string_match.js'
import { thinkFormat } from './think_format.js'
import { maxLength, upToMaxLength } from './token_length.js'
import type { Verifier } from './verifier.js'

export const VERIFIERS: readonly Verifier[] = [
  gsm8k,
  publishedGsm8k('v1'),
  publishedGsm8k('v2'),
  math,
  strictMath,
  ifeval,
  ifevalPaper,
  stringF1,
  stringMatch,
  multipleChoice,
  thinkFormat,
  maxLength,
  upToMaxLength,
  problemAnswer,
  instructionConstraints,
]

/** The verifier of this name. ERR_CONFIG, with the nearest name, where there is none. */
export function findVerifier(name: string): Verifier {
  const found = VERIFIERS.find((verifier) => verifier.name === name)
  if (found !== undefined) return found
  const names = VERIFIERS.map((verifier) => verifier.name)
  const near = nearestName(name, names)
  throw new CaravanError('ERR_CONFIG', `there is no verifier '${name}'; known: ${names.join(', ')}`, {
    details: { verifier: name, known: names },
    hint: near === undefined ? undefined : `did you mean '${near}'?`,
  })
}
