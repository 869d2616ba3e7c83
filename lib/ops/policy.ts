// Losses of policy and value in reinforcement learning, each in one pass that also gives the coefficient of every
// token, so that the backward pass of the vocabulary product follows at once. Answers are spans of rows; a weight per
// row says what a token counts, so that one op serves every way of averaging.
import type { DType } from '../base/dtype.js'
import { defineOp, reshape, type Sample, type SampleDraw, type Tensor, withoutTape } from '../tensor/index.js'
import { add, affine, cast, div, exp, greater, iota, maximum, mul, neg, sub } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { matmul } from './matmul.js'
import { concat, slice, transpose } from './movement.js'
import { testSpans } from './preference.js'
import { sum } from './reduce.js'

const dtypes: readonly DType[] = ['f32', 'bf16', 'f64']

/** clip: Schulman et al. 2017. cispo: MiniMax 2025, the clipped ratio is a constant. sequence: GSPO, Zheng et al. 2025,
 *  one ratio for an answer, that of its mean log-probability. */
export const surrogates = ['clip', 'cispo', 'sequence'] as const
export type Surrogate = (typeof surrogates)[number]

/** Estimators of the divergence from the reference, from d = logp - reference: d, d^2 / 2, exp(-d) - 1 + d (Schulman
 *  2020). */
export const klKinds = ['none', 'k1', 'k2', 'k3'] as const
export type KlKind = (typeof klKinds)[number]

/** Names of the weighted sums over rows in `metrics` of policy_loss, in order. */
export const policyMetrics = [
  'policy/loss',
  'policy/kl',
  'policy/approx_kl',
  'policy/clipped_low',
  'policy/clipped_high',
  'policy/ratio',
] as const

/** Names of the weighted sums in `metrics` of value_loss, in order. */
export const valueMetrics = ['value/loss', 'value/clipped'] as const

/** |d| is not let above this, so that exp(-d) stays finite (open-instruct grpo). */
const MOST_LOG_RATIO = 40

const minimum = (a: Tensor, b: Tensor) => neg(maximum(neg(a), neg(b)))
const constant = (x: Tensor, value: number) => affine(x, 0, value)
const clamped = (x: Tensor, low: number, high: number) => minimum(maximum(x, constant(x, low)), constant(x, high))
/** 1 where low < x < high. */
const inside = (x: Tensor, low: number, high: number) =>
  mul(greater(x, constant(x, low)), greater(constant(x, high), x))
const total = (x: Tensor) => reshape(sum(x, 0), [1])

/** [S,N]: 1 where row n predicts a token of answer s. */
function actions(spans: Tensor, N: number, dtype: DType): { member: Tensor; tokens: Tensor } {
  const S = spans.shape[0]!
  const column = (i: number) => slice(cast(spans, dtype), { axis: 1, start: i, length: 1 })
  const n = reshape(iota(spans.device, N, { dtype }), [1, N])
  const started = greater(n, affine(column(0), 1, -0.5))
  const ended = greater(affine(add(column(0), column(2)), 1, -0.5), n)
  return { member: reshape(mul(started, ended), [S, N]), tokens: column(2) }
}

interface PolicyCall {
  logp: Tensor
  spans: Tensor
  old: Tensor
  reference: Tensor
  advantage: Tensor
  weight: Tensor
  surrogate: number
  low: number
  high: number
  cap: number
  kl_kind: number
  kl_coefficient: number
}

/** log(policy / old) of each row, or the mean of its answer's; and how a gradient with respect to it spreads. */
function logRatios({ logp, old, spans, surrogate }: PolicyCall): { ratio: Tensor; spread: (g: Tensor) => Tensor } {
  const own = sub(logp, old)
  if (surrogates[surrogate] !== 'sequence') return { ratio: own, spread: (g) => g }
  const [N, S] = [logp.shape[0]!, spans.shape[0]!]
  const { member, mean } = withoutTape(() => {
    const { member, tokens } = actions(spans, N, logp.dtype)
    return { member, mean: div(member, maximum(tokens, constant(tokens, 1))) }
  })
  const row = (x: Tensor, weights: Tensor) => matmul(reshape(weights, [1, ...weights.shape]), reshape(x, [1, -1, 1]))
  const ofAnswers = (x: Tensor, weights: Tensor) => reshape(row(x, weights), [S])
  const ofRows = (x: Tensor, weights: Tensor) => reshape(row(x, transpose(weights, [1, 0])), [N])
  return {
    ratio: ofRows(ofAnswers(own, mean), member),
    spread: (g) => ofRows(ofAnswers(g, member), mean),
  }
}

