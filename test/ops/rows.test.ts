// A row has the same bits alone and in a batch: what makes the sampler's log-probabilities the trainer's.
import { afterAll, describe, expect, it } from 'vitest'
import { dtypeBytes } from '../../lib/base/dtype.js'
import { attentionOp, attentionPagedOp, openDevice, PAGE_KEYS } from '../../lib/ops/index.js'
import { declaredOps, type Op, type Sample } from '../../lib/tensor/index.js'
import {
  argumentsOn,
  bitsOf,
  callOp,
  disposeAll,
  dtypeIn,
  type HostArgument,
  roundedCall,
  type SampleCall,
  sampleCall,
} from '../../lib/tensor/sample_call.js'
import { deviceUnderTest } from '../device_under_test.js'

const device = openDevice(deviceUnderTest)
afterAll(() => device.close())

const nameOf = ({ op }: SampleCall) => op.definition.name

type Cut = { begin: number; end: number }

const N = 150
const vocabulary = { N, V: 1333, D: 96 }
const samples: { [op: string]: Sample } = {
  linear: { lead: [N], D: 133, F: 97, with_bias: 1, with_residual: 1 },
  linear_backward_input: { lead: [N], D: 133, F: 97, with_dx0: 1 },
  rms_norm: { N, D: 129, eps: 1e-5, with_residual: 1 },
  rms_norm_backward: { N, D: 129 },
  add_rms_norm: { N, D: 129, eps: 1e-5 },
  layer_norm: { N, D: 129, eps: 1e-5 },
  layer_norm_backward: { N, D: 129 },
  rope: { N, H: 3, C: 34, direction: 1 },
  rope_table: { N, J: 17, C: 34 },
  swiglu: { N, F: 131 },
  swiglu_backward: { N, F: 131 },
  embedding: { N, V: 40, D: 65 },
  linear_logprob: { ...vocabulary, with_entropy: 1, chunk_bytes: 1 << 17 },
  linear_logprob_backward: { ...vocabulary, with_dentropy: 1, chunk_bytes: 1 << 17 },
  cross_entropy: { ...vocabulary, z_loss: 1e-3, chunk_bytes: 1 << 17 },
}

const isByRow = (dims: string[] | undefined) => dims?.[0] === 'N' || dims?.[0] === '*'

/** Rows [begin, end) of an argument. */
function rowsOf(argument: HostArgument, { begin, end }: Cut): HostArgument {
  const width = argument.values.length / argument.shape[0]!
  const values = argument.values.slice(begin * width, end * width)
  return { ...argument, shape: [end - begin, ...argument.shape.slice(1)], values }
}

/** The call for rows [begin, end) alone. */
function cutCall(call: SampleCall, cut: Cut): SampleCall {
  const dims = new Map(call.op.parsed.inputs.map((input) => [input.name, input.dims]))
  return { ...call, inputs: call.inputs.map((input) => (isByRow(dims.get(input.name)) ? rowsOf(input, cut) : input)) }
}

async function bitsBy(call: SampleCall, dtype: 'f32' | 'bf16'): Promise<{ [name: string]: string }> {
  const given = argumentsOn(device, call, dtype)
  const made = callOp(call.op, given)
  const bits = await bitsOf(made)
  disposeAll(given, made)
  return bits
}

const cuts: Cut[] = [
  { begin: 0, end: 1 },
  { begin: 37, end: 38 },
  { begin: N - 1, end: N },
  { begin: 3, end: 5 },
  { begin: 11, end: 18 },
  { begin: 60, end: 133 },
]

describe.each(Object.entries(samples))('%s', (name, sample) => {
  const op = declaredOps().get(name)!

  it.each(['f32', 'bf16'] as const)('rows alone equal those of the batch, %s', async (dtype) => {
    const call = roundedCall(sampleCall(op, sample), dtype)
    const whole = await bitsBy(call, dtype)
    const outputs = op.parsed.outputs.filter((output) => isByRow(output.dims) && whole[output.name] !== undefined)
    expect(outputs.length).toBeGreaterThan(0)
    for (const cut of cuts) {
      const alone = await bitsBy(cutCall(call, cut), dtype)
      for (const output of outputs) {
        const characters = whole[output.name]!.length / N
        const expected = whole[output.name]!.slice(cut.begin * characters, cut.end * characters)
        expect(alone[output.name] === expected, `${output.name} of rows ${cut.begin}..${cut.end}`).toBe(true)
      }
    }
  })
})

