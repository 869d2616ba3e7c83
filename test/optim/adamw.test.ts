// AdamW against torch.optim.AdamW over ten steps, one with a 40-fold spike and one with gradients near zero.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { bf16ToF32, f32ToBf16 } from '../../lib/base/half.js'
import { openDevice } from '../../lib/ops/index.js'
import { AdamW, type AdamWOptions } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenJson, goldenTensors, largestDifference } from '../train/golden_tensors.js'
import { leakedTensors } from '../train/small_runs.js'

interface GoldenRun {
  config: {
    lr?: number
    lr_per_step?: number[]
    betas: [number, number]
    eps: number
    weight_decay: number
    max_norm?: number
  }
  suggested_atol: number
  global_norms?: number[]
}

const runs = ['adamw', 'adamw_nowd', 'adamw_clip', 'adamw_lr_decay'] as const
const facts = goldenJson<
  { [name in (typeof runs)[number]]: GoldenRun } & { inputs: { shapes: number[][]; steps: number } }
>('optim/optim.json')
const tensors = goldenTensors('optim/optim.safetensors')
const values = (name: string) => tensors.get(name)!.data
const STEPS = facts.inputs.steps

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(() => device.close())

/**
 * The reference decays every tensor, vectors too; the engine only matrices. A vector is shown as a matrix of one row.
 */
const shapeOf = (i: number) =>
  tensors.get(`init.${i}`)!.shape.length === 1
    ? [1, ...tensors.get(`init.${i}`)!.shape]
    : tensors.get(`init.${i}`)!.shape
const indices = facts.inputs.shapes.keys()
const names = [...indices].map(String)

function parametersOn(dtype: 'f32' | 'bf16'): Map<string, Tensor> {
  return new Map(
    names.map((i) => {
      const initial = values(`init.${i}`) as Float32Array
      return [i, Tensor.from(device, dtype === 'f32' ? initial : f32ToBf16(initial), shapeOf(Number(i)))]
    }),
  )
}

/** Gradients of golden step `step`, times `factor`. */
function gradientsOf(parameters: Map<string, Tensor>, step: number, factor = 1): Gradients {
  const gradients = new Gradients()
  for (const [i, parameter] of parameters) {
    const g = Tensor.from(
      device,
      (values(`grad.${step}.${i}`) as Float32Array).map((x) => x * factor),
      parameter.shape,
    )
    gradients.accumulate(parameter, g)
    g.dispose()
  }
  return gradients
}

const optionsOf = ({ betas, eps, weight_decay }: GoldenRun['config']) => ({
  beta1: betas[0],
  beta2: betas[1],
  eps,
  weightDecay: weight_decay,
})

