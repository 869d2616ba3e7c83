// What is logged about a rollout: rewards, lengths, and how far the policy has gone from its reference. Names follow
// open-instruct and TRL.
import { deviationOf, klEstimate, meanOf } from '../losses/advantage.js'
import type { PolicySample } from './policy_batch.js'
import type { Rollout, RolloutPrompt } from './rollout.js'

export function rolloutFacts<P extends RolloutPrompt>({ groups }: Rollout<P>): Record<string, number> {
  const answers = groups.flatMap((group) => group.answers)
  const rewards = answers.map(({ reward }) => reward)
  const lengths = answers.map(({ tokens }) => tokens.length)
  const tokens = Math.max(
    1,
    lengths.reduce((sum, length) => sum + length, 0),
  )
  const surprise = answers.reduce((sum, { logprobs }) => sum - logprobs.reduce((total, one) => total + one, 0), 0)
  return {
    'objective/reward': meanOf(rewards),
    'objective/reward_std': deviationOf(rewards),
    'objective/verified': meanOf(answers.map(({ score }) => score)),
    // Of the sampled tokens: an unbiased estimate of the entropy per token.
    'objective/entropy': surprise / tokens,
    'rollout/answers': answers.length,
    'rollout/length': meanOf(lengths),
    'rollout/ended': meanOf(answers.map(({ finishReason }) => Number(finishReason === 'stop'))),
  }
}

/** Divergence from the reference, nats per answer, by the estimators k1 and k3; nothing without a reference. */
export function divergenceFacts(samples: readonly PolicySample[]): Record<string, number> {
  if (samples.some(({ reference }) => !reference)) return {}
  const perAnswer = (kind: 'k1' | 'k3') =>
    meanOf(
      samples.map(({ old, reference }) =>
        old.reduce((sum, logprob, t) => sum + klEstimate(logprob, reference![t]!, kind), 0),
      ),
    )
  return { 'objective/kl': perAnswer('k1'), 'objective/kl3': perAnswer('k3') }
}
