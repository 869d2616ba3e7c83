// A training step never waits for a GPU: whatever the method, the thread that gives it work goes on while it works, and
// what a step has to say is read on the side.
import { describe, expect, it } from 'vitest'
import { Loader } from '../../lib/data/loader.js'
import { EncodedPairs } from '../../lib/data/pairs.js'
import { Dpo } from '../../lib/methods/dpo.js'
import { Grpo } from '../../lib/methods/grpo.js'
import type { Batch, Method } from '../../lib/methods/method.js'
import type { OnlineModels, OnlineOptions } from '../../lib/methods/online_method.js'
import { Ppo } from '../../lib/methods/ppo.js'
import { RewardTraining } from '../../lib/methods/reward_model.js'
import type { RolloutPrompt } from '../../lib/methods/rollout.js'
import { RewardModel } from '../../lib/models/index.js'
import { fill, openDevice, randomNormal } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import { keep, type Tensor } from '../../lib/tensor/index.js'
import { trainLoop } from '../../lib/train/loop.js'
import { deviceUnderTest } from '../device_under_test.js'
import { adamOptions, loopOptions, randomExamples, sftOf, smallModel, tiny } from './small_runs.js'

const STEPS = 3

function scoring(device: Device): RewardModel {
  using body = smallModel(device, tiny)
  let stream = 0
  const model = new RewardModel(({ shape, role }) => {
    const random = { deviation: 0.1, seed: 9, stream: stream++, dtype: 'f32' } as const
    return keep(role === 'norm' ? fill(device, shape, { value: 1, dtype: 'f32' }) : randomNormal(device, shape, random))
  }, body.config)
  model.setTrainable(true)
  return model
}

function pairs(): Loader<ReturnType<EncodedPairs['pack']>> {
  const examples = randomExamples({ count: 2 * 12, V: tiny.V })
  return new Loader(new EncodedPairs(examples, false), {
    batch: { sequences: 4 },
    microBatchTokens: 48,
    seed: 3,
    epochs: 3,
  })
}

const online: OnlineOptions<RolloutPrompt> = {
  prompts: () => Array.from({ length: 4 }, (_, i) => ({ ids: Int32Array.of(3 + i, 4, 5) })),
  judge: {
    judge: async (_, answers) =>
      answers.map(({ tokens }, i) => ({ reward: i + tokens.length, score: 0, reason: '', text: '' })),
  },
  samplesPerPrompt: 3,
  maxNewTokens: 5,
  temperature: 1,
  stopIds: [2],
  seed: 3,
  slots: 8,
  rollouts: STEPS,
  updateEpochs: 1,
  miniBatches: 1,
  average: 'token',
  microBatchTokens: 24,
  activationCheckpointing: 'none',
  maxSteps: 0,
  surrogate: 'clip',
  clipLow: 0.2,
  clipHigh: 0.2,
  ratioCap: 0,
  lossKl: 'k3',
  lossKlCoefficient: 0.01,
}

/** A method whatever its models and micro-batches are: nothing here looks into them. */
type AnyMethod = Omit<Method<never, never>, 'batches'> & {
  batches(models: never): AsyncIterable<Batch<unknown>> | Iterable<Batch<unknown>>
}

interface Trainable {
  parameters(): Map<string, Tensor>
  dispose(): void
}

interface Training {
  method: AnyMethod
  models: { policy: Trainable; value?: Trainable; reference?: Trainable }
}

const pairOptions = { activationCheckpointing: 'none', maxSteps: STEPS } as const
const trainings: [string, (device: Device) => Training][] = [
  [
    'sft',
    (device) => ({
      method: sftOf(randomExamples({ count: 40, V: tiny.V }), {}, { maxSteps: STEPS }),
      models: { policy: smallModel(device, tiny) },
    }),
  ],
  [
    'dpo',
    (device) => ({
      method: new Dpo(pairs(), new Float64Array(24).fill(-9), {
        ...pairOptions,
        loss: 'dpo',
        beta: 0.1,
        gammaBetaRatio: 0,
        labelSmoothing: 0,
        referenceFree: false,
      }),
      models: { policy: smallModel(device, tiny) },
    }),
  ],
  [
    'reward',
    (device) => ({
      method: new RewardTraining(pairs(), undefined, { ...pairOptions, centering: 0 }),
      models: { policy: scoring(device) },
    }),
  ],
  [
    'grpo',
    (device) => ({
      method: new Grpo({ ...online, advantage: 'standard', filterZeroVariance: true, maskTruncated: false }),
      models: onlineModels(device),
    }),
  ],
  [
    'ppo',
    (device) => ({
      method: new Ppo({
        ...online,
        gamma: 1,
        lambda: 0.95,
        rewardKl: 'k1',
        rewardKlCoefficient: 0.01,
        rewardAfterEnd: false,
        whitenAdvantages: true,
        clipValue: 0.2,
        valueWeight: 0.5,
      }),
      models: { ...onlineModels(device), value: scoring(device) },
    }),
  ],
]

function onlineModels(device: Device): OnlineModels {
  const reference = smallModel(device, tiny)
  reference.setTrainable(false)
  return { policy: smallModel(device, tiny), reference }
}

describe.runIf(deviceUnderTest.kind === 'cuda')('a training step', () => {
  it.each(trainings)('%s does not wait', async (_, prepare) => {
    using device = openDevice(deviceUnderTest)
    const { method, models } = prepare(device)
    let micros = 0
    const loss = method.loss.bind(method)
    method.loss = (...call) => {
      micros++
      return loss(...call)
    }
    const parameters = new Map(
      (['policy', 'value'] as const).flatMap((name) =>
        [...(models[name]?.parameters() ?? [])].map(([key, t]) => [name + key, t]),
      ),
    )
    const optimizer = new AdamW(parameters, adamOptions)
    await device.idle()
    const before = device.stats().waits
    let steps = 0
    const options = loopOptions(device, method as never, models.policy as never, optimizer)
    for await (const step of trainLoop({ ...options, models: models as never })) steps = step.step
    await device.idle()
    const waits = device.stats().waits - before
    expect({ steps, waits }, `${micros} micro-batches`).toEqual({ steps: STEPS, waits: 0 })
    expect(micros).toBeGreaterThan(STEPS)
    optimizer.dispose()
    for (const model of Object.values(models)) model.dispose()
  })
})
