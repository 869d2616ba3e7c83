// Rewards for length. The published rule for a target length can fall below 0 for completions far from it; here 0 is
// the least, as for every verifier.

import { labelFault, type Verdict, type Verifier, type VerifyInput } from './verifier.js'

/** Difference from the target at which the score reaches 0 (the published default). */
const WIDTH = 32_768

/** Tokens of the completion where the row tells them, else its words: an estimate that no tokenizer is needed for. */
function lengthOf({ completion, tokenCount }: VerifyInput): { length: number; unit: string } {
  if (tokenCount !== undefined) return { length: tokenCount, unit: 'tokens' }
  let words = 0
  for (const _ of completion.matchAll(/\S+/g)) words++
  return { length: words, unit: 'words' }
}

function target(name: string, groundTruth: unknown): number {
  const value = typeof groundTruth === 'string' && groundTruth.trim() !== '' ? Number(groundTruth) : groundTruth
  if (Number.isSafeInteger(value) && (value as number) > 0) return value as number
  throw labelFault(name, 'ground_truth', 'a number of tokens', groundTruth)
}

/** 1 at the target length of the label, falling with the distance from it. */
export const maxLength: Verifier = {
  name: 'max_length',
  summary: 'how near the length is to that of the label: 1 - |tokens - target| / 32768, at least 0',
  verify(input: VerifyInput): Verdict {
    const wanted = target('max_length', input.groundTruth)
    const { length, unit } = lengthOf(input)
    const score = Math.max(0, 1 - Math.abs(length - wanted) / WIDTH)
    return { score, reason: `${length} ${unit}, the target is ${wanted}` }
  },
}

/** 1 up to the length of the label, falling in proportion beyond it. */
export const upToMaxLength: Verifier = {
  name: 'up_to_max_length',
  summary: '1 up to the length of the label, then 1 - excess / label, at least 0',
  verify(input: VerifyInput): Verdict {
    const most = target('up_to_max_length', input.groundTruth)
    const { length, unit } = lengthOf(input)
    return { score: Math.max(0, 1 - Math.max(0, length - most) / most), reason: `${length} ${unit}, at most ${most}` }
  },
}
