// A run of the reference (transformers, TRL and torch in float64) and what it takes to follow it through our loop.
import { expect } from 'vitest'
import type { Method } from '../../lib/methods/method.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import type { Tensor } from '../../lib/tensor/index.js'
import { type Step, trainLoop } from '../../lib/train/loop.js'
import { goldenJson, goldenTensors, largestDifference } from './golden_tensors.js'

export interface GoldenStep {
  lr: number
  loss: number
  grad_norm: number
  tokens?: number
  accuracy?: number
  margin?: number
  rewards_chosen?: number
  rewards_rejected?: number
  logps_chosen?: number
  logps_rejected?: number
}

export interface GoldenRun {
  model: string
  config: {
    betas: [number, number]
    eps: number
    weight_decay: number
    lr: number
    warmup_steps: number
    steps: number
    max_grad_norm: number
  }
  steps: GoldenStep[]
  final_weights: {
    [name: string]: {
      shape: number[]
      stored: string
      sum: number
      abs_sum: number
      l2: number
      suggested_atol: number
      fp32_deviation: { ref_max: number }
    }
  }
  loss_fp32_max_abs_diff: number
  grad_norm_fp32_max_rel_diff: number
}

export const facts = goldenJson<{ [run: string]: GoldenRun }>('train/train.json')
export const golden = goldenTensors('train/train.safetensors')

export interface Trajectory {
  steps: Step[]
  weights: Map<string, Float32Array>
}

/** A model as far as a trajectory needs it. */
interface Trained {
  parameters(): Map<string, Tensor>
  dispose(): void
}

/** Trains `models.policy` by `method` with the optimizer settings of run `name`; frees the model. */
export async function follow<M extends { policy: Trained }, B>(
  name: string,
  { device, method, models }: { device: Device; method: Method<M, B>; models: M },
): Promise<Trajectory> {
  const { config } = facts[name]!
  const [beta1, beta2] = config.betas
  const { policy } = models
  const optimizer = new AdamW(policy.parameters(), { beta1, beta2, eps: config.eps, weightDecay: config.weight_decay })
  const steps: Step[] = []
  for await (const step of trainLoop({
    device,
    method,
    models,
    optimizer,
    lr: config.lr,
    schedule: { kind: 'linear', warmupSteps: config.warmup_steps },
    maxNorm: config.max_grad_norm,
    maxSkippedInARow: 1,
    firstStep: 0,
    skippedInARow: 0,
  })) {
    steps.push(step)
  }
  const weights = new Map<string, Float32Array>()
  for (const [parameter, tensor] of policy.parameters()) weights.set(parameter, (await tensor.read()) as Float32Array)
  optimizer.dispose()
  policy.dispose()
  return { steps, weights }
}

/** The reference's own float32 run is so far from float64; ten times that is the tolerance, as for single values. */
export function expectSteps(name: string, steps: Step[]): void {
  const { steps: wanted, loss_fp32_max_abs_diff, grad_norm_fp32_max_rel_diff } = facts[name]!
  expect(steps.length).toBe(wanted.length)
  for (const [i, { lr, loss, grad_norm }] of wanted.entries()) {
    const got = steps[i]!
    expect(Math.abs(got.lr - lr), `step ${i}: learning rate`).toBeLessThan(1e-15)
    expect(Math.abs(got.loss - loss), `step ${i}: loss ${got.loss} for ${loss}`).toBeLessThan(
      10 * loss_fp32_max_abs_diff,
    )
    const relative = Math.abs(got.gradientNorm / grad_norm - 1)
    expect(relative, `step ${i}: gradient norm`).toBeLessThan(10 * grad_norm_fp32_max_rel_diff)
    expect(got.skipped).toBe(false)
  }
}

export function expectWeights(name: string, weights: Map<string, Float32Array>): void {
  const { final_weights } = facts[name]!
  expect([...weights.keys()].sort()).toEqual(Object.keys(final_weights).sort())
  for (const [parameter, { sum, l2, suggested_atol, shape }] of Object.entries(final_weights)) {
    const values = weights.get(parameter)!
    const stored = golden.get(`${name}.final.${parameter}`)!.data
    const part = values.subarray(0, stored.length)
    expect(largestDifference(part, stored), `${name}: ${parameter}`).toBeLessThan(suggested_atol)
    // The rows that are not stored are held by their sum and norm.
    const count = shape.reduce((product, size) => product * size, 1)
    expect(values.length).toBe(count)
    const total = values.reduce((acc, x) => acc + x, 0)
    const norm = Math.sqrt(values.reduce((acc, x) => acc + x * x, 0))
    expect(Math.abs(total - sum), `${name}: sum of ${parameter}`).toBeLessThan(suggested_atol * Math.sqrt(count))
    expect(Math.abs(norm - l2), `${name}: norm of ${parameter}`).toBeLessThan(suggested_atol * Math.sqrt(count))
  }
}
