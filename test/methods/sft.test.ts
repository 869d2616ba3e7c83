// What the division of the loss means: which objective each reduction is, and that none depends on how a global batch
// is divided into micro-batches unless its name says so.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { EncodedBuilder, type EncodedExamples } from '../../lib/data/encoded.js'
import type { LoaderOptions } from '../../lib/data/loader.js'
import type { LossReduction } from '../../lib/losses/sft.js'
import type { CausalLm } from '../../lib/models/index.js'
import { fill, linearLogprob, openDevice, selfSegments } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, scope, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { largest, largestDifference } from '../train/golden_tensors.js'
import { randomExamples, sftOf, smallModel, tiny } from '../train/small_runs.js'

let device: Device
let model: CausalLm
beforeAll(() => {
  device = openDevice(deviceUnderTest)
  model = smallModel(device, tiny)
})
afterAll(async () => {
  model.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

interface Outcome {
  loss: number
  gradients: Map<string, Float32Array>
  microBatches: number
}

/** Loss and gradients of the first global batch, divided as the loop divides. */
async function firstBatch(
  examples: EncodedExamples,
  reduction: LossReduction,
  loader: Partial<LoaderOptions>,
): Promise<Outcome> {
  const method = sftOf(examples, loader, { reduction })
  const [batch] = method.batches()
  const table = new Gradients()
  const seed = fill(device, [1], { value: 1, dtype: 'f32' })
  seed.unit = true
  let [loss, microBatches] = [0, 0]
  for (const micro of batch!.microBatches()) {
    using tape = new Tape({ into: table, unitSeed: method.unitSeed })
    const { sum } = tape.record(() => method.loss({ policy: model }, micro))
    tape.backward(sum, seed, table)
    loss += await sum.item()
    sum.dispose()
    microBatches++
  }
  const gradients = new Map<string, Float32Array>()
  for (const [name, parameter] of model.parameters()) {
    const values = (await table.get(parameter)!.read()) as Float32Array
    gradients.set(
      name,
      values.map((x) => x / batch!.count),
    )
  }
  table.dispose()
  seed.dispose()
  return { loss: loss / batch!.count, gradients, microBatches }
}

function expectSameGradients(got: Outcome, wanted: Outcome, label: string): void {
  expect(Math.abs(got.loss / wanted.loss - 1), `${label}: loss`).toBeLessThan(1e-6)
  for (const [name, values] of wanted.gradients) {
    const difference = largestDifference(got.gradients.get(name)!, values)
    expect(difference, `${label}: ${name}`).toBeLessThan(1e-6 * largest(values) + 1e-9)
  }
}

/** Minus the log-probability of every target of one example alone. */
async function tokenLosses(examples: EncodedExamples, example: number): Promise<number[]> {
  const ids = Int32Array.from(examples.idsOf(example))
  const mask = examples.maskOf(example)
  const N = ids.length
  const labels = Int32Array.from(ids, (_, t) => (t + 1 < N && mask[t + 1] === 1 ? ids[t + 1]! : -100))
  const { data, shape } = selfSegments(Int32Array.of(0, N))
  using logp = scope(() => {
    const hidden = model.hidden({
      ids: Tensor.from(device, ids, [N]),
      positions: Tensor.from(device, Int32Array.from(ids.keys()), [N]),
      segments: Tensor.from(device, data, shape),
    })
    return linearLogprob(hidden, model.head, Tensor.from(device, labels, [N])).logp
  })
  const values = await logp.read()
  return [...labels].flatMap((label, t) => (label === -100 ? [] : [-values[t]!]))
}

const mean = (values: number[]) => values.reduce((sum, x) => sum + x, 0) / values.length
const total = (values: number[]) => values.reduce((sum, x) => sum + x, 0)

const examples = randomExamples({ count: 12, V: tiny.V, least: 3, most: 30 })
const whole: Partial<LoaderOptions> = { batch: { sequences: 12 }, microBatchTokens: 4096, shuffle: false }
const splits: Partial<LoaderOptions>[] = [
  { ...whole, packing: 'none' },
  { ...whole, microBatchTokens: 30 },
  { ...whole, microBatchTokens: 47 },
  { ...whole, microBatchTokens: 100 },
  { ...whole, microBatchTokens: 61, shuffle: true },
]

describe('reductions of the SFT loss', () => {
  it.each(['token_mean', 'sequence_mean_of_sums'] as const)(
    '%s: any split into micro-batches, and any order, is the same',
    async (reduction) => {
      const wanted = await firstBatch(examples, reduction, whole)
      expect(wanted.microBatches).toBe(1)
      const counts = new Set<number>()
      for (const split of splits) {
        const got = await firstBatch(examples, reduction, split)
        counts.add(got.microBatches)
        expectSameGradients(got, wanted, `${reduction} ${JSON.stringify(split)}`)
      }
      expect(counts.size).toBeGreaterThanOrEqual(3)
    },
  )

  it('token_mean is the mean over all targets', async () => {
    const losses: number[] = []
    for (let i = 0; i < examples.count; i++) losses.push(...(await tokenLosses(examples, i)))
    const { loss } = await firstBatch(examples, 'token_mean', whole)
    expect(loss / mean(losses)).toBeCloseTo(1, 6)
  })

  it('sequence_mean_of_sums is the mean over sequences of the sum over their targets', async () => {
    const sums: number[] = []
    for (let i = 0; i < examples.count; i++) sums.push(total(await tokenLosses(examples, i)))
    for (const split of splits) {
      const { loss } = await firstBatch(examples, 'sequence_mean_of_sums', split)
      expect(loss / mean(sums)).toBeCloseTo(1, 6)
    }
  })

  it('micro_batch_mean is the mean over micro-batches of their token means, and depends on the split', async () => {
    const means: number[] = []
    for (let i = 0; i < examples.count; i++) means.push(mean(await tokenLosses(examples, i)))
    const alone = await firstBatch(examples, 'micro_batch_mean', { ...whole, packing: 'none' })
    expect(alone.loss / mean(means)).toBeCloseTo(1, 6)
    const packed = await firstBatch(examples, 'micro_batch_mean', { ...whole, microBatchTokens: 47 })
    expect(Math.abs(packed.loss / alone.loss - 1)).toBeGreaterThan(1e-4)
  })

  it('micro_batch_mean of one micro-batch is token_mean, gradients included', async () => {
    const one = await firstBatch(examples, 'micro_batch_mean', whole)
    expectSameGradients(one, await firstBatch(examples, 'token_mean', whole), 'one micro-batch')
  })

  it('does not count prompt tokens, and their labels have no influence', async () => {
    const builder = new EncodedBuilder()
    const ids = Int32Array.of(5, 6, 7, 8, 9, 10)
    builder.append({ ids, mask: Uint8Array.of(0, 0, 0, 1, 1, 0) })
    const one = builder.finish()
    const { loss } = await firstBatch(one, 'token_mean', { batch: { sequences: 1 } })
    const losses = await tokenLosses(one, 0)
    expect(losses.length).toBe(2)
    expect(loss / mean(losses)).toBeCloseTo(1, 6)
  })
})

describe('Sft', () => {
  it('ends after maxSteps, or with its loader', () => {
    expect(sftOf(examples, { epochs: 2 }).totalSteps).toBe(4)
    expect(sftOf(examples, { epochs: 2 }, { maxSteps: 3 }).totalSteps).toBe(3)
    expect(sftOf(examples, { epochs: 2 }, { maxSteps: 30 }).totalSteps).toBe(4)
    expect([...sftOf(examples, { epochs: 2 }, { maxSteps: 3 }).batches()].length).toBe(3)
  })

  it('goes on from its state with the very batches that would have come', () => {
    const idsOf = (method: ReturnType<typeof sftOf>, most: number) => {
      const seen: number[][] = []
      for (const batch of method.batches()) {
        for (const { inputIds } of batch.microBatches()) seen.push([...inputIds])
        if (--most === 0) break
      }
      return seen
    }
    const all = idsOf(sftOf(examples, { epochs: 4 }), 8)
    const first = sftOf(examples, { epochs: 4 })
    const before = idsOf(first, 3)
    const second = sftOf(examples, { epochs: 4 })
    second.restore(JSON.parse(JSON.stringify(first.state())))
    expect([...before, ...idsOf(second, 5)]).toEqual(all)
    expect(idsOf(second, 1)).toEqual([])
  })

  it('counts the steps before a resume towards maxSteps', () => {
    const first = sftOf(examples, {}, { maxSteps: 5 })
    const batches = first.batches()[Symbol.iterator]()
    for (let step = 0; step < 3; step++) batches.next()
    const second = sftOf(examples, {}, { maxSteps: 5 })
    second.restore(first.state())
    expect([...second.batches()].length).toBe(2)
  })

  it('refuses a state of other data, naming what differs', () => {
    const state = sftOf(examples).state()
    const other = randomExamples({ count: 11, V: tiny.V, seed: 8 })
    expect(() => sftOf(other).restore(state)).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
    expect(() => sftOf(examples, { seed: 4 }).restore(state)).toThrow(/seed/)
  })
})
