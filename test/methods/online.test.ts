// PPO, GRPO and RLOO on small random models: they learn what is rewarded, their sampled log-probabilities are those of
// training, and neither threads nor the division into rows change what comes out.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { Grpo, type GrpoOptions } from '../../lib/methods/grpo.js'
import type { OnlineModels, OnlineOptions } from '../../lib/methods/online_method.js'
import { Ppo, type PpoOptions } from '../../lib/methods/ppo.js'
import type { Judge, RolloutPrompt } from '../../lib/methods/rollout.js'
import { type CausalLm, RewardModel } from '../../lib/models/index.js'
import { copyWeights } from '../../lib/nn/module.js'
import { fill, openDevice, randomNormal } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import { JointOptimizer } from '../../lib/optim/optimizer.js'
import { RolloutLog } from '../../lib/recipes/rollout_log.js'
import type { Device } from '../../lib/runtime/index.js'
import { keep } from '../../lib/tensor/index.js'
import type { StepEvent } from '../../lib/train/events.js'
import { runStage, type StageSettings } from '../../lib/train/run_stage.js'
import { hashOf, smallModel } from '../train/small_runs.js'

const sizes = { V: 40, D: 16, L: 2, H: 2, F: 32 }
const END = 2

const folders: string[] = []
afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true, force: true })
})
async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'caravan-rollouts-'))
  folders.push(folder)
  return folder
}

const prompts = (rollout: number): RolloutPrompt[] =>
  Array.from({ length: 6 }, (_, i) => {
    const random = new Random(5, rollout * 8 + i)
    return { ids: Int32Array.from({ length: 3 + (i % 4) }, () => random.integer(3, sizes.V)) }
  })

/** Worth the share of tokens below 20. */
const lowTokens: Judge<RolloutPrompt> = {
  judge: async (_, answers) =>
    answers.map(({ tokens }) => {
      const score = tokens.reduce((sum, token) => sum + Number(token < 20), 0) / tokens.length
      return { reward: score, score, reason: '', text: '' }
    }),
}

const online: OnlineOptions<RolloutPrompt> = {
  prompts,
  judge: lowTokens,
  samplesPerPrompt: 4,
  maxNewTokens: 9,
  temperature: 1,
  stopIds: [END],
  seed: 3,
  slots: 16,
  rollouts: 4,
  updateEpochs: 1,
  miniBatches: 2,
  average: 'token',
  microBatchTokens: 64,
  activationCheckpointing: 'none',
  maxSteps: 0,
  surrogate: 'clip',
  clipLow: 0.2,
  clipHigh: 0.2,
  ratioCap: 0,
  lossKl: 'k3',
  lossKlCoefficient: 0.01,
}
const grpo: GrpoOptions<RolloutPrompt> = {
  ...online,
  advantage: 'standard',
  filterZeroVariance: true,
  maskTruncated: false,
}
const ppo: PpoOptions<RolloutPrompt> = {
  ...online,
  lossKl: 'none',
  samplesPerPrompt: 2,
  gamma: 1,
  lambda: 0.95,
  rewardKl: 'k1',
  rewardKlCoefficient: 0.01,
  rewardAfterEnd: false,
  whitenAdvantages: true,
  clipValue: 0.2,
  valueWeight: 0.5,
}

function valueModel(device: Device): RewardModel {
  using body = smallModel(device, sizes)
  let stream = 0
  const model = new RewardModel(({ name, shape, role }) => {
    const random = { deviation: 0.1, seed: 9, stream: stream++, dtype: 'f32' } as const
    if (name === 'score.weight') return keep(fill(device, shape, { value: 0, dtype: 'f32' }))
    return keep(role === 'norm' ? fill(device, shape, { value: 1, dtype: 'f32' }) : randomNormal(device, shape, random))
  }, body.config)
  model.setTrainable(true)
  return model
}

const adam = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0 }
const settings: StageSettings = {
  lr: 3e-3,
  schedule: { kind: 'constant', warmupSteps: 0 },
  maxNorm: 1,
  maxSkippedInARow: 3,
  checkpointEvery: 0,
  keepCheckpoints: 3,
  evaluateEvery: 0,
}

