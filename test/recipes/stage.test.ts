// Settings of a stage: defaults, recipe and overrides in that order, with types, nearest names and origins.
import { describe, expect, it } from 'vitest'
import {
  checkOverrideStages,
  type PretrainSettings,
  pretrainDefaults,
  resolveStage,
  type SftSettings,
  type StageRecipe,
  sftDefaults,
} from '../../lib/recipes/stage.js'
import { tulu3 } from '../../lib/recipes/tulu3.js'

const sft: StageRecipe = { name: 'sft', kind: 'sft', settings: { lr: 1e-3, maxTokens: 160 } }
const base: StageRecipe = { name: 'base', kind: 'pretrain', settings: {} }

const resolved = (overrides: { [path: string]: string }) =>
  resolveStage(sft, overrides) as { values: SftSettings; origins: { [key: string]: string } }

describe('resolveStage', () => {
  it('takes each value from the strongest source, and says which that was', () => {
    const { values, origins } = resolved({ 'sft.lr': '2e-5' })
    expect([values.lr, origins.lr]).toEqual([2e-5, 'flag'])
    expect([values.maxTokens, origins.maxTokens]).toEqual([160, 'recipe'])
    expect([values.beta1, origins.beta1]).toEqual([0.9, 'default'])
    expect(Object.keys(origins).sort()).toEqual(Object.keys(sftDefaults).sort())
  })

  it('takes no notice of the settings of other stages, and leaves defaults and recipe as they were', () => {
    const before = JSON.stringify([sftDefaults, pretrainDefaults, sft])
    const { values } = resolved({ 'base.lr': '9', 'sft.fields.prompt': 'question', 'sft.data': 'a,b' })
    expect(values.lr).toBe(1e-3)
    expect(JSON.stringify([sftDefaults, pretrainDefaults, sft])).toBe(before)
  })

  it.each([
    ['sft.lr', '3e-4', 'lr', 3e-4],
    ['sft.lr', ' 0.5 ', 'lr', 0.5],
    ['sft.steps', '0', 'steps', 0],
    ['sft.activationCheckpointing', 'selective', 'activationCheckpointing', 'selective'],
    ['sft.lora.rsLora', 'true', 'lora.rsLora', true],
    ['sft.lora.rsLora', 'false', 'lora.rsLora', false],
    ['sft.packing', 'wrapped', 'packing', 'wrapped'],
    ['sft.reduction', 'sequence_mean_of_sums', 'reduction', 'sequence_mean_of_sums'],
    ['sft.schedule', 'wsd', 'schedule', 'wsd'],
    ['sft.trainOn', 'last', 'trainOn', 'last'],
    ['sft.model', 'models/a=b', 'model', 'models/a=b'],
    ['sft.data', 'a.jsonl,b.jsonl', 'data', ['a.jsonl', 'b.jsonl']],
    ['sft.data', '', 'data', []],
    ['sft.mix', '1000,0.5', 'mix', ['1000', '0.5']],
    ['sft.fields.prompt', 'question', 'fields', { prompt: 'question' }],
  ])('%s = "%s" sets %s', (path, text, key, wanted) => {
    const { values, origins } = resolved({ [path]: text })
    expect(values[key as keyof SftSettings]).toEqual(wanted)
    expect(origins[key]).toBe('flag')
  })

  it('adds field by field to a table', () => {
    const { values } = resolved({ 'sft.fields.prompt': 'question', 'sft.fields.completion': 'answer' })
    expect(values.fields).toEqual({ prompt: 'question', completion: 'answer' })
  })

  it.each([
    ['sft.lr', 'fast', /sft\.lr must be a number/],
    ['sft.lr', '', /sft\.lr must be a number/],
    ['sft.lr', 'NaN', /sft\.lr must be a number/],
    ['sft.lr', 'Infinity', /sft\.lr must be a number/],
    ['sft.lr', '-1', /sft\.lr must not be negative/],
    ['sft.steps', '1.5', /sft\.steps must be a whole number/],
    ['sft.rows', '-3', /sft\.rows must not be negative/],
    ['sft.activationCheckpointing', 'true', /Checkpointing must be one of none, selective, full; got "true"/],
    ['sft.lora.rsLora', 'yes', /must be true or false, got "yes"/],
    ['sft.packing', 'bdf', /sft\.packing must be one of bfd, bfd_split, wrapped, none; got "bdf"/],
    ['sft.reduction', 'mean', /sft\.reduction must be one of token_mean/],
    ['sft.schedule', 'cosin', /sft\.schedule must be one of/],
    ['sft.trainOn', 'first', /sft\.trainOn must be one of all, last/],
    ['sft.fields', 'question', /sft\.fields must be set by field/],
    ['sft.learningRate', '1', /stage sft has no setting 'learningRate'; known: .*\blr\b/],
    ['sft.', '1', /stage sft has no setting ''/],
    ['sft.__proto__', '1', /stage sft has no setting '__proto__'/],
    ['sft.constructor', '1', /stage sft has no setting 'constructor'/],
  ])('%s = "%s" is refused', (path, text, message) => {
    expect(() => resolved({ [path]: text })).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', message: expect.stringMatching(message) }),
    )
  })

  it.each([
    ['sft.batchSequence', 'batchSequences'],
    ['sft.LR', 'lr'],
    ['sft.max_tokens', 'maxTokens'],
    ['sft.weightdecay', 'weightDecay'],
    ['sft.checkpoint', undefined],
  ])('%s suggests %s', (path, nearest) => {
    const hint = nearest && `did you mean '${nearest}'?`
    expect(() => resolved({ [path]: '1' })).toThrow(expect.objectContaining({ hint }))
  })

  it('suggests the nearest word for a setting of words', () => {
    expect(() => resolved({ 'sft.schedule': 'cosin' })).toThrow(
      expect.objectContaining({ hint: "did you mean 'cosine'?" }),
    )
  })

  it('knows the settings of each kind of stage', () => {
    const { values } = resolveStage(base, { 'base.width': '64' }) as { values: PretrainSettings }
    expect(values.width).toBe(64)
    expect(() => resolveStage(base, { 'base.trainOn': 'last' })).toThrow(/no setting 'trainOn'/)
    expect(() => resolved({ 'sft.width': '64' })).toThrow(/no setting 'width'/)
  })

  it('refuses a recipe that sets what does not exist', () => {
    const wrong = { name: 'sft', kind: 'sft', settings: { lrr: 1 } } as unknown as StageRecipe
    expect(() => resolveStage(wrong, {})).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
  })
})

