// What the segment table of attention may say beyond sequences that lie end to end: rows that belong to none, keys that
// several sequences share, and tables that do not fit their tensors.
import { afterAll, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { countOf } from '../../lib/base/shape.js'
import { attentionBackwardOp, attentionOp, attentionPagedOp, openDevice, PAGE_KEYS } from '../../lib/ops/index.js'
import type { Tensor } from '../../lib/tensor/index.js'
import { disposeAll, readAll, upload } from '../../lib/tensor/sample_call.js'
import { deviceUnderTest } from '../device_under_test.js'

const device = openDevice(deviceUnderTest)

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

const [H, K] = [4, 2]
type FloatType = 'f32' | 'bf16'
const variants: (readonly [FloatType, number])[] = [
  ['f32', 24],
  ['bf16', 24],
  ['bf16', 64],
  ['bf16', 128],
]

/** Normal numbers; NaN in the rows from `nanFrom` on. */
function normal(dtype: FloatType, shape: number[], seed: number, nanFrom = shape[0]!): Tensor {
  const random = new Random(seed, 3)
  const values = Float64Array.from({ length: countOf(shape) }, () => random.normal())
  return upload(device, dtype, values.fill(NaN, (nanFrom * values.length) / shape[0]!), shape)
}

const table = (rows: number[][]) => upload(device, 'i32', rows.flat(), [rows.length, 4])

/** Results of attention and, where the keys are the sequences' own, of its backward pass. */
async function results(
  dtype: FloatType,
  {
    N,
    M,
    C,
    rows,
    own,
    nanFrom,
  }: { N: number; M: number; C: number; rows: number[][]; own: boolean; nanFrom?: number },
) {
  const [q, k] = [normal(dtype, [N, H, C], 1, nanFrom), normal(dtype, [M, K, C], 2, nanFrom)]
  const v = normal(dtype, [M, K, C], 3, nanFrom)
  const call = { q, k, v, segments: table(rows), scale: 0.3, window: 0 }
  const { o, lse } = attentionOp(call)
  const dout = normal(dtype, [N, H, C], 4, nanFrom)
  const gradients = own ? attentionBackwardOp({ ...call, do: dout, o, lse }) : {}
  const values = await readAll({ o, lse, ...gradients })
  disposeAll({ q, k, v, segments: call.segments, o, lse, dout }, gradients)
  return values
}

/** Rows [begin, end) of a result of `count` rows. */
function rowsOf(values: Float64Array, count: number, [begin, end]: [number, number]): number[] {
  const width = values.length / count
  return [...values.subarray(begin * width, end * width)]
}

describe.each(variants)('%s, C %i', (dtype, C) => {
  it('rows outside all segments are 0, with an lse of -inf', async () => {
    const [N, M] = [200, 190]
    const rows = [
      [5, 60, 3, 70],
      [60, 60, 70, 70],
      [130, 133, 120, 150],
    ]
    const values = await results(dtype, { N, M, C, rows, own: true })
    for (const gap of [
      [0, 5],
      [60, 130],
      [133, N],
    ] as [number, number][]) {
      expect(new Set(rowsOf(values.get('o')!, N, gap))).toEqual(new Set([0]))
      expect(new Set(rowsOf(values.get('dq')!, N, gap))).toEqual(new Set([0]))
      expect(new Set(rowsOf(values.get('lse')!, N, gap))).toEqual(new Set([-Infinity]))
    }
    for (const gap of [
      [0, 3],
      [70, 120],
      [150, M],
    ] as [number, number][]) {
      for (const name of ['dk', 'dv']) expect(new Set(rowsOf(values.get(name)!, M, gap))).toEqual(new Set([0]))
    }
    for (const name of ['o', 'lse', 'dq']) {
      expect(rowsOf(values.get(name)!, N, [5, 60]).every((value) => Number.isFinite(value) && value !== 0)).toBe(true)
    }
    for (const name of ['dk', 'dv']) {
      expect(rowsOf(values.get(name)!, M, [3, 70]).every((value) => Number.isFinite(value) && value !== 0)).toBe(true)
    }
  })

  it('a sequence of NaN spoils no other', async () => {
    const rows = [
      [0, 90, 0, 90],
      [90, 160, 90, 160],
    ]
    const [whole, spoilt] = [
      await results(dtype, { N: 160, M: 160, C, rows, own: true }),
      await results(dtype, { N: 160, M: 160, C, rows, own: true, nanFrom: 90 }),
    ]
    for (const [name, values] of whole) {
      expect(rowsOf(spoilt.get(name)!, 160, [0, 90]), name).toEqual(rowsOf(values, 160, [0, 90]))
    }
    expect(rowsOf(spoilt.get('o')!, 160, [90, 160]).every(Number.isNaN)).toBe(true)
  })

  it('queries without keys are 0, with an lse of -inf', async () => {
    const values = await results(dtype, { N: 40, M: 7, C, rows: [[0, 40, 0, 7]], own: true })
    expect(new Set(rowsOf(values.get('o')!, 40, [0, 33]))).toEqual(new Set([0]))
    expect(new Set(rowsOf(values.get('lse')!, 40, [0, 33]))).toEqual(new Set([-Infinity]))
    expect(rowsOf(values.get('lse')!, 40, [33, 40]).every(Number.isFinite)).toBe(true)
    for (const name of ['dq', 'dk', 'dv']) expect([...values.get(name)!].every(Number.isFinite), name).toBe(true)
  })

  it.each([1, 50])('sequences of %i queries that share their keys', async (queries) => {
    const M = 150
    const both = await results(dtype, {
      N: 2 * queries,
      M,
      C,
      rows: [
        [0, queries, 0, M],
        [queries, 2 * queries, 0, 90],
      ],
      own: false,
    })
    for (const [first, keys] of [
      [0, M],
      [queries, 90],
    ] as const) {
      const alone = await results(dtype, {
        N: 2 * queries,
        M,
        C,
        rows: [[first, first + queries, 0, keys]],
        own: false,
      })
      for (const name of ['o', 'lse']) {
        const range: [number, number] = [first, first + queries]
        expect(rowsOf(both.get(name)!, 2 * queries, range)).toEqual(rowsOf(alone.get(name)!, 2 * queries, range))
      }
    }
  })
})

it.each(variants)('%s, C %i: more sequences than a block of threads', async (dtype, C) => {
  const N = 1100
  const rows = Array.from({ length: N }, (_, n) => [n, n + 1, n, n + 1])
  const values = await results(dtype, { N, M: N, C, rows, own: true })
  const [v, dout] = [normal(dtype, [N, K, C], 3), normal(dtype, [N, H, C], 4)]
  const exact = await readAll({ v, dout })
  disposeAll({ v, dout })
  // One key: its value is the output, and it takes the gradients of the heads that share it.
  const head = (row: number[], h: number) => row.slice(h * C, (h + 1) * C)
  for (let n = 0; n < N; n += 7) {
    const row = (all: Float64Array) => rowsOf(all, N, [n, n + 1])
    for (let h = 0; h < H; h++) {
      expect(head(row(values.get('o')!), h)).toEqual(head(row(exact.get('v')!), Math.floor(h / (H / K))))
    }
    const gradient = row(exact.get('dout')!)
    for (const [i, value] of row(values.get('dv')!).entries()) {
      const [h, c] = [Math.floor(i / C) * (H / K), i % C]
      expect(value).toBeCloseTo(gradient[h * C + c]! + gradient[(h + 1) * C + c]!, dtype === 'f32' ? 4 : 1)
    }
  }
})

describe('tables that do not fit', () => {
  const wrong: [string, number[][]][] = [
    ['queries beyond the last', [[0, 9, 0, 8]]],
    ['keys beyond the last', [[0, 8, 0, 9]]],
    ['a negative row', [[-1, 4, 0, 8]]],
    [
      'queries in two sequences',
      [
        [0, 5, 0, 8],
        [4, 8, 0, 8],
      ],
    ],
  ]

  it.each(variants.flatMap(([dtype, C]) => wrong.map((one) => [dtype, C, ...one] as const)))(
    '%s, C %i, %s',
    async (dtype, C, _text, rows) => {
      const [q, k] = [normal(dtype, [8, H, C], 1), normal(dtype, [8, K, C], 2)]
      const segments = table(rows)
      const made = attentionOp({ q, k, v: k, segments, scale: 1, window: 0 })
      const error = await made.o.read().then(
        () => undefined,
        (reason: CaravanError) => reason,
      )
      expect(error).toMatchObject({ code: 'ERR_SHAPE', message: expect.stringMatching(/attention.*segment/) })
      disposeAll({ q, k, segments }, made)
    },
  )

  it.each(variants)('%s, C %i: a page that there is not', async (dtype, C) => {
    const [q, k] = [normal(dtype, [1, H, C], 1), normal(dtype, [2, PAGE_KEYS, K, C], 2)]
    const [segments, pages] = [table([[0, 1, 0, 100]]), upload(device, 'i32', [1, 2], [2])]
    const made = attentionPagedOp({ q, k, v: k, segments, pages, scale: 1, window: 0 })
    await expect(made.o.read()).rejects.toMatchObject({ message: expect.stringMatching(/attention_paged/) })
    disposeAll({ q, k, segments, pages }, made)
  })
})
