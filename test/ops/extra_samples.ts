// Samples for what the table leaves out: ops whose samples are those of a benchmark, and sizes at which a kernel is cut
// into tasks for several threads.
import { dtypeCode } from '../../lib/base/dtype.js'
import type { Op, Sample } from '../../lib/tensor/index.js'
import { type SampleCall, sampleCall, testSamples } from './sample_call.js'

const segments = { queries: [150, 1, 49], keys: [150, 1, 49], S: 3 }
const decode = { N: 3, M: 700, H: 4, K: 2, C: 24, S: 3, queries: [1, 1, 1], keys: [300, 1, 399] }
const vocabulary = { N: 67, V: 2501, D: 40 }
/** Wider than a band of columns, in chunks of a few rows. */
const banded = { N: 11, V: 4110, D: 4, chunk_bytes: 1 << 16 }

/** Large enough that there is something to share out, by op. */
const adamwSamples = [7, 33, 40_000].map((n) => ({
  lead: [n],
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weight_decay: 0.1,
}))

const shared: { [op: string]: Sample[] } = {
  attention: [
    { N: 200, M: 200, H: 4, K: 2, C: 24, ...segments, scale: 0.2, window: 0 },
    { N: 200, M: 200, H: 3, K: 3, C: 17, ...segments, scale: 0.2, window: 40 },
    { ...decode, scale: 0.2, window: 0 },
  ],
  attention_paged: [
    { N: 200, P: 9, M: 5, H: 4, K: 2, C: 24, ...segments, scale: 0.2, window: 0 },
    { ...decode, P: 20, M: 13, scale: 0.2, window: 0 },
  ],
  sample: [{ N: 40, V: 3001, D: 24, M: 90, with_probs: 1, with_previous: 1, with_previous_ends: 1 }],
  attention_backward: [
    { N: 6, M: 6, H: 2, K: 1, C: 4, S: 2, queries: [4, 2], keys: [4, 2], scale: 0.5, window: 0 },
    { N: 200, M: 200, H: 4, K: 2, C: 24, ...segments, scale: 0.2, window: 0 },
    { N: 200, M: 200, H: 3, K: 3, C: 17, ...segments, scale: 0.2, window: 40 },
  ],
  linear_logprob: [
    { ...vocabulary, with_entropy: 1, chunk_bytes: 1 << 16 },
    { ...vocabulary, with_entropy: 0, chunk_bytes: 1 << 22 },
  ],
  linear_logprob_backward: [
    { N: 7, V: 11, D: 5, chunk_bytes: 1 << 20 },
    { N: 33, V: 65, D: 16, chunk_bytes: 1024, with_dentropy: 1 },
    { ...vocabulary, chunk_bytes: 1 << 16, with_dentropy: 1 },
    { ...banded, with_dentropy: 1 },
  ],
  linear_logprob_backward_frozen: [
    { N: 7, V: 11, D: 5, chunk_bytes: 1 << 20 },
    { N: 33, V: 65, D: 16, chunk_bytes: 1024, with_dentropy: 1 },
    { N: 0, V: 5, D: 3, chunk_bytes: 1024 },
    { ...vocabulary, chunk_bytes: 1 << 16 },
    { ...vocabulary, chunk_bytes: 1 << 16, with_dentropy: 1 },
    { ...banded },
    { ...banded, with_dentropy: 1 },
  ],
  linear_logprob_backward_add: [
    { N: 7, V: 11, D: 5, chunk_bytes: 1 << 20 },
    { N: 33, V: 65, D: 16, chunk_bytes: 1024, with_dentropy: 1 },
    { N: 0, V: 5, D: 3, chunk_bytes: 1024 },
    { ...vocabulary, chunk_bytes: 1 << 16 },
    { ...banded },
    { ...banded, with_dentropy: 1 },
  ],
  cross_entropy: [{ ...vocabulary, z_loss: 1e-3, chunk_bytes: 1 << 16 }],
  cross_entropy_frozen: [
    { N: 7, V: 11, D: 5, z_loss: 0, chunk_bytes: 1 << 20 },
    { N: 33, V: 65, D: 16, z_loss: 1e-2, chunk_bytes: 1024 },
    { N: 0, V: 5, D: 3, z_loss: 0, chunk_bytes: 1024 },
    { ...vocabulary, z_loss: 1e-3, chunk_bytes: 1 << 16 },
    { ...banded, z_loss: 1e-3 },
  ],
  cross_entropy_add: [
    { N: 7, V: 11, D: 5, z_loss: 0, chunk_bytes: 1 << 20 },
    { N: 33, V: 65, D: 16, z_loss: 1e-2, chunk_bytes: 1024 },
    { N: 0, V: 5, D: 3, z_loss: 0, chunk_bytes: 1024 },
    { ...vocabulary, z_loss: 1e-3, chunk_bytes: 1 << 16 },
    { ...banded, z_loss: 1e-3 },
  ],
  adamw: adamwSamples,
  adamw_split: adamwSamples,
  adamw_bf16_moments: adamwSamples,
  adamw_split_bf16_moments: adamwSamples,
  squared_sum_add: [{ lead: [5] }, { lead: [40_001] }],
  clip_control: [{ scale: 0.5, max_norm: 1 }],
  fill: [{ shapes: { y: [300, 301] }, value: 1.25, dtype: dtypeCode.f32 }],
  iota: [{ N: 70_001, start: -3, step: 0.5, dtype: dtypeCode.f64 }],
  random_normal: [{ shapes: { y: [201, 97] }, mean: 0, deviation: 1, seed: 5, stream: 9, dtype: dtypeCode.f32 }],
  random_uniform: [{ shapes: { y: [201, 97] }, low: -1, high: 2, seed: 5, stream: 9, dtype: dtypeCode.f32 }],
  matmul: [
    { G: 9, A1: 130, A2: 70, B1: 70, B2: 90, transpose_a: 0, transpose_b: 0, I: 130, P: 90 },
    { G: 1, A1: 300, A2: 257, B1: 200, B2: 257, transpose_a: 0, transpose_b: 1, I: 300, P: 200 },
    { G: 1, A1: 300, A2: 257, B1: 300, B2: 131, transpose_a: 1, transpose_b: 0, I: 257, P: 131 },
  ],
  rope: [{ N: 300, H: 5, C: 34, direction: 1 }],
  rope_table: [{ N: 700, J: 24, C: 48 }],
  embedding: [{ N: 400, V: 50, D: 129 }],
  embedding_backward: [{ N: 400, V: 50, D: 257 }],
  embedding_backward_add: [{ N: 400, V: 50, D: 257 }],
  scatter_rows: [
    { M: 301, N: 150, W: 257 },
    { M: 31, N: 20, W: 1040 },
  ],
  take: [{ lead: [3000], V: 33 }],
  put: [{ lead: [3000], V: 33 }],
  argmax: [{ lead: [900], V: 301 }],
  slice: [{ shapes: { x: [90, 40, 33] }, axis: 1, start: 3, length: 30 }],
  concat: [{ shapes: { a: [90, 20, 33], b: [90, 17, 33] }, axis: 1 }],
  transpose: [{ shapes: { x: [90, 70, 33] }, p0: 2, p1: 0, p2: 1, p3: -1, p4: -1, p5: -1 }],
}

