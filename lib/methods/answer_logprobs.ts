// Log-probabilities of whole answers under a model, without gradients: what preference tuning compares with, and how
// pairs are judged.
import { throwIfAborted } from '../base/errors.js'
import { planPacking } from '../data/pack.js'
import type { EncodedPairs } from '../data/pairs.js'
import type { CausalLm } from '../models/index.js'
import { scope } from '../tensor/index.js'
import { pairLogprobs } from './dpo.js'

export interface AnswerOptions {
  /** Tokens that go through the model at once. */
  tokens: number
  signal?: AbortSignal
  /** Pairs done so far. */
  onProgress?: (done: number) => void
}

/** Summed log-probability of each answer, by example: 2i the chosen, 2i+1 the rejected one of pair i. The sums are
 *  those that the loss makes, bit for bit, whichever pairs share a row. */
export async function answerLogprobs(
  policy: CausalLm,
  pairs: EncodedPairs,
  { tokens, signal, onProgress }: AnswerOptions,
): Promise<Float64Array> {
  const sums = new Float64Array(2 * pairs.count)
  const usable = Int32Array.from({ length: pairs.count }, (_, i) => i).filter((pair) => pairs.lengthOf(pair) > 0)
  const plan = planPacking(
    usable.map((pair) => Math.min(pairs.lengthOf(pair), tokens)),
    tokens,
    'bfd',
  )
  plan.example.forEach((position, i) => {
    plan.example[i] = usable[position]!
  })
  let done = 0
  for (let row = 0; row < plan.rowCount; row++) {
    throwIfAborted(signal)
    const micro = pairs.pack(plan, row)
    using logp = scope(() => pairLogprobs(policy, micro))
    const values = await logp.read()
    for (let side = 0; side < 2 * micro.pairs.length; side++) {
      const [begin, end] = [micro.spans[3 * side]!, micro.spans[3 * side + 1]!]
      let sum = 0
      for (let n = begin; n < end; n++) sum += values[n]!
      sums[2 * micro.pairs[side >> 1]! + (side & 1)] = sum
    }
    done += micro.pairs.length
    onProgress?.(done)
  }
  return sums
}