/** Value and slope, with respect to logp, of the divergence of each row. */
function divergence({ logp, reference, kl_kind }: PolicyCall): { value: Tensor; slope: Tensor } {
  const difference = sub(logp, reference)
  const d = clamped(difference, -MOST_LOG_RATIO, MOST_LOG_RATIO)
  const free = withoutTape(() => inside(difference, -MOST_LOG_RATIO, MOST_LOG_RATIO))
  switch (klKinds[kl_kind]) {
    case 'k1':
      return { value: d, slope: free }
    case 'k2':
      return { value: affine(mul(d, d), 0.5, 0), slope: mul(d, free) }
    case 'k3':
      return {
        value: add(affine(exp(neg(d)), 1, -1), d),
        slope: mul(affine(exp(neg(d)), -1, 1), free),
      }
    default:
      return { value: constant(d, 0), slope: constant(d, 0) }
  }
}

/** The surrogate of each row, and its slope with respect to the log ratio (cispo: to logp). */
function surrogateOf(call: PolicyCall, ratio: Tensor): { value: Tensor; slope: Tensor } {
  const { advantage, low, high, cap, logp } = call
  if (surrogates[call.surrogate] === 'cispo') {
    const factor = withoutTape(() => mul(advantage, minimum(ratio, constant(ratio, 1 + high))))
    return { value: neg(mul(factor, logp)), slope: neg(factor) }
  }
  const capped = cap > 0 ? minimum(ratio, constant(ratio, cap)) : ratio
  const [plain, clipped] = [mul(advantage, capped), mul(advantage, clamped(ratio, 1 - low, 1 + high))]
  const slope = withoutTape(() => {
    const rises = cap > 0 ? greater(constant(ratio, cap), ratio) : constant(ratio, 1)
    const moves = mul(affine(greater(plain, clipped), -1, 1), rises)
    return neg(mul(mul(advantage, ratio), moves))
  })
  return { value: neg(minimum(plain, clipped)), slope }
}

function policyReference(call: PolicyCall) {
  const { weight, advantage, low, high, kl_coefficient } = call
  const { ratio: logRatio, spread } = logRatios(call)
  const ratio = exp(logRatio)
  const objective = surrogateOf(call, ratio)
  const kl = divergence(call)
  const loss = total(mul(weight, add(objective.value, affine(kl.value, kl_coefficient, 0))))
  const rest = withoutTape(() => {
    const dlogp = add(spread(mul(weight, objective.slope)), mul(weight, affine(kl.slope, kl_coefficient, 0)))
    const zero = constant(advantage, 0)
    const clippedLow = mul(greater(constant(ratio, 1 - low), ratio), greater(zero, advantage))
    const clippedHigh = mul(greater(ratio, constant(ratio, 1 + high)), greater(advantage, zero))
    const metrics = [objective.value, kl.value, affine(mul(logRatio, logRatio), 0.5, 0), clippedLow, clippedHigh, ratio]
      .map((value) => total(mul(weight, value)))
      .reduce((joined, one) => concat(joined, one, 0))
    return { dlogp, metrics }
  })
  return { loss, ...rest }
}

function policyData(sample: Sample, draw: SampleDraw) {
  const N = sample.N as number
  const spans = testSpans(sample)
  const around = (values: Float64Array, deviation: number) => values.map((value) => value + deviation * draw.normal())
  const logp = Float64Array.from({ length: N }, () => -Math.abs(draw.normal()))
  const weight = new Float64Array(N)
  for (let s = 0; s < spans.length / 3; s++) {
    const [begin, , tokens] = spans.subarray(3 * s, 3 * s + 3) as unknown as [number, number, number]
    weight.fill(1 / Math.max(1, tokens), begin, begin + tokens)
  }
  const advantage = Float64Array.from({ length: N }, () => draw.normal())
  return { logp, spans, old: around(logp, 0.3), reference: around(logp, 0.5), advantage, weight }
}

const plain = { surrogate: 0, low: 0.2, high: 0.2, cap: 0, kl_kind: 0, kl_coefficient: 0 }