interface Given {
  algorithm: 'ppo' | 'grpo'
  options?: Partial<PpoOptions<RolloutPrompt>> & Partial<GrpoOptions<RolloutPrompt>>
  threads?: number
  dtype?: 'f32' | 'bf16'
  /** Answers come from a copy that is one rollout old. */
  async?: boolean
  /** Run folder; without one nothing is kept. */
  folder?: string
  stage?: Partial<StageSettings>
  resume?: boolean
  stopAfter?: number
  onStep?: (step: StepEvent) => void
}

interface Outcome {
  steps: StepEvent[]
  /** Hash of all trained weights. */
  weights: string
  error: CaravanError | undefined
}

/** Trains in a device of its own, whose counters must be 0 in the end. */
async function trained(given: Given): Promise<Outcome> {
  const { algorithm, options = {}, threads = 2, dtype = 'f32', folder, stopAfter } = given
  const device = openDevice({ threads })
  const models: OnlineModels & { policy: CausalLm } = {
    policy: smallModel(device, sizes, { dtype }),
    reference: smallModel(device, sizes, { dtype }),
    ...(algorithm === 'ppo' ? { value: valueModel(device) } : {}),
    ...(given.async ? { behaviour: smallModel(device, sizes, { dtype, seed: 77 }) } : {}),
  }
  for (const frozen of [models.reference, models.behaviour]) frozen?.setTrainable(false)
  const policy = new AdamW(models.policy.parameters(), adam)
  const optimizer = models.value
    ? new JointOptimizer([
        { name: 'policy', optimizer: policy, lrRatio: 1 },
        { name: 'value', optimizer: new AdamW(models.value.parameters(), adam), lrRatio: 3 },
      ])
    : policy
  const stop = new AbortController()
  const store = folder === undefined ? undefined : new RolloutLog(join(folder, 'rollouts'))
  const { behaviour } = models
  const all = {
    ...options,
    store,
    stop: stop.signal,
    refresh: behaviour && (() => copyWeights(models.policy, behaviour)),
  }
  const method = algorithm === 'ppo' ? new Ppo({ ...ppo, ...all }) : new Grpo({ ...grpo, ...all })
  const parameters = new Map([
    ...models.policy.parameters(),
    ...[...(models.value?.parameters() ?? [])].map(([name, tensor]) => [`value.${name}`, tensor] as const),
  ])
  const steps: StepEvent[] = []
  let error: CaravanError | undefined
  try {
    for await (const event of runStage({
      stage: 'rlvr',
      device,
      method,
      models,
      parameters,
      optimizer,
      saved: behaviour ? { behaviour: behaviour.parameters() } : {},
      settings: { ...settings, ...given.stage },
      directory: folder ?? (await temporaryFolder()),
      resume: given.resume ?? false,
      flopsPerToken: 1,
      stop: stop.signal,
    })) {
      if (event.type !== 'step') continue
      steps.push(event)
      given.onStep?.(event)
      if (event.step === stopAfter) stop.abort()
    }
  } catch (caught) {
    error = caught as CaravanError
  }
  const weights = await hashOf(parameters)
  optimizer.dispose()
  for (const model of Object.values(models)) model?.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  return { steps, weights, error }
}

const metric = (steps: readonly StepEvent[], name: string) => steps.map(({ metrics }) => metrics[name]!)
const rewards = (steps: readonly StepEvent[]) => metric(steps, 'objective/reward')

