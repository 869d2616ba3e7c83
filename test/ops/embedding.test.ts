// Sums of rows by index where indices recur: many and few occurrences, tables of one, two and three bytes an index, and
// an index outside its table. Expected values are loops over the definition.
import { afterAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { embedding, embeddingBackwardAddOp, embeddingBackwardOp, openDevice, scatterRows } from '../../lib/ops/index.js'
import { type FloatDType, rounded, upload } from '../../lib/tensor/sample_call.js'
import { deviceUnderTest } from '../device_under_test.js'

const device = openDevice(deviceUnderTest)

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

interface Size {
  N: number
  V: number
  D: number
}

/** Indices of which one recurs in a third of the rows, one 32 times and one 33 times, in random order. */
function skewedIds({ N, V }: Size): Int32Array {
  const random = new Random(11, 3)
  const [often, less] = [Math.floor(V / 2), Math.floor(V / 3)]
  const ids = Int32Array.from({ length: N }, (_, n) => (n % 3 === 0 ? V - 1 : random.integer(0, V)))
  for (const [n, id] of ids.entries()) if (id === often || id === less) ids[n] = 0
  for (const [k, n] of random.permutation(N).subarray(0, 65).entries()) ids[n] = k < 33 ? often : less
  return ids
}

/** dw[ids[n]] += dy[n] in order, every sum rounded by `round`. */
function sums(ids: Int32Array, dy: Float64Array, size: Size, round: (x: number) => number): Float64Array {
  const dw = new Float64Array(size.V * size.D)
  for (const [n, id] of ids.entries()) {
    for (let d = 0; d < size.D; d++) dw[id * size.D + d] = round(dw[id * size.D + d]! + dy[n * size.D + d]!)
  }
  return dw
}

const sizes: Size[] = [
  { N: 5000, V: 70_000, D: 1 },
  { N: 2100, V: 300, D: 8 },
  { N: 3000, V: 61, D: 4 },
  { N: 330, V: 60, D: 264 },
]

describe.each(sizes)('embedding_backward with N = $N, V = $V, D = $D', (size) => {
  const ids = skewedIds(size)
  const random = new Random(5, 1)
  const whole = Float64Array.from({ length: size.N * size.D }, () => random.integer(-4, 5))

  it.each(['f32', 'bf16', 'f64'] as const)('%s: whole numbers add up exactly, in place and not', async (dtype) => {
    using index = upload(device, 'i32', ids, [size.N])
    using dy = upload(device, dtype, whole, [size.N, size.D])
    const expected = sums(ids, whole, size, (x) => x)
    using dw = embeddingBackwardOp({ dy, ids: index, V: size.V }).dw
    expect(Float64Array.from(await dw.read())).toEqual(expected)
    embeddingBackwardAddOp({ dw, dy, ids: index })
    expect(Float64Array.from(await dw.read())).toEqual(expected.map((x) => 2 * x))
  })

  it('adds the rows of an index in their order', async () => {
    const values = Float64Array.from({ length: size.N * size.D }, () => rounded(random.normal(), 'f32'))
    const counts = new Map<number, number>()
    for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1)
    expect(Math.max(...counts.values())).toBeGreaterThan(64)
    using index = upload(device, 'i32', ids, [size.N])
    using dy = upload(device, 'f32', values, [size.N, size.D])
    using dw = embeddingBackwardOp({ dy, ids: index, V: size.V }).dw
    using again = embeddingBackwardOp({ dy, ids: index, V: size.V }).dw
    const got = Float64Array.from(await dw.read())
    expect(Float64Array.from(await again.read())).toEqual(got)
    const expected = sums(ids, values, size, Math.fround)
    for (const [id, count] of counts) {
      if (count > 32) continue // a device may cut long sums into pieces
      const row = [id * size.D, (id + 1) * size.D] as const
      expect(got.subarray(...row), `index ${id}, ${count} times`).toEqual(expected.subarray(...row))
    }
  })
})

describe('an index outside its table', () => {
  const rows = { f32: [1, 2, 3, 4, 5, 6] }

  it.each([5, -1, 2 ** 31 - 1])('%i is reported with its value, and the device goes on', async (bad) => {
    const values = { ids: [1, bad, 0], dtype: 'f32' as FloatDType }
    using ids = upload(device, 'i32', values.ids, [3])
    using w = upload(device, 'f32', rows.f32, [3, 2])
    using dw = upload(device, 'f32', [0, 0, 0, 0, 0, 0], [3, 2])
    const calls = {
      embedding: () => embedding(ids, w).dispose(),
      embedding_backward: () => embeddingBackwardOp({ dy: w, ids, V: 3 }).dw.dispose(),
      embedding_backward_add: () => embeddingBackwardAddOp({ dw, dy: w, ids }),
      scatter_rows: () => scatterRows(dw, w, ids),
    }
    for (const [name, call] of Object.entries(calls)) {
      call()
      await expect(device.idle(), name).rejects.toThrow(new RegExp(`${name}\\b.*(?<![\\d])${bad}\\b`))
    }
    using good = upload(device, 'i32', [2], [1])
    using y = embedding(good, w)
    expect(Array.from(await y.read())).toEqual([5, 6])
  })
})

it('rows of integers are picked and put to their places whole', async () => {
  const [least, most] = [-(2 ** 31), 2 ** 31 - 1]
  using table = upload(device, 'i32', [most, least, 16_777_217, -1, 5, 6], [3, 2])
  using ids = upload(device, 'i32', [2, 0, 1], [3])
  using picked = embedding(ids, table)
  expect(await picked.read()).toEqual(Int32Array.of(5, 6, most, least, 16_777_217, -1))
  using places = upload(device, 'i32', [1], [1])
  using row = upload(device, 'i32', [least, 33_554_433], [1, 2])
  scatterRows(table, row, places)
  expect(await table.read()).toEqual(Int32Array.of(most, least, least, 33_554_433, 5, 6))
})
