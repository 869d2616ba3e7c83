// From rewards to advantages. Rewards come from verifiers, on the host, and are a few numbers per answer, so this is
// plain f64 arithmetic in one fixed order: the same on every device, and for every way of packing.
import { CaravanError } from '../base/errors.js'
import type { KlKind } from '../ops/index.js'

export interface GaeOptions {
  /** Discount of the next step, in [0, 1]. */
  gamma: number
  /** Weight of longer estimates, in [0, 1]: 0 trusts the values, 1 the rewards. */
  lambda: number
}

/** Generalised advantage estimation (Schulman et al. 2016, eq. 16) for one answer of n steps: d_t = r_t + gamma V_{t+1}
 *  - V_t with V_n = 0, A_t = d_t + gamma lambda A_{t+1}; returns are A + V. */
export function gae(
  { rewards, values }: { rewards: ArrayLike<number>; values: ArrayLike<number> },
  { gamma, lambda }: GaeOptions,
): { advantages: Float64Array; returns: Float64Array } {
  const n = rewards.length
  if (values.length !== n) {
    throw new CaravanError('ERR_SHAPE', `gae: values must have the length of rewards, ${n}; got ${values.length}`)
  }
  const [advantages, returns] = [new Float64Array(n), new Float64Array(n)]
  let [carried, next] = [0, 0]
  for (let t = n - 1; t >= 0; t--) {
    carried = rewards[t]! + gamma * next - values[t]! + gamma * lambda * carried
    next = values[t]!
    advantages[t] = carried
    returns[t] = carried + next
  }
  return { advantages, returns }
}

/** mean: reward less the group's mean (Liu et al. 2025, "Dr. GRPO"). standard: also divided by the group's standard
 *  deviation (Shao et al. 2024). rloo: reward less the mean of the others (Ahmadian et al. 2024). batch: less the
 *  group's mean, divided by the standard deviation of all rewards. none: the reward itself. */
export const groupAdvantageKinds = ['mean', 'standard', 'rloo', 'batch', 'none'] as const
export type GroupAdvantage = (typeof groupAdvantageKinds)[number]

/** Added to a standard deviation before it divides (TRL). */
const DEVIATION_EPS = 1e-4

/** Advantage of every answer, by group. Standard deviations are unbiased (n - 1), as in Tulu 3.1; a group of one has
 *  the deviation 0. */
export function groupAdvantages(groups: readonly (readonly number[])[], kind: GroupAdvantage): number[][] {
  const deviation = kind === 'batch' ? deviationOf(groups.flat()) : 0
  return groups.map((rewards) => {
    const mean = meanOf(rewards)
    const G = rewards.length
    switch (kind) {
      case 'standard':
        return rewards.map((reward) => (reward - mean) / (deviationOf(rewards) + DEVIATION_EPS))
      case 'batch':
        return rewards.map((reward) => (reward - mean) / (deviation + DEVIATION_EPS))
      case 'rloo':
        return rewards.map((reward) => (G > 1 ? ((reward - mean) * G) / (G - 1) : 0))
      case 'mean':
        return rewards.map((reward) => reward - mean)
      default:
        return [...rewards]
    }
  })
}

/** (x - mean) / sqrt(variance + 1e-8) over all of `parts` together, unbiased variance (open-instruct masked_whiten). */
export function whiten(parts: readonly Float64Array[]): Float64Array[] {
  const all = parts.reduce((count, part) => count + part.length, 0)
  let sum = 0
  for (const part of parts) for (const x of part) sum += x
  const mean = sum / Math.max(1, all)
  let squares = 0
  for (const part of parts) for (const x of part) squares += (x - mean) ** 2
  const scale = 1 / Math.sqrt(squares / Math.max(1, all - 1) + 1e-8)
  return parts.map((part) => part.map((x) => (x - mean) * scale))
}

/** An estimate of the divergence of one token from log-probabilities under policy and reference (Schulman 2020): d,
 *  d^2 / 2 or exp(-d) - 1 + d for d = policy - reference. */
export function klEstimate(policy: number, reference: number, kind: KlKind): number {
  const d = policy - reference
  switch (kind) {
    case 'k1':
      return d
    case 'k2':
      return (d * d) / 2
    case 'k3':
      return Math.expm1(-d) + d
    default:
      return 0
  }
}

export function meanOf(values: ArrayLike<number>): number {
  let sum = 0
  for (let i = 0; i < values.length; i++) sum += values[i]!
  return values.length === 0 ? 0 : sum / values.length
}

/** Unbiased; 0 for fewer than two values. */
export function deviationOf(values: ArrayLike<number>): number {
  if (values.length < 2) return 0
  const mean = meanOf(values)
  let squares = 0
  for (let i = 0; i < values.length; i++) squares += (values[i]! - mean) ** 2
  return Math.sqrt(squares / (values.length - 1))
}
