// Whole trajectories against transformers + torch in float64: loss, learning rate and gradient norm at every step and
// the final weights, through the loop that every method runs in.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PackedBatch } from '../../lib/data/pack.js'
import { type LossReduction, sftLoss } from '../../lib/losses/sft.js'
import type { Batch, Method } from '../../lib/methods/method.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { openDevice, selfSegments } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenModel } from './golden_tensors.js'
import { expectSteps, expectWeights, facts, follow, golden, type Trajectory } from './golden_trajectory.js'

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
  device = openDevice(deviceUnderTest)
})
afterAll(() => device.close())

async function followSft(name: string, split: [number, number][], reduction: LossReduction): Promise<Trajectory> {
  const { model: folder, config } = facts[name]!
  const policy = await loadModel(device, goldenModel(folder), { trainable: true })
  const method = new GoldenBatches(config.steps, split, reduction)
  return await follow(name, { device, method, models: { policy } })
}

describe('trajectories', () => {
  it('sft: 20 steps', async () => {
    const { steps, weights } = await followSft('sft', [[0, 4]], 'token_mean')
    expectSteps('sft', steps)
    expectWeights('sft', weights)
  })

  it('sft_accumulate: two micro-batches, divided by the tokens of both', async () => {
    const split: [number, number][] = [
      [0, 1],
      [1, 4],
    ]
    const { steps, weights } = await followSft('sft_accumulate', split, 'token_mean')
    expectSteps('sft_accumulate', steps)
    expectWeights('sft_accumulate', weights)
  })

  it('sft_accumulate_mean_of_means: the objective of naive accumulation, which is another one', async () => {
    const split: [number, number][] = [
      [0, 1],
      [1, 4],
    ]
    const { steps, weights } = await followSft('sft_accumulate_mean_of_means', split, 'micro_batch_mean')
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
