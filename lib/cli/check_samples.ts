// Samples for what the table leaves out: ops whose samples are those of a benchmark, and sizes at which a kernel is cut
// into tasks for several threads or into several tiles; and data that make sense where random numbers would not.
import { dtypeCode } from '../base/dtype.js'
import { attentionOp } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { type Op, runReference, type Sample, scope } from '../tensor/index.js'
import {
  disposeAll,
  readAll,
  roundedCall,
  type SampleCall,
  sampleCall,
  testSamples,
  uniformArguments,
} from '../tensor/sample_call.js'

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

/** `call` with log-sum-exps that belong to its logits. */
function withLse(call: SampleCall): SampleCall {
  const values = call.inputs.some(({ name }) => name === 'lse') ? logSumExp(call) : undefined
  return { ...call, inputs: call.inputs.map((input) => (input.name === 'lse' ? { ...input, values: values! } : input)) }
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

/** Sizes that are multiples of a vector, at which kernels load 16 bytes at a time, and fill more than one tile. */
const aligned: { [op: string]: Sample[] } = {
  attention: [
    { ...whole([1, 190, 129]), H: 8, K: 2, C: 64, scale: 0.125, window: 0 },
    { ...whole([257]), H: 7, K: 1, C: 128, scale: 0.09, window: 0 },
    { ...whole(Array(20).fill(13)), H: 2, K: 2, C: 64, scale: 0.125, window: 100 },
  ],
  attention_backward: [
    { ...whole([1, 190, 129]), H: 8, K: 2, C: 64, scale: 0.125, window: 0 },
    { ...whole([257]), H: 7, K: 1, C: 128, scale: 0.09, window: 0 },
  ],
  attention_paged: [
    { N: 3, P: 14, M: 11, H: 8, K: 2, C: 64, S: 3, queries: [1, 1, 1], keys: [300, 1, 320], scale: 0.125, window: 0 },
    { N: 2, P: 14, M: 11, H: 16, K: 1, C: 128, S: 2, queries: [1, 1], keys: [64, 600], scale: 0.09, window: 0 },
  ],
  linear: [
    { lead: [264], D: 256, F: 384, with_bias: 1, with_residual: 1 },
    { lead: [1], D: 264, F: 70, with_bias: 1, with_residual: 1 },
    { lead: [2], D: 2056, F: 40 },
    { lead: [3], D: 8200, F: 4100, with_residual: 1 },
    { lead: [4], D: 72, F: 4100, with_bias: 1 },
  ],
  linear_backward_input: [{ lead: [264], D: 256, F: 384, with_dx0: 1 }],
  linear_backward_weight: [{ lead: [264], D: 256, F: 384 }],
  linear_backward_weight_add: [{ lead: [264], D: 256, F: 384 }],
  linear_logprob: [{ N: 136, V: 1024, D: 128, with_entropy: 1, chunk_bytes: 1 << 18 }],
  linear_logprob_backward: [{ N: 136, V: 1024, D: 128, with_dentropy: 1, chunk_bytes: 1 << 18 }],
  cross_entropy: [{ N: 136, V: 1024, D: 128, z_loss: 1e-3, chunk_bytes: 1 << 18 }],
  cross_entropy_frozen: [{ N: 136, V: 1024, D: 128, z_loss: 0, chunk_bytes: 1 << 18 }],
  rms_norm: [4096, 8192].map((D) => ({ N: 5, D, eps: 1e-5 })),
  rms_norm_backward: [4096, 8192].map((D) => ({ N: 5, D })),
  add_rms_norm: [{ N: 5, D: 4096, eps: 1e-5 }],
  swiglu: [{ N: 5, F: 4096 }],
  swiglu_backward: [{ N: 5, F: 4096 }],
  embedding: [{ N: 40, V: 50, D: 1024 }],
  embedding_backward: [{ N: 600, V: 50, D: 256 }],
  rope: [{ N: 70, H: 4, C: 128, direction: 1 }],
  sample: [{ N: 16, V: 4096, D: 64, with_probs: 1 }],
}

/** Sequences of these lengths whose keys are their queries. */
function whole(lengths: number[]): Sample {
  const N = lengths.reduce((sum, length) => sum + length, 0)
  return { N, M: N, S: lengths.length, queries: lengths, keys: lengths }
}

/** Every sample of `bench check`: those of the tests, and vectors of full width. */
export function checkSamples(op: Op): Sample[] {
  return [...allSamples(op), ...(aligned[op.definition.name] ?? [])]
}

/** A call with data that make sense to `op`, some of them computed on `cpu`; a bf16 parameter gets its master. */
export async function completeCall(
  op: Op,
  sample: Sample,
  { cpu, dtype, seed }: { cpu: Device; dtype: 'f32' | 'bf16'; seed: number },
): Promise<SampleCall> {
  const takesMaster = dtype === 'bf16' && op.parsed.inputs.some(({ name }) => name === 'master')
  const complete = takesMaster ? { ...sample, with_master: 1 } : sample
  const call = roundedCall(plausibleCall(op, complete, seed), dtype)
  // What the forward pass gives on the numbers that the kernels will see.
  if (op.definition.name.startsWith('linear_logprob_backward')) return withLse(call)
  return op.definition.name === 'attention_backward' ? withForward(call, cpu) : call
}

async function withForward(call: SampleCall, cpu: Device): Promise<SampleCall> {
  const forward: SampleCall = { ...call, op: attentionOp as Op }
  const inputs = forward.inputs.filter(({ name }) => attentionOp.parsed.inputs.some((input) => input.name === name))
  const given = uniformArguments(cpu, { ...forward, inputs }, 'f64')
  const made = scope(() => runReference(attentionOp as Op, given))
  const results = await readAll(made)
  disposeAll(given, made)
  return {
    ...call,
    inputs: call.inputs.map((input) => ({ ...input, values: results.get(input.name) ?? input.values })),
  }
}

/** As sampleCall, with data that make sense to the optimizer's ops and log-sum-exps that belong to their logits. */
export function plausibleCall(op: Op, sample: Sample, seed = 1): SampleCall {
  const call = sampleCall(op, sample, seed)
  const control = [1e-2, 0.5, 1, 0.1, 0.05, 3, 0, 0]
  if (op.definition.name.startsWith('linear_logprob')) return withLse(call)
  for (const input of call.inputs) {
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
