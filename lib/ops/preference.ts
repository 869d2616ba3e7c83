// From per-token log-probabilities to a preference loss: sums over the tokens of each answer, and every pairwise loss
// of the DPO family in one pass that also gives the coefficient of each token, so that the backward pass of the
// vocabulary product follows at once. Answers are spans of rows; no padding, no tensor beyond [N].
import type { DType } from '../base/dtype.js'
import { defineOp, reshape, type Sample, type SampleDraw, type Tensor, withoutTape } from '../tensor/index.js'
import { add, affine, cast, div, exp, greater, iota, maximum, mul, neg, sigmoid, softplus, sub } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { matmul } from './matmul.js'
import { concat, slice } from './movement.js'
import { sum } from './reduce.js'

const dtypes: readonly DType[] = ['f32', 'bf16', 'f64']

/** S spans that share N rows as evenly as it goes; one row of each has no target. */
export function testSpans({ N, S }: Sample): Int32Array {
  const [rows, count] = [N as number, S as number]
  return Int32Array.from({ length: count }, (_, s) => s).reduce(
    (spans, s) => {
      const [begin, end] = [Math.floor((s * rows) / count), Math.floor(((s + 1) * rows) / count)]
      spans.set([begin, end, Math.max(0, end - begin - 1)], 3 * s)
      return spans
    },
    new Int32Array(3 * count),
  )
}

/** [S,N]: 1 where row n lies in span s. */
function membership(spans: Tensor, N: number, dtype: DType): Tensor {
  const S = spans.shape[0]!
  const column = (i: number) => slice(cast(spans, dtype), { axis: 1, start: i, length: 1 })
  const n = reshape(iota(spans.device, N, { dtype }), [1, N])
  const started = greater(n, affine(column(0), 1, -0.5))
  return reshape(mul(started, greater(affine(column(1), 1, -0.5), n)), [S, N])
}

/** Sum of x over the rows of each span (begin, end, tokens), in row order. */
export const segmentSumOp = defineOp({
  name: 'segment_sum',
  signature: 'x[N] spans[S,3]:i32 -> y[S]',
  dtypes,
  reference: ({ x, spans }) => {
    const [N, S] = [x.shape[0]!, spans.shape[0]!]
    const rows = reshape(membership(spans, N, x.dtype), [1, S, N])
    return { y: reshape(matmul(rows, reshape(x, [1, N, 1])), [S]) }
  },
  saved: ['x', 'spans'],
  backward: ({ y: dy }, { x, spans }) => ({ x: segmentSumBackwardOp({ dy: dy!, spans, N: x.shape[0]! }).dx }),
  constant: ['spans'],
  data: (sample) => ({ spans: testSpans(sample) }),
  samples: [
    { N: 23, S: 4 },
    { N: 5, S: 1 },
    { N: 1, S: 1 },
    { N: 0, S: 2 },
    { N: 1100, S: 2 },
    { N: 65536, S: 256, bench: true },
  ],
})

/** dx[n] = dy[s] for the rows of span s, 0 outside all spans. */
export const segmentSumBackwardOp = defineOp({
  name: 'segment_sum_backward',
  signature: 'dy[S] spans[S,3]:i32 -> dx[N] | N',
  dtypes,
  reference: ({ dy, spans, N }) => {
    const S = spans.shape[0]!
    const rows = reshape(membership(spans, N, dy.dtype), [1, S, N])
    return { dx: reshape(matmul(reshape(dy, [1, 1, S]), rows), [N]) }
  },
  data: (sample) => ({ spans: testSpans(sample) }),
  samples: [
    { N: 23, S: 4 },
    { N: 5, S: 1 },
    { N: 1100, S: 2 },
    { N: 65536, S: 256, bench: true },
  ],
})

/** Shapes of the pairwise loss in z, the margin of the pair. */
export const preferenceKinds = ['sigmoid', 'hinge', 'ipo', 'robust'] as const
export type PreferenceKind = (typeof preferenceKinds)[number]

interface LossShape {
  kind: number
  beta: number
  smoothing: number
}

/** Loss of each pair from its margin z. */
function pairLoss(z: Tensor, { kind, beta, smoothing }: LossShape): Tensor {
  const scaled = affine(z, beta, 0)
  if (preferenceKinds[kind] === 'hinge') return maximum(affine(scaled, -1, 1), affine(z, 0, 0))
  if (preferenceKinds[kind] === 'ipo') {
    const distance = affine(z, 1, -1 / (2 * beta))
    return mul(distance, distance)
  }
  const sign = preferenceKinds[kind] === 'robust' ? -1 : 1
  const loss = add(affine(softplus(neg(scaled)), 1 - smoothing, 0), affine(softplus(scaled), sign * smoothing, 0))
  return sign < 0 ? affine(loss, 1 / (1 - 2 * smoothing), 0) : loss
}

/** d pairLoss / dz. */
function pairSlope(z: Tensor, { kind, beta, smoothing }: LossShape): Tensor {
  const scaled = affine(z, beta, 0)
  if (preferenceKinds[kind] === 'hinge') return affine(greater(affine(z, 0, 1), scaled), -beta, 0)
  if (preferenceKinds[kind] === 'ipo') return affine(z, 2, -1 / beta)
  const wrong = affine(sigmoid(neg(scaled)), -beta * (1 - smoothing), 0)
  const right = affine(sigmoid(scaled), beta * smoothing, 0)
  if (preferenceKinds[kind] === 'robust') return affine(sub(wrong, right), 1 / (1 - 2 * smoothing), 0)
  return add(wrong, right)
}

