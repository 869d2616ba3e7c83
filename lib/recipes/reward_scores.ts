// Scores of pairs under a reward model, without gradients.
import { throwIfAborted } from '../base/errors.js'
import { planPacking } from '../data/pack.js'
import type { EncodedPairs } from '../data/pairs.js'
import { pairRewards } from '../methods/reward_model.js'
import type { RewardModel } from '../models/index.js'
import { scope } from '../tensor/index.js'

/** Scores of all answers, by example. */
export async function pairScores(
  model: RewardModel,
  pairs: EncodedPairs,
  { tokens, signal }: { tokens: number; signal?: AbortSignal },
): Promise<Float32Array> {
  const scores = new Float32Array(2 * pairs.count)
  const lengths = Int32Array.from({ length: pairs.count }, (_, pair) => Math.min(pairs.lengthOf(pair), tokens))
  const plan = planPacking(lengths, tokens, 'bfd')
  for (let row = 0; row < plan.rowCount; row++) {
    throwIfAborted(signal)
    const micro = pairs.pack(plan, row)
    using rewards = scope(() => pairRewards(model, micro))
    const values = await rewards.read()
    for (const [p, pair] of micro.pairs.entries()) scores.set([values[2 * p]!, values[2 * p + 1]!], 2 * pair)
  }
  return scores
}