/** Elements of a tensor that is cut into a few tasks. */
const MANY_ELEMENTS = 50_000

/** The first sample of an op in sizes that fill several tasks. */
function enlarged(op: Op): Sample | undefined {
  const first = testSamples(op)[0]
  if (!first) return undefined
  if (!first.shapes) return { ...first, N: 317, lead: [317], D: 161, F: 131 }
  const larger = [...new Set(Object.values(first.shapes).flat())].filter((size) => size > 1).sort((a, b) => a - b)
  const edge = Math.round(MANY_ELEMENTS ** (1 / larger.length))
  const sizes = new Map(larger.map((size, i) => [size, edge + 2 * i]))
  const shapes = Object.entries(first.shapes).map(([name, shape]) => [name, shape.map((n) => sizes.get(n) ?? n)])
  return { ...first, shapes: Object.fromEntries(shapes) as { [argument: string]: number[] } }
}

/** The table's samples, and some for several threads. */
export function allSamples(op: Op): Sample[] {
  const large = shared[op.definition.name] ?? [enlarged(op)].filter((sample) => sample !== undefined)
  return [...testSamples(op), ...large]
}

/** Log-sum-exp of each row of hidden head^T. */
function logSumExp({ inputs }: SampleCall): Float64Array {
  const [hidden, head] = ['hidden', 'head'].map((name) => inputs.find((input) => input.name === name)!)
  const [D, V] = [head!.shape[1]!, head!.shape[0]!]
  return Float64Array.from({ length: hidden!.shape[0]! }, (_, n) => {
    let sum = 0
    for (let v = 0; v < V; v++) {
      let logit = 0
      for (let d = 0; d < D; d++) logit += hidden!.values[n * D + d]! * head!.values[v * D + d]!
      sum += Math.exp(logit)
    }
    return Math.log(sum)
  })
}

/** As sampleCall, with data that make sense to the optimizer's ops and log-sum-exps that belong to their logits. */
export function plausibleCall(op: Op, sample: Sample): SampleCall {
  const call = sampleCall(op, sample)
  const control = [1e-2, 0.5, 1, 0.1, 0.05, 3, 0, 0]
  for (const input of call.inputs) {
    if (input.name === 'lse' && op.definition.name.startsWith('linear_logprob')) input.values = logSumExp(call)
    if (input.name === 'control') input.values = Float64Array.from(control)
    if (input.name === 'sum' || (op.definition.name.startsWith('adamw') && input.name === 'v')) {
      input.values = input.values.map((value) => value * value)
    }
  }
  if (op.definition.name.startsWith('adamw')) shrinkEveryThird(call)
  return call
}

/** Gradients near eps, where a forgotten eps shows. */
function shrinkEveryThird({ inputs }: SampleCall): void {
  const factors: { [name: string]: number } = { g: 1e-8, m: 1e-8, v: 1e-16 }
  for (const { name, values } of inputs) {
    for (let i = 0; i < values.length; i += 3) values[i]! *= factors[name] ?? 1
  }
}