interface PreferenceCall extends LossShape {
  logp: Tensor
  spans: Tensor
  reference: Tensor
  margin: number
  average: number
  weighted: number
}

function preferenceReference(call: PreferenceCall) {
  const { logp, beta, margin, average, weighted } = call
  const P = call.spans.shape[0]!
  const { dtype } = logp
  const spans = reshape(call.spans, [2 * P, 3])
  const reference = reshape(cast(call.reference, dtype), [2 * P])
  const pairs = (x: Tensor) => reshape(x, [P, 2])
  const side = (x: Tensor, i: number) => reshape(slice(pairs(x), { axis: 1, start: i, length: 1 }), [P])
  const counts = cast(slice(spans, { axis: 1, start: 2, length: 1 }), dtype)
  const tokens = reshape(maximum(counts, affine(counts, 0, 1)), [2 * P])
  const sums = segmentSumOp({ x: logp, spans }).y
  const perToken = (x: Tensor) => (average ? div(x, tokens) : x)
  const gain = sub(perToken(sums), perToken(reference))
  const z = affine(sub(side(gain, 0), side(gain, 1)), 1, -margin)
  const total = (x: Tensor) => reshape(sum(x, 0), [1])
  const losses = pairLoss(z, call)
  const rest = withoutTape(() => {
    const means = div(sums, tokens)
    const likelihood = exp(add(side(means, 0), side(means, 1)))
    const weight = weighted ? neg(maximum(neg(likelihood), affine(likelihood, 0, -1))) : affine(z, 0, 1)
    const slope = mul(pairSlope(z, call), weight)
    const both = reshape(concat(reshape(slope, [P, 1]), reshape(neg(slope), [P, 1]), 1), [2 * P])
    const rewards = affine(gain, beta, 0)
    const metrics = [side(rewards, 0), side(rewards, 1), greater(side(rewards, 0), side(rewards, 1))]
      .concat(sub(side(rewards, 0), side(rewards, 1)), side(sums, 0), side(sums, 1))
      .concat(side(reshape(counts, [2 * P]), 0), side(reshape(counts, [2 * P]), 1))
      .map(total)
      .reduce((joined, one) => concat(joined, one, 0))
    const N = logp.shape[0]!
    return { weight, metrics, dlogp: segmentSumBackwardOp({ dy: perToken(both), spans, N }).dx }
  })
  return { loss: total(mul(losses, rest.weight)), dlogp: rest.dlogp, metrics: rest.metrics }
}

function preferenceData(sample: Sample, draw: SampleDraw) {
  // Log-probabilities are negative, and a reference is near the policy.
  const logp = Float64Array.from({ length: sample.N as number }, () => -Math.abs(draw.normal()))
  const spans = testSpans({ ...sample, S: 2 * (sample.P as number) })
  const reference = Float64Array.from({ length: spans.length / 3 }, (_, s) => {
    const own = logp.subarray(spans[3 * s], spans[3 * s + 1]).reduce((total, value) => total + value, 0)
    return own + draw.normal()
  })
  return { logp, spans, reference }
}

const plain = { kind: 0, beta: 0.1, margin: 0, smoothing: 0, average: 0, weighted: 0 }

/** Names of the sums over pairs in `metrics`, in order. */
export const preferenceMetrics = [
  'rewards/chosen',
  'rewards/rejected',
  'rewards/accuracy',
  'rewards/margin',
  'logps/chosen',
  'logps/rejected',
  'length/chosen',
  'length/rejected',
] as const

/** Sum over pairs of a loss of z = gain(chosen) - gain(rejected) - margin, gain = L(policy) - L(reference), with L the
 *  sum of an answer's log-probabilities or (average) their mean; dlogp is its gradient for each row. spans[p,0] is the
 *  chosen answer of pair p, spans[p,1] the rejected one, each (begin, end, tokens with a target); `reference` holds
 *  summed log-probabilities, in f64 so that the gain of an untrained policy is exactly 0. */
export const preferenceLossOp = defineOp({
  name: 'preference_loss',
  signature:
    'logp[N] spans[P,2,3]:i32 reference[P,2]:f64 -> loss[1] dlogp[N] metrics[8] | kind beta margin smoothing average weighted',
  dtypes,
  reference: preferenceReference,
  auxiliary: ['dlogp', 'metrics'],
  saved: ['dlogp'],
  backward: ({ loss: dloss }, { dlogp }) => ({ logp: dloss!.unit ? dlogp : mul(dlogp, dloss!) }),
  constant: ['spans', 'reference'],
  data: preferenceData,
  samples: [
    { N: 23, P: 2, ...plain },
    { N: 40, P: 3, ...plain, beta: 5, average: 1, smoothing: 0.1 },
    { N: 40, P: 3, ...plain, kind: 1, beta: 0.5 },
    { N: 40, P: 3, ...plain, kind: 2, beta: 0.2, average: 1 },
    { N: 40, P: 3, ...plain, kind: 3, smoothing: 0.1 },
    { N: 33, P: 2, ...plain, beta: 2, average: 1, margin: 0.8 },
    { N: 2, P: 1, ...plain },
    { N: 0, P: 1, ...plain },
    { N: 1100, P: 1, ...plain, average: 1 },
    { N: 65536, P: 128, ...plain, bench: true },
    { ...gpuSamples.losses, P: 128, ...plain },
  ],
})