describe.each(['ppo', 'grpo'] as const)('%s', (algorithm) => {
  it('learns what is rewarded', async () => {
    const { steps } = await trained({
      algorithm,
      options: { rollouts: 25, samplesPerPrompt: 8, lossKlCoefficient: 0, rewardKlCoefficient: 0 },
    })
    const [first, last] = [rewards(steps)[0]!, rewards(steps).at(-1)!]
    expect(first).toBeLessThan(0.7)
    expect(last).toBeGreaterThan(first + 0.2)
    expect(metric(steps, 'objective/kl').at(-1)).toBeGreaterThan(0.1)
  })

  it.each([
    ['f32', 1],
    ['f32', 3],
    ['bf16', 2],
  ] as const)('samples with the log-probabilities that it trains on, %s on %i threads', async (dtype, threads) => {
    const { steps } = await trained({ algorithm, dtype, threads, options: { rollouts: 3 } })
    expect(metric(steps, 'rollout/logprob_diff_max')).toEqual(steps.map(() => 0))
    expect(metric(steps, 'policy/ratio')[0]).toBeCloseTo(1, 6)
    expect(new Set(metric(steps, 'policy/ratio')).size).toBeGreaterThan(1)
  })

  it('has the same bits on 1, 2 and 3 threads', async () => {
    const runs = await Promise.all([1, 2, 3].map((threads) => trained({ algorithm, threads })))
    expect(new Set(runs.map(({ weights }) => weights)).size).toBe(1)
  })

  it('has the same gradients however its answers are divided into rows', async () => {
    const [whole, parts] = await Promise.all(
      [4096, 24].map((microBatchTokens) => trained({ algorithm, options: { microBatchTokens, rollouts: 1 } })),
    )
    for (const [i, step] of whole!.steps.entries()) {
      expect(parts!.steps[i]!.loss).toBeCloseTo(step.loss, 5)
      expect(parts!.steps[i]!.gradientNorm / step.gradientNorm).toBeCloseTo(1, 4)
    }
  })

  it.each([1, 2, 3, 4, 5])('stopped after step %i and resumed, ends with the same bits', async (stopAfter) => {
    const options = { updateEpochs: 2, rollouts: 3, maxSteps: 7 }
    const whole = await trained({ algorithm, options })
    const folder = await temporaryFolder()
    const stopped = await trained({ algorithm, options, folder, stopAfter })
    expect(stopped.error).toMatchObject({ code: 'ERR_ABORTED' })
    const rest = await trained({ algorithm, options, folder, resume: true })
    expect(rest.error).toBeUndefined()
    expect([...stopped.steps, ...rest.steps].map(comparable)).toEqual(whole.steps.map(comparable))
    expect(rest.weights).toBe(whole.weights)
  })

  it('one rollout off-policy: repeats, resumes, and says how old the answers are', async () => {
    const options = { rollouts: 4 }
    const whole = await trained({ algorithm, options, async: true })
    expect(metric(whole.steps, 'rollout/staleness_steps')).toEqual([0, 0, 2, 2, 2, 2, 2, 2])
    expect(metric(whole.steps, 'rollout/logprob_diff_max')).toEqual(whole.steps.map(() => 0))
    // The second rollout is by the same weights as the first, the third by those after one.
    expect(metric(whole.steps, 'policy/ratio')[2]).not.toBeCloseTo(1, 6)
    for (const stopAfter of [2, 3]) {
      const folder = await temporaryFolder()
      const stopped = await trained({ algorithm, options, folder, async: true, stopAfter })
      expect(stopped.error).toMatchObject({ code: 'ERR_ABORTED' })
      // What was begun beside the training is made again, by the same copy.
      for (const number of [3, 4].concat(stopAfter === 2 ? 2 : [])) {
        await rm(join(folder, 'rollouts', `rollout-00000${number}.jsonl`), { force: true })
      }
      const rest = await trained({ algorithm, options, folder, async: true, resume: true })
      expect(rest.weights).toBe(whole.weights)
    }
  })
})

/** What must not change when a run is stopped and resumed: all but times. */
const comparable = ({ step, loss, gradientNorm, metrics }: StepEvent) => ({
  step,
  loss,
  gradientNorm,
  metrics: Object.fromEntries(Object.entries(metrics).filter(([name]) => !name.startsWith('time/'))),
})

