// Clipped policy objectives of PPO, GRPO and their relatives, and the clipped value loss, over rows that hold answers.
import { CaravanError } from '../base/errors.js'
import { type KlKind, klKinds, policyLossOp, type Surrogate, surrogates, valueLossOp } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'

export interface PolicyLossOptions {
  surrogate: Surrogate
  /** The ratio to the sampling policy counts within [1 - clipLow, 1 + clipHigh]; a higher clipHigh is DAPO's. */
  clipLow: number
  clipHigh: number
  /** Bound of the ratio where the advantage is negative (two-sided clipping); 0 = none. */
  ratioCap: number
  /** Estimator of the divergence from the reference that is part of the loss, and its weight. */
  lossKl: KlKind
  lossKlCoefficient: number
}

/** ERR_CONFIG for numbers with which a loss has no meaning. */
export function checkPolicyOptions({ clipLow, clipHigh, ratioCap, lossKlCoefficient }: PolicyLossOptions): void {
  if (!(clipLow > 0 && clipLow <= 1)) throw wrong('clipLow', 'above 0 and at most 1', clipLow)
  if (!(clipHigh > 0)) throw wrong('clipHigh', 'above 0', clipHigh)
  if (ratioCap !== 0 && !(ratioCap > 1 + clipHigh)) throw wrong('ratioCap', '0 or above 1 + clipHigh', ratioCap)
  if (!(lossKlCoefficient >= 0)) throw wrong('lossKlCoefficient', 'at least 0', lossKlCoefficient)
}

function wrong(name: string, rule: string, value: number): CaravanError {
  return new CaravanError('ERR_CONFIG', `${name} must be ${rule}; got ${value}`, { details: { [name]: value } })
}

/** Per row, [N]: log-probability when sampled and under the reference, advantage, and what the row counts. */
export interface PolicyRows {
  /** [S,3] i32 as in policyLossOp. */
  spans: Tensor
  old: Tensor
  reference: Tensor
  advantage: Tensor
  weight: Tensor
}

/** Weighted sum of the objective's rows, a tensor [1], and the sums `policyMetrics`, from logp [N]. */
export function policyLoss(
  logp: Tensor,
  rows: PolicyRows,
  { surrogate, clipLow, clipHigh, ratioCap, lossKl, lossKlCoefficient }: PolicyLossOptions,
): { sum: Tensor; metrics: Tensor } {
  const { loss, metrics } = policyLossOp({
    logp,
    ...rows,
    surrogate: surrogates.indexOf(surrogate),
    low: clipLow,
    high: clipHigh,
    cap: ratioCap,
    kl_kind: klKinds.indexOf(lossKl),
    kl_coefficient: lossKlCoefficient,
  })
  return { sum: loss, metrics }
}

/** Per value, [A]: value when sampled, return, and what it counts. */
export interface ValueRows {
  old: Tensor
  returns: Tensor
  weight: Tensor
}

/** coefficient times the weighted sum of the value loss, a tensor [1], and the sums `valueMetrics`, from values [A]. */
export function valueLoss(
  values: Tensor,
  rows: ValueRows,
  { clip, coefficient }: { clip: number; coefficient: number },
): { sum: Tensor; metrics: Tensor } {
  const { loss, metrics } = valueLossOp({ values, ...rows, clip, coefficient })
  return { sum: loss, metrics }
}