describe('checkOverrideStages', () => {
  it.each([
    ['sfft.lr', "did you mean 'sft.lr'?"],
    ['lr', undefined],
    ['sft', "did you mean 'sft.<setting>'?"],
    ['dpo.lr', undefined],
  ])('refuses %s', (path, hint) => {
    const check = () => checkOverrideStages({ [path]: '1' }, ['base', 'sft'])
    expect(check).toThrow(expect.objectContaining({ code: 'ERR_CONFIG', message: expect.stringContaining(path) }))
    if (hint) expect(check).toThrow(expect.objectContaining({ hint }))
  })

  it('accepts settings of the stages that there are', () => {
    expect(() => checkOverrideStages({ 'sft.lr': '1', 'base.fields.x': '1' }, ['base', 'sft'])).not.toThrow()
  })
})

/** Table of the paper and of open-instruct's commands at 26b732590, written down independently of the recipe. */
const published = {
  '8b': { lr: 5e-6, batchSequences: 128 },
  '70b': { lr: 2e-6, batchSequences: 128, checkpointEvery: 1000, keepCheckpoints: 20 },
  '405b': { lr: 2e-6, batchSequences: 256 },
}

describe('tulu3', () => {
  it.each(Object.entries(published))('%s has the published SFT numbers', (scale, numbers) => {
    const recipe = tulu3({ scale })
    expect(recipe.stages.map(({ name }) => name)).toEqual(['sft', 'dpo', 'reward_model', 'rlvr', 'eval'])
    expect(recipe.dtype).toBe('bf16')
    const { values, origins } = resolveStage(recipe.stages[0]!, {}) as {
      values: SftSettings
      origins: { [key: string]: string }
    }
    expect(values).toMatchObject({
      ...numbers,
      epochs: 2,
      maxTokens: 4096,
      packing: 'none',
      reduction: 'sequence_mean_of_sums',
      schedule: 'linear',
      finalLrRatio: 0,
      warmupRatio: 0.03,
      weightDecay: 0,
      beta1: 0.9,
      beta2: 0.999,
      eps: 1e-8,
      maxNorm: 1,
      template: 'tulu',
      trainOn: 'all',
      zLoss: 0,
    })
    expect(origins.lr).toBe('recipe')
  })

  it.each([
    ['8b', { lr: 5e-7, batchSequences: 128 }],
    ['70b', { lr: 2e-7, batchSequences: 128 }],
    ['405b', { lr: 2e-7, batchSequences: 256 }],
  ])('%s has the published DPO numbers', (scale, numbers) => {
    const stage = tulu3({ scale }).stages.find(({ name }) => name === 'dpo')!
    expect(resolveStage(stage, {}).values).toMatchObject({
      ...numbers,
      loss: 'dpo_norm',
      beta: 5,
      epochs: 1,
      maxTokens: 2048,
      schedule: 'linear',
      warmupRatio: 0.1,
      weightDecay: 0,
      maxNorm: 1,
      trainOn: 'all',
      labelSmoothing: 0,
      referenceFree: false,
    })
  })

  it('every scale has the published reward model, which starts from the SFT model', () => {
    for (const scale of ['8b', '70b', '405b']) {
      const stage = tulu3({ scale }).stages.find(({ name }) => name === 'reward_model')!
      expect(stage.from).toBe('sft')
      expect(resolveStage(stage, {}).values).toMatchObject({
        lr: 3e-6,
        batchSequences: 256,
        epochs: 1,
        maxTokens: 2048,
        warmupRatio: 0,
        eps: 1e-5,
        headScale: 1,
      })
    }
  })

  it.each([
    ['8b', { lr: 3e-7, warmupRatio: 0, klCoefficient: 0.05, promptsPerRollout: 224, maxNewTokens: 2048 }],
    ['70b', { lr: 1e-7, warmupRatio: 0.1, klCoefficient: 0.07, promptsPerRollout: 640, maxNewTokens: 2048 }],
    ['405b', { lr: 1e-7, warmupRatio: 0, klCoefficient: 0.05, promptsPerRollout: 1856, maxNewTokens: 1024 }],
  ])('%s has the published PPO numbers', (scale, numbers) => {
    const stage = tulu3({ scale }).stages.find(({ name }) => name === 'rlvr')!
    expect(stage.from).toBe('dpo')
    expect(resolveStage(stage, {}).values).toMatchObject({
      ...numbers,
      algorithm: 'ppo',
      samplesPerPrompt: 1,
      updateEpochs: 4,
      gamma: 1,
      lambda: 0.95,
      clipLow: 0.2,
      clipHigh: 0.2,
      clipValue: 0.2,
      valueWeight: 0.1,
      verifiedReward: 10,
      unfinishedReward: -10,
      kl: 'k1',
      weightDecay: 0.01,
      temperature: 1,
      rewardAfterEnd: true,
    })
  })

  it('8b has the GRPO numbers of Tulu 3.1', () => {
    const stage = tulu3({ scale: '8b', algorithm: 'grpo' }).stages.find(({ name }) => name === 'rlvr')!
    expect(resolveStage(stage, {}).values).toMatchObject({
      algorithm: 'grpo',
      lr: 5e-7,
      schedule: 'constant',
      klCoefficient: 0.01,
      kl: 'k3',
      samplesPerPrompt: 16,
      promptsPerRollout: 48,
      miniBatches: 2,
      updateEpochs: 1,
      unfinishedReward: 0,
      advantage: 'standard',
    })
  })

  it('pocket brings its own base model, in f32', () => {
    const { stages, dtype } = tulu3()
    expect(stages.map(({ name, kind }) => [name, kind])).toEqual([
      ['base', 'pretrain'],
      ['sft', 'sft'],
      ['dpo', 'dpo'],
      ['reward_model', 'reward_model'],
      ['rlvr', 'rlvr'],
      ['eval', 'eval'],
    ])
    expect(dtype).toBe('f32')
    for (const stage of stages) expect(() => resolveStage(stage, {})).not.toThrow()
  })

  it('names the nearest scale', () => {
    expect(() => tulu3({ scale: 'poket' })).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', hint: "did you mean 'pocket'?" }),
    )
  })
})