describe('a rollout that is partly trained on', () => {
  it('cannot be made again: its log must be there', async () => {
    const folder = await temporaryFolder()
    const options = { rollouts: 2 }
    await trained({ algorithm: 'grpo', options, folder, stopAfter: 1 })
    await rm(join(folder, 'rollouts'), { recursive: true })
    const { error } = await trained({ algorithm: 'grpo', options, folder, resume: true })
    expect(error).toMatchObject({
      code: 'ERR_CHECKPOINT_CORRUPT',
      message: 'rollout 1 is partly trained on, but of its 6 groups the rollout log has 0',
    })
  })

  it('is not generated again where its log is there', async () => {
    const folder = await temporaryFolder()
    await trained({ algorithm: 'grpo', options: { rollouts: 2 }, folder, stopAfter: 1 })
    const judge = { judge: () => Promise.reject(new Error('judged again')) }
    const { steps } = await trained({ algorithm: 'grpo', options: { rollouts: 1, judge }, folder, resume: true })
    expect(steps.map(({ step }) => step)).toEqual([2])
  })
})

describe('grpo', () => {
  /** Every answer of the first prompts is worth 1, the others by their tokens. */
  const mixed: Judge<RolloutPrompt> = {
    judge: async (prompt, answers) =>
      prompt.ids.length < 5
        ? answers.map(() => ({ reward: 1, score: 1, reason: '', text: '' }))
        : await lowTokens.judge(prompt, answers),
  }

  it('leaves out groups whose answers are all worth the same, which changes no gradient', async () => {
    const options = { judge: mixed, rollouts: 1, miniBatches: 1, lossKlCoefficient: 0, average: 'constant' as const }
    const [without, all] = await Promise.all(
      [true, false].map((filterZeroVariance) =>
        trained({ algorithm: 'grpo', options: { ...options, filterZeroVariance } }),
      ),
    )
    expect(metric(without!.steps, 'rollout/trained_groups')).toEqual([2])
    expect(metric(all!.steps, 'rollout/trained_groups')).toEqual([6])
    expect(metric(all!.steps, 'rollout/mixed_groups')[0]).toBeCloseTo(2 / 6)
    // The same sum, over the answers that are left.
    expect(all!.steps[0]!.gradientNorm * 3).toBeCloseTo(without!.steps[0]!.gradientNorm, 4)
  })

  it('takes an empty step when nothing is left', async () => {
    const judge = {
      judge: async (_: unknown, answers: readonly unknown[]) =>
        answers.map(() => ({ reward: 1, score: 1, reason: '', text: '' })),
    }
    const { steps, error } = await trained({ algorithm: 'grpo', options: { judge, rollouts: 1 } })
    expect(error).toBeUndefined()
    expect(steps.map(({ loss, gradientNorm, skipped }) => ({ loss, gradientNorm, skipped }))).toEqual([
      { loss: 0, gradientNorm: 0, skipped: false },
      { loss: 0, gradientNorm: 0, skipped: false },
    ])
  })

  it('masks truncated answers after their rewards have entered the advantages', async () => {
    const options = { rollouts: 1, miniBatches: 1, lossKlCoefficient: 0, stopIds: [0, 1, 2, 3] }
    const [masked, all] = await Promise.all(
      [true, false].map((maskTruncated) => trained({ algorithm: 'grpo', options: { ...options, maskTruncated } })),
    )
    const ended = metric(all!.steps, 'rollout/ended')[0]!
    expect(ended).toBeGreaterThan(0.2)
    expect(ended).toBeLessThan(1)
    expect(metric(masked!.steps, 'objective/reward')).toEqual(metric(all!.steps, 'objective/reward'))
    expect(masked!.steps[0]!.gradientNorm).not.toBeCloseTo(all!.steps[0]!.gradientNorm, 3)
  })

  it.each(['token', 'sequence', 'constant'] as const)('averages by %s', async (average) => {
    const groups: { rewards: number[]; lengths: number[] }[] = []
    const judge: Judge<RolloutPrompt> = {
      async judge(prompt, answers) {
        const judged = await lowTokens.judge(prompt, answers)
        groups.push({
          rewards: judged.map(({ reward }) => reward),
          lengths: answers.map(({ tokens }) => tokens.length),
        })
        return judged
      },
    }
    const stopIds = [0, 1, 2, 3, 4, 5]
    const { steps } = await trained({
      algorithm: 'grpo',
      options: { judge, average, stopIds, rollouts: 1, miniBatches: 1, lossKlCoefficient: 0, advantage: 'mean' },
    })
    // On-policy every ratio is 1: the objective is what a token counts times its advantage.
    let [sum, tokens, answers] = [0, 0, 0]
    for (const { rewards, lengths } of groups) {
      const mean = rewards.reduce((total, reward) => total + reward, 0) / rewards.length
      for (const [i, reward] of rewards.entries()) {
        sum -= (reward - mean) * (average === 'sequence' ? 1 : lengths[i]!)
        tokens += lengths[i]!
        answers++
      }
    }
    expect(new Set(groups.flatMap(({ lengths }) => lengths)).size).toBeGreaterThan(3)
    const count = { token: tokens, sequence: answers, constant: answers * grpo.maxNewTokens }[average]
    expect(metric(steps, 'policy/loss')[0]).toBeCloseTo(sum / count, 5)
  })

  it('draws other answers to the same prompts in every rollout', async () => {
    const options = { prompts: () => prompts(0), rollouts: 3, miniBatches: 1 }
    const { steps } = await trained({ algorithm: 'grpo', options, stage: { lr: 0 } })
    expect(new Set(rewards(steps)).size).toBe(3)
  })

  it('refuses single answers, which cannot be compared', () => {
    expect(() => new Grpo({ ...grpo, samplesPerPrompt: 1 })).toThrowError(
      expect.objectContaining({ code: 'ERR_CONFIG', message: expect.stringContaining('at least 2') }),
    )
  })
})

