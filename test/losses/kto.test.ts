// The loss of KTO against TRL in float64: unpaired answers, a reference point from mismatched ones, gradients.
import { afterAll, beforeAll, expect, it } from 'vitest'
import { checkKtoOptions, ktoLoss } from '../../lib/losses/kto.js'
import { fill, linearLogprob, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenJson, goldenTensors, largest, largestDifference } from '../train/golden_tensors.js'

const facts = goldenJson<{
  kto: {
    values: { loss: number }
    config: { beta: number; desirable_weight: number; undesirable_weight: number }
    metrics?: { [name: string]: number }
  }
}>('losses/losses.json').kto
const golden = goldenTensors('losses/losses.safetensors')
const values = (name: string) => Array.from(golden.get(name)!.data)
const [S, T, V] = [8, 11, 19]

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

const { beta, desirable_weight, undesirable_weight } = facts.config
const options = { beta, desirableWeight: desirable_weight, undesirableWeight: undesirable_weight }
const desirable = values('kto.label').map((label) => label === 1)
const references = values('kto.kl_ref_logps')
const kl = Math.max(0, values('kto.kl_policy_logps').reduce((sum, x, i) => sum + x - references[i]!, 0) / S)

/** Loss, metrics and gradient of rows `rows` of the batch. */
async function part(rows: number[]) {
  const ids = values('preference_inputs.input_ids')
  const mask = values('preference_inputs.completion_mask')
  const at = rows.flatMap((row) => Array.from({ length: T }, (_, t) => row * T + t))
  const labels = at.map((i) => (i % T === T - 1 || mask[i + 1] === 0 ? -100 : ids[i + 1]!))
  const logits = at.flatMap((i) => values('preference_inputs.policy_logits').slice(i * V, (i + 1) * V))
  const head = Float32Array.from({ length: V * V }, (_, i) => (i % (V + 1) === 0 ? 1 : 0))
  const hidden = Tensor.from(device, Float32Array.from(logits), [at.length, V])
  const w = Tensor.from(device, head, [V, V])
  const target = Tensor.from(device, Int32Array.from(labels), [labels.length])
  const seed = fill(device, [1], { value: 1, dtype: 'f32' })
  hidden.tracked = true
  using gradients = new Gradients()
  const tape = new Tape()
  const { sum, metrics } = tape.record(() =>
    ktoLoss(
      linearLogprob(hidden, w, target).logp,
      {
        spans: Int32Array.from(rows.flatMap((_, i) => [i * T, (i + 1) * T, 0])),
        reference: Float64Array.from(rows, (row) => values('sequence_logps.ref_sum')[row]!),
        desirable: rows.map((row) => desirable[row]!),
        kl,
        batch: { answers: S, desirable: desirable.filter(Boolean).length },
      },
      options,
    ),
  )
  tape.backward(sum, seed, gradients)
  const result = {
    loss: await sum.item(),
    metrics: Array.from(await metrics.read()),
    gradient: Array.from(await gradients.get(hidden)!.read()),
  }
  for (const tensor of [hidden, w, target, seed, sum, metrics]) tensor.dispose()
  return result
}

const all = Array.from({ length: S }, (_, row) => row)

it('has the loss and the gradient of TRL', async () => {
  const { loss, gradient } = await part(all)
  expect(loss / S).toBeCloseTo(facts.values.loss, 5)
  const wanted = values('kto.grad_policy_logits')
  expect(
    largestDifference(
      gradient.map((x) => x / S),
      wanted,
    ),
  ).toBeLessThan(1e-5 * largest(wanted))
})

it('adds up over any split of the batch, and logs means of the good and the bad answers', async () => {
  const whole = await part(all)
  const parts = [await part(all.slice(0, 3)), await part(all.slice(3))]
  expect(parts[0]!.loss + parts[1]!.loss).toBeCloseTo(whole.loss, 5)
  const gain = all.map(
    (row) => beta * (values('sequence_logps.policy_sum')[row]! - values('sequence_logps.ref_sum')[row]!),
  )
  const mean = (good: boolean) => {
    const chosen = gain.filter((_, row) => desirable[row] === good)
    return chosen.reduce((sum, x) => sum + x, 0) / chosen.length
  }
  for (const [i, wanted] of [mean(true), mean(false), mean(true) - mean(false), kl].entries()) {
    expect(whole.metrics[i]! / S).toBeCloseTo(wanted, 4)
    expect((parts[0]!.metrics[i]! + parts[1]!.metrics[i]!) / S).toBeCloseTo(wanted, 4)
  }
})

it.each([
  [{ beta: 0 }, /beta must be above 0/],
  [{ desirableWeight: -1 }, /desirableWeight must be at least 0/],
  [{ undesirableWeight: Number.NaN }, /undesirableWeight/],
])('%o is refused', (changed, message) => {
  expect(() => checkKtoOptions({ ...options, ...changed })).toThrow(message)
})
