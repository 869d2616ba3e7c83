// Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8): answers that are each good or bad, no pairs. The
// reference point is a number that the caller measures over the whole batch, so that any split of it gives the same
// gradient.
import { CaravanError } from '../base/errors.js'
import { affine, cast, concat, mul, segmentSumOp, sigmoid, sub, sum } from '../ops/index.js'
import { reshape, Tensor, withoutTape } from '../tensor/index.js'

export interface KtoOptions {
  /** Scale of the implicit reward, above 0. */
  beta: number
  /** Weights of good and bad answers, from 0. */
  desirableWeight: number
  undesirableWeight: number
}

/** Names of the sums over answers in `metrics`, in order. */
export const ktoMetrics = ['rewards/chosen', 'rewards/rejected', 'rewards/margin', 'kl'] as const

/** What a batch says of S answers. */
export interface KtoAnswers {
  /** [S,3] i32: first row, last row + 1, tokens. */
  spans: Int32Array
  /** [S]: summed log-probability under the reference model. */
  reference: Float64Array
  /** [S] */
  desirable: readonly boolean[]
  /** The reference point z0 >= 0: mean over the batch of log policy - log reference of mismatched answers. */
  kl: number
  /** Answers of the whole batch, and how many of them are desirable: what the logged means are divided by. */
  batch: { answers: number; desirable: number }
}

/** ERR_CONFIG for numbers with which the loss has no meaning. */
export function checkKtoOptions(options: KtoOptions): void {
  const { beta, desirableWeight, undesirableWeight } = options
  if (!(beta > 0) || !Number.isFinite(beta)) throw wrong('beta', 'above 0', beta)
  if (!(desirableWeight >= 0)) throw wrong('desirableWeight', 'at least 0', desirableWeight)
  if (!(undesirableWeight >= 0)) throw wrong('undesirableWeight', 'at least 0', undesirableWeight)
}

function wrong(name: string, rule: string, value: number): CaravanError {
  return new CaravanError('ERR_CONFIG', `${name} must be ${rule}; got ${value}`, { details: { [name]: value } })
}

/** Sum over answers of weight * (1 - sigmoid(+-beta (log policy - log reference - kl))), a tensor [1], from logp [N];
 *  and the sums of ktoMetrics. */
export function ktoLoss(
  logp: Tensor,
  { spans, reference, desirable, kl, batch }: KtoAnswers,
  { beta, desirableWeight, undesirableWeight }: KtoOptions,
): { sum: Tensor; metrics: Tensor } {
  const { device } = logp
  const S = desirable.length
  const numbers = (values: number[]) => Tensor.from(device, Float32Array.from(values), [S])
  const sums = segmentSumOp({ x: logp, spans: Tensor.from(device, spans, [S, 3]) }).y
  const gain = sub(sums, cast(Tensor.from(device, reference, [S]), 'f32'))
  const sign = numbers(desirable.map((good) => (good ? beta : -beta)))
  const weight = numbers(desirable.map((good) => (good ? desirableWeight : undesirableWeight)))
  const value = sigmoid(mul(sign, affine(gain, 1, -kl)))
  const total = (x: Tensor) => reshape(sum(x, 0), [1])
  const metrics = withoutTape(() => {
    // The loop divides by the answers of the batch; these are means over its good and its bad ones.
    const share = (good: boolean) =>
      batch.answers / Math.max(1, good ? batch.desirable : batch.answers - batch.desirable)
    const mean = (good: boolean) =>
      total(mul(gain, numbers(desirable.map((own) => (own === good ? beta * share(good) : 0)))))
    const [chosen, rejected] = [mean(true), mean(false)]
    const point = Tensor.from(device, Float32Array.of(kl * S), [1])
    return [rejected, sub(chosen, rejected), point].reduce((joined, one) => concat(joined, one, 0), chosen)
  })
  return { sum: total(mul(weight, affine(value, -1, 1))), metrics }
}