describe('AdamW', () => {
  it.each(runs)('%s follows torch for ten steps', async (name) => {
    const { config, suggested_atol, global_norms } = facts[name]
    const parameters = parametersOn('f32')
    const optimizer = new AdamW(parameters, optionsOf(config))
    // Gradients come as sums over a count of 4, as from the loop.
    const scale = 1 / 4
    for (let step = 0; step < STEPS; step++) {
      const lr = config.lr ?? config.lr_per_step![step]!
      using gradients = gradientsOf(parameters, step, 4)
      const { gradientNorm, finite } = await optimizer.step(gradients, { lr, scale, maxNorm: config.max_norm ?? 0 })
      expect(finite).toBe(true)
      if (global_norms) expect(Math.abs(gradientNorm / global_norms[step]! - 1)).toBeLessThan(1e-6)
      for (const [i, parameter] of parameters) {
        const difference = largestDifference(await parameter.read(), values(`${name}.${step}.${i}`))
        expect(difference, `${name}, step ${step}, tensor ${i}`).toBeLessThan(suggested_atol)
      }
    }
    expect(optimizer.updates).toBe(STEPS)
    const states = optimizer.tensors()
    for (const i of names) {
      for (const [ours, theirs] of [
        ['m', 'exp_avg'],
        ['v', 'exp_avg_sq'],
      ]) {
        const wanted = values(`${name}.final_${theirs}.${i}`)
        const peak = Math.max(...[...wanted].map(Math.abs))
        const difference = largestDifference(await states.get(`${i}.${ours}`)!.read(), wanted)
        expect(difference, `${name}, ${theirs} of tensor ${i}`).toBeLessThan(2e-6 * peak)
      }
    }
    for (const parameter of parameters.values()) parameter.dispose()
    optimizer.dispose()
    await device.idle()
    expect(device.stats().liveTensors).toBe(0)
  })

  it('leaves vectors undecayed and decays matrices', async () => {
    const parameters = new Map([
      ['matrix', Tensor.from(device, Float32Array.of(2, -2), [1, 2])],
      ['vector', Tensor.from(device, Float32Array.of(2, -2), [2])],
    ])
    const optimizer = new AdamW(parameters, { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.5 })
    using gradients = new Gradients()
    for (const parameter of parameters.values()) {
      using zero = Tensor.from(device, new Float32Array(2), parameter.shape)
      gradients.accumulate(parameter, zero)
    }
    await optimizer.step(gradients, { lr: 0.1, scale: 1, maxNorm: 1 })
    const factor = 1 - 0.1 * 0.5
    expect(largestDifference(await parameters.get('matrix')!.read(), [2 * factor, -2 * factor])).toBeLessThan(1e-6)
    expect([...(await parameters.get('vector')!.read())]).toEqual([2, -2])
    optimizer.dispose()
    for (const parameter of parameters.values()) parameter.dispose()
  })

  it('keeps an f32 master of a bf16 parameter, which is its rounding', async () => {
    const { config, suggested_atol } = facts.adamw
    const parameters = parametersOn('bf16')
    const optimizer = new AdamW(parameters, { ...optionsOf(config), master: 'full' })
    // The same run in f32 from the rounded start: the master must follow it exactly, whatever the parameter is rounded
    // to.
    const starts = names.map((i) => bf16ToF32(f32ToBf16(values(`init.${i}`) as Float32Array)))
    const wide = new Map(names.map((i) => [i, Tensor.from(device, starts[Number(i)]!, shapeOf(Number(i)))]))
    const wideOptimizer = new AdamW(wide, optionsOf(config))
    for (let step = 0; step < STEPS; step++) {
      using gradients = gradientsOf(parameters, step)
      using wideGradients = gradientsOf(wide, step)
      const options = { lr: config.lr!, scale: 1, maxNorm: 0 }
      await optimizer.step(gradients, options)
      await wideOptimizer.step(wideGradients, options)
    }
    for (const i of names) {
      const master = (await optimizer.tensors().get(`${i}.master`)!.read()) as Float32Array
      expect(master).toEqual(await wide.get(i)!.read())
      expect(await parameters.get(i)!.readRaw()).toEqual(f32ToBf16(master))
      // Decay and the start's rounding (2^-9 relative) are all that separate it from the reference.
      const wanted = values(`adamw.${STEPS - 1}.${i}`)
      expect(largestDifference(master, wanted)).toBeLessThan(
        suggested_atol + 2 ** -8 * Math.max(...[...wanted].map(Math.abs)),
      )
    }
    for (const tensor of [...parameters.values(), ...wide.values()]) tensor.dispose()
    optimizer.dispose()
    wideOptimizer.dispose()
  })

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    'changes nothing, bit for bit, when one gradient is %s, and names the parameter',
    async (bad) => {
      const parameters = parametersOn('f32')
      const optimizer = new AdamW(parameters, optionsOf(facts.adamw.config))
      using first = gradientsOf(parameters, 0)
      await optimizer.step(first, { lr: 0.01, scale: 1, maxNorm: 1 })
      const all = () => Promise.all([...parameters.values(), ...optimizer.tensors().values()].map((t) => t.readRaw()))
      const before = await all()
      using gradients = gradientsOf(parameters, 1)
      const spoiled = parameters.get('1')!
      const data = (await gradients.get(spoiled)!.read()) as Float32Array
      data[7] = bad
      gradients.take(spoiled)!.dispose()
      using g = Tensor.from(device, data, spoiled.shape)
      gradients.accumulate(spoiled, g)
      const result = await optimizer.step(gradients, { lr: 0.01, scale: 1, maxNorm: 1 })
      expect(result.finite).toBe(false)
      expect(result.notFinite).toBe('1')
      expect(await all()).toEqual(before)
      expect(optimizer.updates).toBe(1)
      optimizer.dispose()
      for (const parameter of parameters.values()) parameter.dispose()
    },
  )

  it('leaves parameters without a gradient alone', async () => {
    const parameters = parametersOn('f32')
    const optimizer = new AdamW(parameters, optionsOf(facts.adamw.config))
    using none = new Gradients()
    expect(await optimizer.step(none, { lr: 1, scale: 1, maxNorm: 1 })).toEqual({ gradientNorm: 0, finite: true })
    using some = gradientsOf(parameters, 0)
    some.take(parameters.get('2')!)!.dispose()
    await optimizer.step(some, { lr: 0.01, scale: 1, maxNorm: 0 })
    expect(await parameters.get('2')!.read()).toEqual(values('init.2'))
    expect(await parameters.get('0')!.read()).not.toEqual(values('init.0'))
    optimizer.dispose()
    for (const parameter of parameters.values()) parameter.dispose()
    await device.idle()
    expect(await leakedTensors()).toBe(0)
  })

  it('with moments in bf16, the second moment still follows the gradients', async () => {
    // beta2 = 0.999: each step moves it by at most 0.1 %, less than half the distance of two bf16 numbers.
    const size = 512
    const parameters = new Map([['w', Tensor.from(device, new Float32Array(size), [1, size])]])
    const settings = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0 }
    const optimizer = new AdamW(parameters, { ...settings, moments: 'bf16' })
    const steps = 1500
    for (let step = 0; step < steps; step++) {
      using gradients = new Gradients()
      using g = Tensor.from(device, new Float32Array(size).fill(2), [1, size])
      gradients.accumulate(parameters.get('w')!, g)
      await optimizer.step(gradients, { lr: 1e-4, scale: 1, maxNorm: 0 })
    }
    const v = await optimizer.tensors().get('w.v')!.read()
    const mean = [...v].reduce((sum, x) => sum + Number(x), 0) / size
    expect(mean).toBeGreaterThan(0.99 * 4 * (1 - 0.999 ** steps))
    expect(mean).toBeLessThan(1.01 * 4 * (1 - 0.999 ** steps))
    parameters.get('w')!.dispose()
    optimizer.dispose()
  })

  it('a split master makes the same weights as a full one, and the same again after a pause', async () => {
    const { config } = facts.adamw
    const finals: Float32Array[][] = []
    for (const master of ['full', 'split'] as const) {
      const parameters = parametersOn('bf16')
      let optimizer = new AdamW(parameters, { ...optionsOf(config), master })
      for (let step = 0; step < STEPS; step++) {
        using gradients = gradientsOf(parameters, step)
        await optimizer.step(gradients, { lr: config.lr!, scale: 1, maxNorm: 0 })
        if (step === 4) optimizer = await resumed(optimizer, parameters, { ...optionsOf(config), master })
      }
      const states = optimizer.tensors()
      finals.push(await Promise.all(names.map((i) => truthOf(master, parameters.get(i)!, states, i))))
      for (const parameter of parameters.values()) parameter.dispose()
      optimizer.dispose()
    }
    expect(finals[1]).toEqual(finals[0])
  })
})

/** A new optimizer with the state of another one, as a checkpoint gives it. */
async function resumed(before: AdamW, parameters: Map<string, Tensor>, options: AdamWOptions): Promise<AdamW> {
  const after = new AdamW(parameters, options)
  for (const [name, tensor] of after.tensors()) {
    device.upload(tensor.id, await rawBytes(before.tensors().get(name)!))
  }
  after.restore(before.state())
  before.dispose()
  return after
}

async function rawBytes(tensor: Tensor): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(tensor.bytes)
  await device.read([tensor.id], [bytes])
  return bytes
}

/** The f32 weights of a parameter: its master, or its two halves put together. */
async function truthOf(
  master: 'full' | 'split',
  parameter: Tensor,
  states: Map<string, Tensor>,
  name: string,
): Promise<Float32Array> {
  if (master === 'full') return (await states.get(`${name}.master`)!.read()) as Float32Array
  const upper = new Uint16Array((await rawBytes(parameter)).buffer)
  const low = new Int16Array((await rawBytes(states.get(`${name}.low`)!)).buffer)
  const words = Uint32Array.from(upper, (bits, i) => ((bits << 16) + low[i]!) >>> 0)
  return new Float32Array(words.buffer)
}
