// The optimizer's three ops through ten steps of torch.optim.AdamW in f64, clipping included.
import { afterAll, describe, expect, it } from 'vitest'
import { adamwOp, clipControlOp, openDevice, squaredSumAddOp } from '../../lib/ops/index.js'
import { Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { readGolden, readGoldenJson } from '../golden_tensors.js'
import { difference, largestMagnitude } from './tolerance.js'

interface Run {
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

const golden = readGolden('optim/optim.safetensors')
const notes = readGoldenJson<{ [run: string]: Run }>('optim/optim.json')
const device = openDevice(deviceUnderTest)

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

const PARAMETERS = [0, 1, 2]
const STEPS = 10

function tensorOf(name: string): Tensor {
  const { values, shape } = golden.get(name)!
  return Tensor.from(device, Float32Array.from(values), shape)
}

const zerosLike = (tensor: Tensor) => Tensor.from(device, new Float32Array(tensor.count), tensor.shape)

function expectClose(name: string, got: ArrayLike<number>, atol: number): void {
  const truth = golden.get(name)!.values
  const off = difference(got, truth).most
  expect(off, `${name}: off by ${off}`).toBeLessThanOrEqual(atol)
}

/** One step as the loop takes it: norm and clip factor on the device, then each parameter. Returns control. */
async function step(run: Run, t: number, state: { p: Tensor; m: Tensor; v: Tensor }[]): Promise<Float32Array> {
  const { lr, lr_per_step, betas, eps, weight_decay, max_norm = 0 } = run.config
  const values = [lr_per_step?.[t] ?? lr!, 1, 1, 1 - betas[0] ** (t + 1), 1 - betas[1] ** (t + 1), 0, 0, 0]
  using control = Tensor.from(device, Float32Array.from(values), [8])
  using sum = Tensor.from(device, new Float64Array(1), [1])
  const gradients = PARAMETERS.map((i) => tensorOf(`grad.${t}.${i}`))
  for (const g of gradients) squaredSumAddOp({ g, sum })
  clipControlOp({ sum, control, scale: 1, max_norm })
  for (const [i, { p, m, v }] of state.entries()) {
    adamwOp({ p, g: gradients[i]!, m, v, control, beta1: betas[0], beta2: betas[1], eps, weight_decay })
  }
  for (const g of gradients) g.dispose()
  return (await control.read()) as Float32Array
}

describe.each(['adamw', 'adamw_nowd', 'adamw_clip', 'adamw_lr_decay'])('%s', (name) => {
  it('follows PyTorch for ten steps', async () => {
    const run = notes[name]!
    const state = PARAMETERS.map((i) => {
      const p = tensorOf(`init.${i}`)
      return { p, m: zerosLike(p), v: zerosLike(p) }
    })
    for (let t = 0; t < STEPS; t++) {
      const control = await step(run, t, state)
      expect(control[2]).toBe(1)
      const norm = notes.adamw_clip!.global_norms![t]!
      expect(Math.abs(control[5]! / norm - 1)).toBeLessThanOrEqual(1e-6)
      for (const i of PARAMETERS) expectClose(`${name}.${t}.${i}`, await state[i]!.p.read(), run.suggested_atol)
    }
    for (const [i, { m, v }] of state.entries()) {
      for (const [moment, key] of [
        [m, 'exp_avg'],
        [v, 'exp_avg_sq'],
      ] as const) {
        const full = `${name}.final_${key}.${i}`
        expectClose(full, await moment.read(), 2e-6 * largestMagnitude(golden.get(full)!.values))
      }
    }
    for (const { p, m, v } of state) for (const tensor of [p, m, v]) tensor.dispose()
  })
})
