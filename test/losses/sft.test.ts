// The cross-entropy of training against torch in float64: values, ignored rows, z-loss, extremes, gradients.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { sftLoss } from '../../lib/losses/sft.js'
import { crossEntropy, fill, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenJson, goldenTensors, largest, largestDifference } from '../train/golden_tensors.js'

const facts = goldenJson<{
  cross_entropy: {
    values: { ce_mean: number; ce_sum: number; z_loss: number; ce_plus_z: number }
    config: { z_coef: number }
  }
  linear_cross_entropy: { values: { loss: number } }
}>('losses/losses.json')
const golden = goldenTensors('losses/losses.safetensors')
const values = (name: string) => golden.get(name)!.data
const { ce_mean, ce_sum, z_loss, ce_plus_z } = facts.cross_entropy.values
const Z = facts.cross_entropy.config.z_coef
const count = values('cross_entropy.count')[0]!

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

interface Rows {
  hidden: Float32Array
  head: Float32Array
  labels: Int32Array
  V: number
}

/** Logits as they are: hidden rows that meet an identity. */
function rowsOfLogits(group: string): Rows {
  const { shape, data } = golden.get(`${group}.logits`)!
  const V = shape[1]!
  const head = Float32Array.from({ length: V * V }, (_, i) => (i % (V + 1) === 0 ? 1 : 0))
  return { hidden: data as Float32Array, head, labels: values(`${group}.labels`) as Int32Array, V }
}

/** Summed loss, per-row losses, and gradients of `scale` times the sum. With `unitSeed` the scale must be 1. */
async function evaluated(
  { hidden, head, labels, V }: Rows,
  {
    zLoss = 0,
    scale = 1,
    unitSeed = false,
    twice = false,
  }: { zLoss?: number; scale?: number; unitSeed?: boolean; twice?: boolean },
) {
  const D = head.length / V
  const h = Tensor.from(device, hidden, [labels.length, D])
  const w = Tensor.from(device, head, [V, D])
  const target = Tensor.from(device, labels, [labels.length])
  h.tracked = true
  w.tracked = true
  const seed = fill(device, [1], { value: scale, dtype: 'f32' })
  seed.unit = scale === 1
  const gradients = new Gradients()
  let loss = 0
  let nll: Float32Array = new Float32Array()
  for (let turn = 0; turn < (twice ? 2 : 1); turn++) {
    using tape = new Tape({ into: gradients, unitSeed })
    const made = tape.record(() => crossEntropy(h, w, { target, zLoss }))
    tape.backward(made.loss, seed, gradients)
    loss += await made.loss.item()
    nll = (await made.nll.read()) as Float32Array
    made.loss.dispose()
    made.nll.dispose()
  }
  const dhidden = await gradients.get(h)!.read()
  const dhead = await gradients.get(w)!.read()
  for (const tensor of [h, w, target, seed]) tensor.dispose()
  gradients.dispose()
  return { loss, nll, dhidden, dhead }
}

const close = (got: ArrayLike<number>, wanted: ArrayLike<number>) =>
  expect(largestDifference(got, wanted)).toBeLessThan(1e-5 * largest(wanted))

describe('cross-entropy', () => {
  it('sums over the rows with a target', async () => {
    const { loss, nll, dhidden } = await evaluated(rowsOfLogits('cross_entropy'), {})
    expect(loss / ce_sum).toBeCloseTo(1, 6)
    expect(loss / count / ce_mean).toBeCloseTo(1, 6)
    close(nll, values('cross_entropy.per_row'))
    close(dhidden, values('cross_entropy.grad_ce_sum'))
  })

  it('gives the gradient of the mean for a seed of 1 / count', async () => {
    const { dhidden } = await evaluated(rowsOfLogits('cross_entropy'), { scale: 1 / count })
    close(dhidden, values('cross_entropy.grad_ce_mean'))
  })

  it('leaves ignored rows exactly at zero', async () => {
    const rows = rowsOfLogits('cross_entropy')
    const ignored = [...rows.labels.keys()].filter((i) => rows.labels[i] === -100)
    expect(ignored.length).toBeGreaterThan(0)
    const { nll, dhidden } = await evaluated(rows, { zLoss: Z })
    for (const i of ignored) {
      expect(nll[i]).toBe(0)
      for (let v = 0; v < rows.V; v++) expect(dhidden[i * rows.V + v] === 0).toBe(true)
    }
  })

  it('adds zLoss times the squared log-sum-exp, with its gradient', async () => {
    const plain = await evaluated(rowsOfLogits('cross_entropy'), { scale: 1 / count })
    const { loss } = await evaluated(rowsOfLogits('cross_entropy'), { zLoss: Z, scale: 1 / count })
    expect(loss / count / ce_plus_z).toBeCloseTo(1, 6)
    const heavy = await evaluated(rowsOfLogits('cross_entropy'), { zLoss: 1, scale: 1 / count })
    expect((heavy.loss - plain.loss) / count / z_loss).toBeCloseTo(1, 5)
    const slope = heavy.dhidden.map((x, i) => x - plain.dhidden[i]!)
    close(slope, values('cross_entropy.grad_z'))
  })

  it('survives extreme logits', async () => {
    const { nll, dhidden } = await evaluated(rowsOfLogits('cross_entropy_extremes'), {})
    close(nll, values('cross_entropy_extremes.per_row'))
    close(dhidden, values('cross_entropy_extremes.grad_sum'))
  })
})

describe('linear cross-entropy', () => {
  const rows = (): Rows => ({
    hidden: values('linear_cross_entropy.hidden') as Float32Array,
    head: values('linear_cross_entropy.weight') as Float32Array,
    labels: values('linear_cross_entropy.labels') as Int32Array,
    V: golden.get('linear_cross_entropy.weight')!.shape[0]!,
  })
  const targets = rows().labels.filter((label) => label !== -100).length

  it('has the loss and both gradients of the reference', async () => {
    const { loss, dhidden, dhead } = await evaluated(rows(), { scale: 1 / targets })
    expect(loss / targets / facts.linear_cross_entropy.values.loss).toBeCloseTo(1, 6)
    close(dhidden, values('linear_cross_entropy.grad_hidden'))
    close(dhead, values('linear_cross_entropy.grad_weight'))
  })

  it('adds the head gradient of a second micro-batch to the first in the same pass', async () => {
    const once = await evaluated(rows(), { unitSeed: true })
    const twice = await evaluated(rows(), { unitSeed: true, twice: true })
    close(
      twice.dhead,
      once.dhead.map((x) => 2 * x),
    )
    close(
      once.dhead,
      values('linear_cross_entropy.grad_weight').map((x) => targets * x),
    )
    expect(twice.loss / once.loss).toBeCloseTo(2, 6)
  })

  it('divides by the targets of the micro-batch only when the mean over micro-batches is asked for', async () => {
    const { hidden, head, labels, V } = rows()
    const h = Tensor.from(device, hidden, [labels.length, head.length / V])
    const w = Tensor.from(device, head, [V, head.length / V])
    const target = Tensor.from(device, labels, [labels.length])
    for (const reduction of ['token_mean', 'sequence_mean_of_sums', 'micro_batch_mean'] as const) {
      const tape = new Tape()
      using loss = tape.record(() => sftLoss(h, w, { target, zLoss: 0, reduction, targets }))
      const divisor = reduction === 'micro_batch_mean' ? 1 : targets
      expect((await loss.item()) / divisor / facts.linear_cross_entropy.values.loss, reduction).toBeCloseTo(1, 6)
      tape.dispose()
    }
    for (const tensor of [h, w, target]) tensor.dispose()
  })
})
