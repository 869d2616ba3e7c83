// Ops against PyTorch in f64: results and gradients. Tolerance: ten times what PyTorch itself is off in f32 where that
// was measured, else 1e-5 of the largest value, as the notes of the goldens advise.
import { afterAll, describe, expect, it } from 'vitest'
import { attentionOp, embedding, openDevice, rmsNorm, rope, ropeTable, swiglu } from '../../lib/ops/index.js'
import { Gradients, scope, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { type GoldenTensor, readGolden, readGoldenJson } from '../golden_tensors.js'
import { difference, largestMagnitude } from './tolerance.js'

interface Deviation {
  max_abs: number
  ref_max: number
}

const golden = readGolden('ops/ops.safetensors')
const notes = readGoldenJson<{
  [group: string]: {
    scale?: number
    window?: number
    eps?: number
    documents?: number[]
    fp32_deviation?: { [name: string]: Deviation }
  }
}>('ops/ops.json')

const device = openDevice(deviceUnderTest)

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

const get = (name: string): GoldenTensor => golden.get(name)!

function tensorOf({ values, shape }: GoldenTensor): Tensor {
  return Tensor.from(device, values instanceof Float64Array ? Float32Array.from(values) : values, shape)
}

function expectGolden(name: string, got: ArrayLike<number>, deviation?: Deviation): void {
  const truth = get(name).values
  const largest = largestMagnitude(truth)
  const allowed = deviation ? Math.max(10 * deviation.max_abs, 2e-6 * deviation.ref_max) : 1e-5 * largest
  const off = difference(got, truth).most
  expect(off, `${name}: off by ${off}, largest value ${largest}`).toBeLessThanOrEqual(allowed)
}

/** Result and gradients of `body` over tracked inputs, under output gradient `dout`. */
async function run(inputs: { [name: string]: Tensor }, dout: Tensor, body: () => Tensor) {
  for (const tensor of Object.values(inputs)) tensor.tracked = true
  using gradients = new Gradients()
  const out = scope(() => {
    const tape = new Tape()
    const result = tape.record(body)
    tape.backward(result, dout, gradients)
    return result
  })
  const values: { [name: string]: Float32Array } = { out: (await out.read()) as Float32Array }
  for (const [name, tensor] of Object.entries(inputs)) {
    values[`grad_${name}`] = (await gradients.get(tensor)!.read()) as Float32Array
  }
  for (const tensor of [out, dout, ...Object.values(inputs)]) tensor.dispose()
  return values
}

describe('attention', () => {
  /** [batch, heads, time, C] of one batch row -> [time, heads, C]. */
  function packed({ values, shape }: GoldenTensor, row: number): GoldenTensor {
    const [, heads, time, C] = shape as [number, number, number, number]
    const result = new Float64Array(heads * time * C)
    for (let h = 0; h < heads; h++) {
      for (let t = 0; t < time; t++) {
        for (let c = 0; c < C; c++) result[(t * heads + h) * C + c] = values[((row * heads + h) * time + t) * C + c]!
      }
    }
    return { values: result, shape: [time, heads, C] }
  }

  /** The inverse, for the results of all batch rows. */
  function unpacked(rows: ArrayLike<number>[], [batch, heads, time, C]: number[]): Float64Array {
    const result = new Float64Array(batch! * heads! * time! * C!)
    for (let i = 0; i < result.length; i++) {
      const [c, t] = [i % C!, Math.floor(i / C!) % time!]
      const [h, b] = [Math.floor(i / C! / time!) % heads!, Math.floor(i / C! / time! / heads!)]
      result[i] = rows[b]![(t * heads! + h) * C! + c]!
    }
    return result
  }

  function segmentsOf(group: string, queries: number, keys: number): number[][] {
    let begin = 0
    const documents = notes[group]!.documents?.map((length) => {
      begin += length
      return [begin - length, begin, begin - length, begin]
    })
    return documents ?? [[0, queries, 0, keys]]
  }

  // attn_full has no causal mask, which decoders never need and the op does not offer.
  const groups = ['attn_causal_gqa', 'attn_decode', 'attn_chunk', 'attn_sliding', 'attn_varlen', 'attn_causal_hd64']

  it.each(groups)('%s', async (group) => {
    const { scale, window = 0, fp32_deviation } = notes[group]!
    const shapes = { out: get(`${group}.q`).shape, grad_q: get(`${group}.q`).shape, grad_k: get(`${group}.k`).shape }
    const rows: { [name: string]: Float32Array }[] = []
    for (let row = 0; row < shapes.out[0]!; row++) {
      const inputs: { [name: string]: Tensor } = {}
      for (const name of ['q', 'k', 'v']) inputs[name] = tensorOf(packed(get(`${group}.${name}`), row))
      const { q, k, v } = inputs as { q: Tensor; k: Tensor; v: Tensor }
      const table = segmentsOf(group, q.shape[0]!, k.shape[0]!)
      using segments = Tensor.from(device, Int32Array.from(table.flat()), [table.length, 4])
      const dout = tensorOf(packed(get(`${group}.dout`), row))
      using lse = scope(() => attentionOp({ q, k, v, segments, scale: scale!, window }).lse)
      const lseValues = (await lse.read()) as Float32Array
      rows.push({
        ...(await run(inputs, dout, () => attentionOp({ q, k, v, segments, scale: scale!, window }).o)),
        lse: lseValues,
      })
    }
    for (const [name, shape] of Object.entries({
      ...shapes,
      grad_v: shapes.grad_k,
      lse: [...shapes.out.slice(0, 3), 1],
    })) {
      const got = unpacked(
        rows.map((row) => row[name]!),
        shape,
      )
      expectGolden(`${group}.${name}`, got, fp32_deviation?.[name])
    }
  })
})

describe('norm, activation, embedding', () => {
  it.each(['rmsnorm', 'rmsnorm_tiny_input'])('%s', async (group) => {
    const [x, weight, dout] = ['x', 'weight', 'dout'].map((name) => tensorOf(get(`${group}.${name}`))) as [
      Tensor,
      Tensor,
      Tensor,
    ]
    const got = await run({ x, weight }, dout, () => rmsNorm(x, weight, { eps: notes[group]!.eps! }))
    for (const name of ['out', 'grad_x', 'grad_weight']) expectGolden(`${group}.${name}`, got[name]!)
  })

  it('swiglu', async () => {
    const [gate, up, dout] = ['gate', 'up', 'dout'].map((name) => tensorOf(get(`swiglu.${name}`))) as [
      Tensor,
      Tensor,
      Tensor,
    ]
    const got = await run({ gate, up }, dout, () => swiglu(gate, up))
    for (const name of ['out', 'grad_gate', 'grad_up']) expectGolden(`swiglu.${name}`, got[name]!)
  })

  it('embedding with repeated ids', async () => {
    const ids = tensorOf(get('embedding.ids'))
    const { shape, values } = get('embedding.grad_weight')
    const weight = Tensor.from(
      device,
      Float32Array.from(values, (_, i) => i),
      shape,
    )
    const got = await run({ weight }, tensorOf(get('embedding.dout')), () => embedding(ids, weight))
    expectGolden('embedding.grad_weight', got.grad_weight!)
    const D = shape[1]!
    const rows = Array.from(get('embedding.ids').values, (id) => Array.from({ length: D }, (_, d) => id * D + d))
    expect(Array.from(got.out!)).toEqual(rows.flat())
    ids.dispose()
  })
})

describe('rope', () => {
  it('rotates as PyTorch does, and back', async () => {
    // [batch, time, C], one head each: every batch row is a head here.
    const [heads, time, C] = get('rope.x').shape as [number, number, number]
    const headsLast = ({ values }: GoldenTensor): GoldenTensor => ({
      shape: [time, heads, C],
      values: Float64Array.from({ length: values.length }, (_, i) => {
        const [c, h, t] = [i % C, Math.floor(i / C) % heads, Math.floor(i / C / heads)]
        return values[(h * time + t) * C + c]!
      }),
    })
    const x = tensorOf(headsLast(get('rope.x')))
    using positions = Tensor.from(device, get('rope.positions').values as Int32Array, [time])
    using frequencies = Tensor.from(device, get('rope.inv_freq').values as Float64Array, get('rope.inv_freq').shape)
    using table = ropeTable(positions, frequencies)
    const got = await run({ x }, tensorOf(headsLast(get('rope.dout'))), () => rope(x, table))
    for (const name of ['out', 'grad_x']) {
      const truth = headsLast(get(`rope.${name}`)).values
      expect(difference(got[name]!, truth).most, name).toBeLessThanOrEqual(1e-6 * largestMagnitude(truth))
    }
  })

  it.each(['rope_llama3_a', 'rope_llama3_b'])(
    '%s: angles of the scaled frequencies keep f64 accuracy far out',
    async (group) => {
      const { values, shape } = get(`${group}.inv_freq`)
      const J = shape[0]!
      const at = [0, 1, 4097, 131_071]
      using positions = Tensor.from(device, Int32Array.from(at), [at.length])
      using frequencies = Tensor.from(device, values as Float64Array, shape)
      using table = ropeTable(positions, frequencies)
      const got = await table.read()
      for (const [n, position] of at.entries()) {
        for (let j = 0; j < J; j++) {
          const angle = position * values[j]!
          expect(Math.abs(got[n * 2 * J + j]! - Math.cos(angle))).toBeLessThanOrEqual(6e-8)
          expect(Math.abs(got[n * 2 * J + J + j]! - Math.sin(angle))).toBeLessThanOrEqual(6e-8)
        }
      }
    },
  )
})
