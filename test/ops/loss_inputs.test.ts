// What the losses over rows do with rows that carry no target, and refuse: targets beyond the vocabulary, spans that do
// not lie in their rows.
import { afterAll, describe, expect, it } from 'vitest'
import {
  crossEntropyOp,
  linearLogprobBackwardOp,
  linearLogprobOp,
  openDevice,
  policyLossOp,
  preferenceLossOp,
  segmentSumBackwardOp,
  segmentSumOp,
} from '../../lib/ops/index.js'
import { leaks, scope, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'

const device = openDevice(deviceUnderTest)
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

const ones = (...shape: number[]) =>
  Tensor.from(device, new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1), shape)
const doubles = (...shape: number[]) => Tensor.from(device, new Float64Array(shape.reduce((a, b) => a * b, 1)), shape)
const integers = (values: number[], ...shape: number[]) => Tensor.from(device, Int32Array.from(values), shape)

type Results = { [name: string]: Tensor | undefined }

/** What the results hold, by name. */
async function valuesOf(body: () => Results): Promise<{ [name: string]: number[] }> {
  const made = scope(body)
  const values: { [name: string]: number[] } = {}
  try {
    for (const [name, tensor] of Object.entries(made)) if (tensor) values[name] = Array.from(await tensor.read())
  } finally {
    for (const tensor of Object.values(made)) tensor?.dispose()
  }
  return values
}

const [N, V, D] = [3, 5, 2]
const chunk_bytes = 1 << 20
/** Calls that say how many rows have a target, or with 0 do not. */
const vocabulary: [string, (target: Tensor, targets: number) => Results][] = [
  [
    'linear_logprob',
    (target, targets) =>
      linearLogprobOp({ hidden: ones(N, D), head: ones(V, D), target, with_entropy: 1, chunk_bytes, targets }),
  ],
  [
    'linear_logprob_backward',
    (target, targets) =>
      linearLogprobBackwardOp({
        dlogp: ones(N),
        hidden: ones(N, D),
        head: ones(V, D),
        target,
        lse: ones(N),
        chunk_bytes,
        targets,
      }),
  ],
  [
    'cross_entropy',
    (target, targets) =>
      crossEntropyOp({ hidden: ones(N, D), head: ones(V, D), target, z_loss: 0.1, chunk_bytes, targets }),
  ],
]

describe.each(vocabulary)('%s', (name, body) => {
  it('gives zeros where no row has a target', async () => {
    const values = await valuesOf(() => body(integers([-100, -1, -7], N), 0))
    expect(Object.keys(values).length).toBeGreaterThan(1)
    for (const [output, numbers] of Object.entries(values)) {
      expect(numbers, output).toEqual(numbers.map(() => 0))
    }
  })

  it('refuses a target beyond the vocabulary, and names the first', async () => {
    const run = valuesOf(() => body(integers([4, 5, 99], N), 0))
    const message = `${name}: target[1] must be below V=5 (or negative for none); got 5`
    await expect(run).rejects.toMatchObject({ code: 'ERR_DATA', message: expect.stringContaining(message) })
  })

  it('gives the same bits whether the number of targets is said or counted', async () => {
    const target = [3, -100, 0]
    const counted = await valuesOf(() => body(integers(target, N), 0))
    expect(await valuesOf(() => body(integers(target, N), 2))).toEqual(counted)
  })

  it.each([
    ['fewer', [3, -100, 0], 1, /2 rows have a target, not 1,/],
    ['more', [3, -100, 0], 3, /2 rows have a target, not 3,/],
    ['more than there are rows', [3, 1, 0], 4, /(3 rows have a target, not 4,)|(of 3 rows 4 cannot have a target,)/],
    ['one with a target beyond the vocabulary', [3, 5, 0], 3, /target\[1\].*(got 5|\(5\) must be below)/],
  ])('refuses a number of targets that is not theirs: %s', async (_, target, targets, message) => {
    const run = valuesOf(() => body(integers(target, N), targets))
    const words = expect.stringMatching(message)
    await expect(run).rejects.toMatchObject({ code: 'ERR_DATA', message: words })
    expect(await valuesOf(() => ({ x: ones(1) }))).toEqual({ x: [1] })
  })
})

const rule = { low: 0.2, high: 0.2, cap: 0, kl_kind: 0, kl_coefficient: 0, surrogate: 0 }
const preference = { kind: 0, beta: 0.1, margin: 0, smoothing: 0, average: 0, weighted: 0 }
const spanned: [string, (spans: Tensor) => Results][] = [
  ['segment_sum', (spans) => segmentSumOp({ x: ones(8), spans })],
  ['segment_sum_backward', (spans) => segmentSumBackwardOp({ dy: ones(2), spans, N: 8 })],
  [
    'policy_loss',
    (spans) => {
      const [logp, old, reference, advantage, weight] = [ones(8), ones(8), ones(8), ones(8), ones(8)]
      return policyLossOp({ logp, spans, old, reference, advantage, weight, ...rule })
    },
  ],
  [
    'preference_loss',
    () =>
      preferenceLossOp({
        logp: ones(8),
        spans: integers([0, 4, 3, 4, 9, 2], 1, 2, 3),
        reference: doubles(1, 2),
        ...preference,
      }),
  ],
]

it.each(spanned)('%s refuses a span that leaves its rows', async (name, body) => {
  const run = valuesOf(() => body(integers([0, 4, 3, 4, 9, 2], 2, 3)))
  await expect(run).rejects.toMatchObject({
    code: 'ERR_SHAPE',
    message: expect.stringMatching(`${name}: (spans\\[1\\]|segment 1) `),
  })
})