describe('ppo', () => {
  it('values come to explain returns that the prompt decides', async () => {
    const judge: Judge<RolloutPrompt> = {
      judge: async ({ ids }, answers) =>
        answers.map(() => ({ reward: Number(ids.at(-1)! < 20), score: 1, reason: '', text: '' })),
    }
    const { steps } = await trained({
      algorithm: 'ppo',
      options: { judge, prompts: () => prompts(0), rollouts: 25, clipValue: 0 },
    })
    const explained = metric(steps, 'value/explained_variance')
    expect(explained[0]).toBeLessThan(0.05)
    expect(explained.at(-1)).toBeGreaterThan(0.5)
  })

  it('whitens advantages, so that the size of rewards does not matter', async () => {
    const scaled = (factor: number): Judge<RolloutPrompt> => ({
      judge: async (prompt, answers) =>
        (await lowTokens.judge(prompt, answers)).map((one) => ({ ...one, reward: factor * one.reward })),
    })
    const norms = async (whitenAdvantages: boolean) => {
      const options = { whitenAdvantages, rollouts: 1, miniBatches: 1, rewardKlCoefficient: 0 }
      const runs = await Promise.all(
        [1, 100].map((factor) => trained({ algorithm: 'ppo', options: { ...options, judge: scaled(factor) } })),
      )
      return runs.map(({ steps }) => steps[0]!.gradientNorm)
    }
    const [small, large] = await norms(true)
    expect(large! / small!).toBeCloseTo(1, 4)
    const [plain, hundredfold] = await norms(false)
    expect(hundredfold! / plain!).toBeCloseTo(100, 1)
  })

  it('may lay the reward on the state after the end', async () => {
    const options = { rollouts: 2, rewardAfterEnd: true, stopIds: Array.from({ length: 12 }, (_, i) => i) }
    const { steps, error } = await trained({ algorithm: 'ppo', options })
    expect(error).toBeUndefined()
    expect(metric(steps, 'value/return_mean')[0]).toBeGreaterThan(0)
  })

  it('refuses a discount that is none', () => {
    expect(() => new Ppo({ ...ppo, gamma: 1.5 })).toThrowError(/gamma must be in \[0, 1\]; got 1.5/)
  })
})
