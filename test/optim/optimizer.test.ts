// Several optimizers as one: each part with its own rate, norm and skipped steps.
import { afterAll, beforeAll, expect, it } from 'vitest'
import { openDevice } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import { JointOptimizer } from '../../lib/optim/optimizer.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0 }
const row = (values: number[]) => Tensor.from(device, Float32Array.from(values), [1, values.length])

/** A policy and values of one row each, and their joint optimizer with three times the rate for the values. */
function made() {
  const [policy, value] = [row([1, 2]), row([1, 2])]
  const joint = new JointOptimizer([
    { name: 'policy', optimizer: new AdamW(new Map([['w', policy]]), options), lrRatio: 1 },
    { name: 'value', optimizer: new AdamW(new Map([['w', value]]), options), lrRatio: 3 },
  ])
  return { policy, value, joint }
}

async function stepped({ policy, value, joint }: ReturnType<typeof made>, ofPolicy: number[], ofValue: number[]) {
  using gradients = new Gradients()
  for (const [parameter, numbers] of [
    [policy, ofPolicy],
    [value, ofValue],
  ] as const) {
    const gradient = row([...numbers])
    gradients.accumulate(parameter, gradient)
    gradient.dispose()
  }
  return await joint.step(gradients, { lr: 0.01, scale: 1, maxNorm: 1 })
}

function disposeAll({ policy, value, joint }: ReturnType<typeof made>): void {
  for (const one of [policy, value, joint]) one.dispose()
}

it('has a rate and a norm for each part', async () => {
  const all = made()
  const result = await stepped(all, [3, 4], [30, 40])
  expect(result).toMatchObject({ gradientNorm: 5, finite: true, norms: { 'value/gradNorm': 50 } })
  // The first step of Adam has the size of the learning rate, whatever the gradient.
  const [policy, value] = [await all.policy.read(), await all.value.read()]
  for (const [i, start] of [1, 2].entries()) {
    expect(start - policy[i]!).toBeCloseTo(0.01, 5)
    expect(start - value[i]!).toBeCloseTo(0.03, 5)
  }
  disposeAll(all)
})

it('skips the part whose gradients are not finite, and says which', async () => {
  const all = made()
  const result = await stepped(all, [3, 4], [Number.NaN, 1])
  expect(result).toMatchObject({ finite: false, notFinite: 'value: w' })
  expect(Array.from(await all.value.read())).toEqual([1, 2])
  expect((await all.policy.read())[0]).toBeLessThan(1)
  expect(all.joint.state()).toEqual([1, 0])
  disposeAll(all)
})

it('is saved under the names of its parts, and restored', async () => {
  const all = made()
  await stepped(all, [3, 4], [30, 40])
  expect([...all.joint.tensors().keys()]).toEqual(['policy.w.m', 'policy.w.v', 'value.w.m', 'value.w.v'])
  const other = made()
  other.joint.restore(all.joint.state())
  expect(other.joint.state()).toEqual([1, 1])
  disposeAll(all)
  disposeAll(other)
})