describe('attention', () => {
  const [H, K] = [4, 2]
  const lengths = [90, 1, 150]
  const total = lengths.reduce((a, b) => a + b)

  /** Queries [q.begin, q.end) of a sequence at `start` against its keys up to the last of them, alone. */
  function sequenceCall(whole: SampleCall, start: number, q: Cut): SampleCall {
    const rows: { [name: string]: Cut } = {
      q: { begin: start + q.begin, end: start + q.end },
      k: { begin: start, end: start + q.end },
      v: { begin: start, end: start + q.end },
    }
    const table = [0, q.end - q.begin, 0, q.end]
    const inputs = whole.inputs.map((input) =>
      input.name === 'segments'
        ? { ...input, shape: [1, 4], values: Float64Array.from(table) }
        : rowsOf(input, rows[input.name]!),
    )
    return { ...whole, inputs }
  }

  /** The same with keys and values in pages that lie in another order than the sequence. */
  function pagedCall(alone: SampleCall): SampleCall {
    const [q, k, v, segments] = alone.inputs as [HostArgument, HostArgument, HostArgument, HostArgument]
    const pages = [...Array(Math.ceil(k.shape[0]! / PAGE_KEYS)).keys()].map((i) => (i % 2 === 0 ? i + 2 : i))
    const [P, row] = [pages.length + 2, k.values.length / k.shape[0]!]
    const laid = ({ values, ...argument }: HostArgument): HostArgument => {
      const cache = new Float64Array(P * PAGE_KEYS * row).fill(NaN)
      for (const [i, page] of pages.entries()) {
        cache.set(values.subarray(i * PAGE_KEYS * row, (i + 1) * PAGE_KEYS * row), page * PAGE_KEYS * row)
      }
      return { ...argument, values: cache, shape: [P, PAGE_KEYS, ...argument.shape.slice(1)] }
    }
    const table = { ...segments, values: Float64Array.from([0, q.shape[0]!, 0, k.shape[0]!]) }
    const list: HostArgument = { name: 'pages', shape: [pages.length], values: Float64Array.from(pages), dtype: 'i32' }
    return { ...alone, op: attentionPagedOp as Op, inputs: [q, laid(k), laid(v), table, list] }
  }

  // With the larger scale the largest scores of the blocks of keys lie far apart.
  it.each([
    ['f32', 24, 0.2, 0],
    ['bf16', 24, 0.2, 0],
    ['f32', 24, 0.2, 20],
    ['bf16', 24, 0.2, 20],
    ['bf16', 64, 0.125, 0],
    ['bf16', 64, 1, 0],
    ['bf16', 64, 1, 20],
    ['bf16', 128, 1, 70],
    ['bf16', 128, 1, 0],
  ] as const)('training, prefill, pages and decode agree: %s, C %i, scale %f, window %i', async (...variant) => {
    const [dtype, C, scale, window] = variant
    const sample: Sample = { N: total, M: total, H, K, C, S: 3, queries: lengths, keys: lengths, scale, window }
    const call = roundedCall(sampleCall(attentionOp as Op, sample), dtype)
    const whole = await bitsBy(call, dtype)
    const characters = { o: 2 * H * C * dtypeBytes[dtypeIn({ dtype: undefined }, dtype)], lse: 2 * H * 4 }
    let start = 0
    for (const length of lengths) {
      const parts: Cut[] = [
        { begin: 0, end: length },
        { begin: length - 1, end: length },
        { begin: Math.floor(length / 3), end: Math.ceil((2 * length) / 3) },
        { begin: 0, end: 1 },
      ]
      for (const part of parts) {
        const adjacent = sequenceCall(call, start, part)
        for (const one of [adjacent, pagedCall(adjacent)]) {
          const alone = await bitsBy(one, dtype)
          for (const name of ['o', 'lse'] as const) {
            const [from, to] = [start + part.begin, start + part.end].map((row) => row * characters[name])
            const text = `${name} of ${nameOf(one)}, ${part.begin}..${part.end} of ${length}`
            expect(alone[name] === whole[name]!.slice(from, to), text).toBe(true)
          }
        }
      }
      start += length
    }
  })
})