/** Weighted sum over rows of -min(A r, A clip(r, 1 - low, 1 + high)) + kl_coefficient kl, with r = exp(logp - old) and
 *  kl an estimate from logp - reference; dlogp is its gradient for each row. spans[s] = (first row, last row + 1,
 *  tokens) of answer s, whose first `tokens` rows predict its tokens; rows outside must have weight 0. cap > 0 bounds
 *  r where A < 0 (two-sided clipping). */
export const policyLossOp = defineOp({
  name: 'policy_loss',
  signature:
    'logp[N] spans[S,3]:i32 old[N] reference[N] advantage[N] weight[N] -> loss[1] dlogp[N] metrics[6] | surrogate low high cap kl_kind kl_coefficient',
  dtypes,
  reference: policyReference,
  auxiliary: ['dlogp', 'metrics'],
  saved: ['dlogp'],
  backward: ({ loss: dloss }, { dlogp }) => ({ logp: dloss!.unit ? dlogp : mul(dlogp, dloss!) }),
  constant: ['spans', 'old', 'reference', 'advantage', 'weight'],
  data: policyData,
  samples: [
    { N: 23, S: 4, ...plain },
    { N: 40, S: 3, ...plain, high: 0.28, kl_kind: 3, kl_coefficient: 0.04 },
    { N: 40, S: 3, ...plain, kl_kind: 1, kl_coefficient: 0.5 },
    { N: 40, S: 3, ...plain, cap: 1.4, kl_kind: 2, kl_coefficient: 0.1 },
    { N: 33, S: 4, ...plain, surrogate: 2, low: 0.1, high: 0.15, kl_kind: 3, kl_coefficient: 0.04 },
    { N: 2, S: 1, ...plain },
    { N: 1, S: 1, ...plain },
    { N: 0, S: 1, ...plain },
    { N: 1100, S: 2, ...plain, surrogate: 2, kl_kind: 3, kl_coefficient: 0.04 },
    { N: 65536, S: 256, ...plain, kl_kind: 3, kl_coefficient: 0.04, bench: true },
    { ...gpuSamples.losses, ...plain, kl_kind: 3, kl_coefficient: 0.04 },
  ],
})

interface ValueCall {
  values: Tensor
  old: Tensor
  returns: Tensor
  weight: Tensor
  clip: number
  coefficient: number
}

function valueReference({ values, old, returns, weight, clip, coefficient }: ValueCall) {
  const squared = (x: Tensor) => mul(x, x)
  const change = sub(values, old)
  const near = clip > 0 ? add(old, clamped(change, -clip, clip)) : values
  const [plainError, nearError] = [squared(sub(values, returns)), squared(sub(near, returns))]
  const losses = affine(maximum(plainError, nearError), 0.5, 0)
  const loss = affine(total(mul(weight, losses)), coefficient, 0)
  const rest = withoutTape(() => {
    const clipped = greater(nearError, plainError)
    const moves = affine(clipped, -1, 1)
    const dvalues = affine(mul(mul(weight, sub(values, returns)), moves), coefficient, 0)
    const metrics = concat(total(mul(weight, losses)), total(mul(weight, clipped)), 0)
    return { dvalues, metrics }
  })
  return { loss, ...rest }
}

/** coefficient times the weighted sum of 0.5 max((v - R)^2, (old + clip(v - old, +-clip) - R)^2) (Schulman et al. 2017,
 *  as open-instruct ppo); clip 0 leaves the second form out. metrics: the sum without the coefficient, and the weight
 *  of the rows where the clipped form is the larger. */
export const valueLossOp = defineOp({
  name: 'value_loss',
  signature: 'values[N] old[N] returns[N] weight[N] -> loss[1] dvalues[N] metrics[2] | clip coefficient',
  dtypes,
  reference: valueReference,
  auxiliary: ['dvalues', 'metrics'],
  saved: ['dvalues'],
  backward: ({ loss: dloss }, { dvalues }) => ({ values: dloss!.unit ? dvalues : mul(dvalues, dloss!) }),
  constant: ['old', 'returns', 'weight'],
  samples: [
    { N: 23, clip: 0.2, coefficient: 0.1 },
    { N: 9, clip: 0, coefficient: 1 },
    { N: 1, clip: 0.2, coefficient: 0.5 },
    { N: 0, clip: 0.2, coefficient: 0.5 },
    { N: 5000, clip: 0.2, coefficient: 0.1 },
    { N: 65536, clip: 0.2, coefficient: 0.1, bench: true },
    { ...gpuSamples.losses, clip: 0.2, coefficient: 0.1 },
  ],
})
