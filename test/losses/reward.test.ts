// The Bradley-Terry loss against TRL's RewardTrainer: plain, with margins, centred.
import { afterAll, beforeAll, expect, it } from 'vitest'
import { rewardLoss } from '../../lib/losses/reward.js'
import { fill, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenJson, goldenTensors, largest } from '../train/golden_tensors.js'

const facts = goldenJson<{ [group: string]: { values: { loss: number } } }>('losses/losses.json')
const golden = goldenTensors('losses/losses.safetensors')
const P = 5

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

it.each([
  ['reward_bt', false, 0],
  ['reward_bt_margin', true, 0],
  ['reward_bt_centered', false, 0.01],
] as const)('%s', async (group, withMargin, centering) => {
  const rows = golden.get(`${group}.rewards`)!.data
  // Chosen rows come first in the reference; here the sides of a pair lie together.
  const order = Array.from({ length: 2 * P }, (_, i) => (i & 1) * P + (i >> 1))
  const rewards = Tensor.from(
    device,
    Float32Array.from(order, (row) => rows[row]!),
    [P, 2],
  )
  const margins = withMargin ? Tensor.from(device, golden.get(`${group}.margin`)!.data as Float32Array, [P]) : undefined
  const seed = fill(device, [1], { value: 1, dtype: 'f32' })
  rewards.tracked = true
  using gradients = new Gradients()
  const tape = new Tape()
  const { sum, metrics } = tape.record(() => rewardLoss(rewards, { margins, centering }))
  tape.backward(sum, seed, gradients)
  expect((await sum.item()) / P).toBeCloseTo(facts[group]!.values.loss, 5)
  const gradient = await gradients.get(rewards)!.read()
  const wanted = golden.get(`${group}.grad_rewards`)!.data
  for (const [i, row] of order.entries()) {
    expect(Math.abs(gradient[i]! / P - wanted[row]!)).toBeLessThan(1e-5 * largest(wanted))
  }
  const [chosen, rejected, accuracy, margin] = Array.from(await metrics.read(), (x) => x / P)
  const mean = (from: number) => Array.from(rows.slice(from, from + P)).reduce((total, x) => total + x, 0) / P
  expect(chosen).toBeCloseTo(mean(0), 5)
  expect(rejected).toBeCloseTo(mean(P), 5)
  expect(margin).toBeCloseTo(mean(0) - mean(P), 5)
  const right = Array.from({ length: P }, (_, p) => Number(rows[p]! > rows[P + p]!)).reduce((a, b) => a + b)
  expect(accuracy).toBeCloseTo(right / P, 6)
  for (const tensor of [rewards, margins, seed, sum, metrics]) tensor?.dispose()
})
