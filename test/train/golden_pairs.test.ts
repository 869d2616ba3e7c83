// Preference tuning and reward training against TRL in float64: the loss, what is logged and the gradient norm of every
// step, and the final weights; with the prompts of pairs shared and not, in any split.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { EncodedBuilder } from '../../lib/data/encoded.js'
import { Loader } from '../../lib/data/loader.js'
import { EncodedPairs, type PairBatch } from '../../lib/data/pairs.js'
import type { PreferenceLoss } from '../../lib/losses/preference.js'
import { answerLogprobs } from '../../lib/methods/answer_logprobs.js'
import { Dpo } from '../../lib/methods/dpo.js'
import { RewardTraining } from '../../lib/methods/reward_model.js'
import { loadModel, loadRewardModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import type { Checkpointing } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenModel } from './golden_tensors.js'
import { expectSteps, expectWeights, facts, follow, golden, type Trajectory } from './golden_trajectory.js'

const [BATCHES, ROWS, T] = golden.get('dpo.input_ids')!.shape as [number, number, number]
const P = ROWS / 2

/** The pairs of the reference in its order, batch after batch; padding left out. */
function goldenPairs(sharePrompt: boolean): EncodedPairs {
  const [ids, attention, completion] = ['input_ids', 'attention_mask', 'completion_mask'].map(
    (name) => golden.get(`dpo.${name}`)!.data,
  )
  const builder = new EncodedBuilder()
  for (let batch = 0; batch < BATCHES; batch++) {
    for (let pair = 0; pair < P; pair++) {
      for (const row of [pair, P + pair]) {
        const begin = (batch * ROWS + row) * T
        const real = Array.from({ length: T }, (_, t) => begin + t).filter((at) => attention![at] === 1)
        builder.append({
          ids: Int32Array.from(real, (at) => ids![at]!),
          mask: Uint8Array.from(real, (at) => completion![at]!),
        })
      }
    }
  }
  return new EncodedPairs(builder.finish(), sharePrompt)
}

function goldenLoader(pairs: EncodedPairs, microBatchTokens: number, steps: number): Loader<PairBatch> {
  return new Loader(pairs, {
    batch: { sequences: P },
    microBatchTokens,
    seed: 0,
    shuffle: false,
    epochs: Math.ceil(steps / BATCHES),
  })
}

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

interface Way {
  sharePrompt: boolean
  checkpointing?: Checkpointing
  microBatchTokens: number
}

async function followDpo(
  name: 'dpo' | 'dpo_norm',
  { sharePrompt, checkpointing = 'none', microBatchTokens }: Way,
): Promise<Trajectory> {
  const { model, config } = facts[name]!
  const policy = await loadModel(device, goldenModel(model), { trainable: true })
  const pairs = goldenPairs(sharePrompt)
  const reference = await answerLogprobs(policy, goldenPairs(false), { tokens: 100 })
  const method = new Dpo(goldenLoader(pairs, microBatchTokens, config.steps), reference, {
    loss: name as PreferenceLoss,
    beta: name === 'dpo' ? 0.1 : 5,
    gammaBetaRatio: 0,
    labelSmoothing: 0,
    referenceFree: false,
    activationCheckpointing: checkpointing,
    maxSteps: config.steps,
  })
  return await follow(name, { device, method, models: { policy } })
}

const ways: [string, Way][] = [
  ['one micro-batch', { sharePrompt: false, microBatchTokens: 1000 }],
  ['a micro-batch for each pair', { sharePrompt: false, microBatchTokens: 1 }],
  ['shared prompts, recomputed activations', { sharePrompt: true, checkpointing: 'full', microBatchTokens: 1000 }],
  ['shared prompts, some recomputed', { sharePrompt: true, checkpointing: 'selective', microBatchTokens: 1000 }],
]

describe.each(['dpo', 'dpo_norm'] as const)('%s', (name) => {
  it.each(ways)('in %s', async (_, way) => {
    const { steps, weights } = await followDpo(name, way)
    expectSteps(name, steps)
    expectWeights(name, weights)
    for (const [i, wanted] of facts[name]!.steps.entries()) {
      const { metrics } = steps[i]!
      expect(metrics['logps/chosen'], `step ${i}`).toBeCloseTo(wanted.logps_chosen!, 2)
      expect(metrics['logps/rejected'], `step ${i}`).toBeCloseTo(wanted.logps_rejected!, 2)
      // With equal policy and reference both rewards are 0 exactly, and none is the higher one.
      if (i < 2)
        expect([metrics['rewards/chosen'], metrics['rewards/accuracy']]).toEqual(
          way.sharePrompt ? [expect.closeTo(0, 4), expect.anything()] : [0, 0],
        )
      else if (name === 'dpo') {
        expect(metrics['rewards/chosen'], `step ${i}`).toBeCloseTo(wanted.rewards_chosen!, 3)
        expect(metrics['rewards/rejected'], `step ${i}`).toBeCloseTo(wanted.rewards_rejected!, 3)
        expect(metrics['rewards/accuracy'], `step ${i}`).toBeCloseTo(wanted.accuracy!, 5)
      }
    }
  })
})

it('has the same bits whatever is computed again, with shared prompts', async () => {
  const way = { sharePrompt: true, microBatchTokens: 1000 }
  const { steps, weights } = await followDpo('dpo', way)
  for (const checkpointing of ['selective', 'full'] as const) {
    const again = await followDpo('dpo', { ...way, checkpointing })
    expect(again.weights, checkpointing).toEqual(weights)
    expect(again.steps.map(({ loss, gradientNorm }) => [loss, gradientNorm])).toEqual(
      steps.map(({ loss, gradientNorm }) => [loss, gradientNorm]),
    )
  }
})

describe('reward', () => {
  it.each(ways)('in %s', async (_, { sharePrompt, checkpointing = 'none', microBatchTokens }) => {
    const { model, config } = facts.reward!
    const policy = await loadRewardModel(device, goldenModel(model), { trainable: true })
    const method = new RewardTraining(
      goldenLoader(goldenPairs(sharePrompt), microBatchTokens, config.steps),
      undefined,
      {
        centering: 0,
        activationCheckpointing: checkpointing,
        maxSteps: config.steps,
      },
    )
    const { steps, weights } = await follow('reward', { device, method, models: { policy } })
    expectSteps('reward', steps)
    expectWeights('reward', weights)
    for (const [i, { accuracy, margin }] of facts.reward!.steps.entries()) {
      expect(steps[i]!.metrics['rewards/accuracy']).toBeCloseTo(accuracy!, 5)
      expect(steps[i]!.metrics['rewards/margin']).toBeCloseTo(margin!, 4)
    }
  })
})
