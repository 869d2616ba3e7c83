// Whole trajectories against transformers + torch in float64: loss, learning rate and gradient norm at every step and
// the final weights, through the loop that every method runs in.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PackedBatch } from '../../lib/data/pack.js'
import { type LossReduction, sftLoss } from '../../lib/losses/sft.js'
import type { Batch, Method } from '../../lib/methods/method.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { openDevice, selfSegments } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import { Tensor } from '../../lib/tensor/index.js'
import { type Step, trainLoop } from '../../lib/train/loop.js'
import { goldenJson, goldenModel, goldenTensors, largestDifference } from './golden_tensors.js'

interface GoldenStep {
  lr: number
  loss: number
  grad_norm: number
  tokens?: number
}

interface GoldenRun {
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

const facts = goldenJson<{ [run: string]: GoldenRun }>('train/train.json')
const golden = goldenTensors('train/train.safetensors')

/** Rows `from` .. `to` of golden batch `batch`, without their padding, as one micro-batch. */
function microBatch(batch: number, from: number, to: number): PackedBatch {
  const { shape, data: ids } = golden.get('sft.input_ids')!
  const [, B, T] = shape as [number, number, number]
  const labels = golden.get('sft.labels')!.data
  const mask = golden.get('sft.attention_mask')!.data
  const [inputIds, positions, targets, cuSeqlens]: number[][] = [[], [], [], [0]]
  for (let row = from; row < to; row++) {
    let position = 0
    for (let t = 0; t < T; t++) {
      const at = (batch * B + row) * T + t
      if (mask[at] !== 1) continue
      inputIds!.push(ids[at]!)
      positions!.push(position++)
      targets!.push(t === T - 1 || mask[at + 1] !== 1 ? -100 : labels[at + 1]!)
    }
    cuSeqlens!.push(inputIds!.length)
  }
  return {
    inputIds: Int32Array.from(inputIds!),
    positions: Int32Array.from(positions!),
    cuSeqlens: Int32Array.from(cuSeqlens!),
    labels: Int32Array.from(targets!),
    targetCount: targets!.filter((target) => target !== -100).length,
    maxSeqlen: T,
  }
}

/** The batches of the reference, in its order; what is minimised is the engine's own loss. */
class GoldenBatches implements Method<{ policy: CausalLm }, PackedBatch> {
  readonly name = 'golden'
  readonly unitSeed: boolean

  constructor(
    readonly totalSteps: number,
    /** Rows of each micro-batch. */
    private readonly split: readonly (readonly [number, number])[],
    private readonly reduction: LossReduction,
  ) {
    this.unitSeed = reduction !== 'micro_batch_mean'
  }

  *batches(): Iterable<Batch<PackedBatch>> {
    const [batches] = golden.get('sft.input_ids')!.shape as [number]
    for (let step = 0; step < this.totalSteps; step++) {
      const micros = this.split.map(([from, to]) => microBatch(step % batches, from, to))
      const targets = micros.reduce((sum, { targetCount }) => sum + targetCount, 0)
      const count = this.reduction === 'token_mean' ? targets : micros.length
      yield { count, tokens: 0, microBatches: () => micros }
    }
  }

  loss({ policy }: { policy: CausalLm }, micro: PackedBatch): { sum: Tensor } {
    const { device } = policy
    const N = micro.inputIds.length
    const { data, shape } = selfSegments(micro.cuSeqlens)
    const hidden = policy.hidden({
      ids: Tensor.from(device, micro.inputIds, [N]),
      positions: Tensor.from(device, micro.positions, [N]),
      segments: Tensor.from(device, data, shape),
    })
    const target = Tensor.from(device, micro.labels, [N])
    const { reduction } = this
    return { sum: sftLoss(hidden, policy.head, { target, zLoss: 0, reduction, targets: micro.targetCount }) }
  }

  state() {
    return {}
  }

  restore() {}
}

let device: Device
beforeAll(() => {
  device = openDevice({ threads: 2 })
})
afterAll(() => device.close())

async function follow(
  name: string,
  split: [number, number][],
  reduction: LossReduction,
): Promise<{ steps: Step[]; weights: Map<string, Float32Array> }> {
  const { model: folder, config } = facts[name]!
  const model = await loadModel(device, goldenModel(folder), { trainable: true })
  const [beta1, beta2] = config.betas
  const optimizer = new AdamW(model.parameters(), { beta1, beta2, eps: config.eps, weightDecay: config.weight_decay })
  const steps: Step[] = []
  for await (const step of trainLoop({
    device,
    method: new GoldenBatches(config.steps, split, reduction),
    models: { policy: model },
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
  for (const [parameter, tensor] of model.parameters()) weights.set(parameter, (await tensor.read()) as Float32Array)
  optimizer.dispose()
  model.dispose()
  return { steps, weights }
}

/** The reference's own float32 run is so far from float64; ten times that is the tolerance, as for single values. */
function expectSteps(name: string, steps: Step[]): void {
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

function expectWeights(name: string, weights: Map<string, Float32Array>): void {
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

describe('trajectories', () => {
  it('sft: 20 steps', async () => {
    const { steps, weights } = await follow('sft', [[0, 4]], 'token_mean')
    expectSteps('sft', steps)
    expectWeights('sft', weights)
  })

  it('sft_accumulate: two micro-batches, divided by the tokens of both', async () => {
    const split: [number, number][] = [
      [0, 1],
      [1, 4],
    ]
    const { steps, weights } = await follow('sft_accumulate', split, 'token_mean')
    expectSteps('sft_accumulate', steps)
    expectWeights('sft_accumulate', weights)
  })

  it('sft_accumulate_mean_of_means: the objective of naive accumulation, which is another one', async () => {
    const split: [number, number][] = [
      [0, 1],
      [1, 4],
    ]
    const { steps, weights } = await follow('sft_accumulate_mean_of_means', split, 'micro_batch_mean')
    expectSteps('sft_accumulate_mean_of_means', steps)
    expectWeights('sft_accumulate_mean_of_means', weights)
    const other = facts.sft_accumulate!.steps[0]!.loss
    expect(Math.abs(steps[0]!.loss - other)).toBeGreaterThan(0.01)
  })

  it('leaves no tensor behind', async () => {
    await device.idle()
    expect(device.stats().liveTensors).toBe(0)
  })
})
