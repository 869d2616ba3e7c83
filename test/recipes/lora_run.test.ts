// Stages that train an adapter: what they save, how they are continued, and what their plan says.
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { openSafetensors } from '../../lib/data/safetensors.js'
import { loadAdapter, loadModel, loadRewardModel, mergeAdapter, saveModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import { planRun, type RunOptions } from '../../lib/recipes/run.js'
import { tulu3 } from '../../lib/recipes/tulu3.js'
import { leakedTensors } from '../train/small_runs.js'
import { chats, eventsOf, hashOfFile, lossRows, modelFolder, outcomeOf, sftRun, writeLines } from './small_run.js'

// Seconds on a quiet machine; a busy one takes its time.
vi.setConfig({ testTimeout: 240_000 })

let root: string
let number = 0
let directory: string
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-lora-'))
})
beforeEach(() => {
  directory = join(root, `run-${number++}`)
})
afterAll(async () => {
  rmSync(root, { recursive: true, force: true })
  expect(await leakedTensors()).toBe(0)
})

const lora = { 'sft.lora.rank': '4', 'sft.lora.alpha': '8', 'sft.lora.dropout': '0.1', 'sft.lr': '1e-2' }
const rows = chats(24)
/** 40 wide, 2 layers: q, k, v, o of 40 (4 heads), gate, up and down to 96. */
const parametersOfRank4 = 2 * 4 * (4 * 80 + 3 * 136)

const loraRun = (folder: string, changed: Partial<RunOptions> = {}) =>
  sftRun(folder, rows, { ...changed, overrides: { ...lora, ...changed.overrides } })

/** SHA-256 of what a finished run has trained: adapter and merged weights. */
const resultOf = (folder: string) =>
  ['adapter/adapter_model.safetensors', 'model.safetensors'].map((name) => hashOfFile(folder, 'sft', name))

async function wholeRun(name: string, changed: Partial<RunOptions> = {}): Promise<string> {
  const folder = join(root, name)
  if (!existsSync(folder)) expect((await outcomeOf(loraRun(folder, changed))).error).toBeUndefined()
  return folder
}

describe('a stage with an adapter', () => {
  it('saves the adapter, and a model that is the base with the adapter merged', async () => {
    const { events, error } = await outcomeOf(loraRun(directory))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'stage')[0]).toMatchObject({ parameters: parametersOfRank4, totalSteps: 4 })
    expect(eventsOf(events, 'note')[0]?.text).toBe(
      'an adapter of rank 4 in 14 layers: 5824 numbers are trained, for a model of 50360',
    )
    const losses = eventsOf(events, 'step').map(({ loss }) => loss)
    expect(losses.at(-1)).toBeLessThan(losses[0]!)
    expect(readdirSync(join(directory, 'sft', 'adapter')).sort()).toEqual([
      'adapter_config.json',
      'adapter_model.safetensors',
    ])
    const json = JSON.parse(readFileSync(join(directory, 'sft/adapter/adapter_config.json'), 'utf8'))
    expect(json).toMatchObject({ r: 4, lora_alpha: 8, lora_dropout: 0.1, base_model_name_or_path: modelFolder })
    using device = openDevice({ threads: 1 })
    using model = await loadModel(device, modelFolder)
    await loadAdapter(model, join(directory, 'sft', 'adapter'))
    await mergeAdapter(model)
    const merged = join(root, 'merged')
    await saveModel(model, merged)
    expect(hashOfFile(merged, 'model.safetensors')).toBe(hashOfFile(directory, 'sft', 'model.safetensors'))
    expect(hashOfFile(merged, 'model.safetensors')).not.toBe(hashOfFile(modelFolder, 'model.safetensors'))
  })

  it('has checkpoints of the adapter alone, which name the base by its hash', async () => {
    const whole = await wholeRun('whole')
    const checkpoint = join(whole, 'checkpoints/sft/step-2')
    const model = await openSafetensors(join(checkpoint, 'model.safetensors'))
    const optimizer = await openSafetensors(join(checkpoint, 'optimizer.safetensors'))
    expect([...model.tensors.keys()].every((name) => /\.lora_[AB]\.weight$/.test(name))).toBe(true)
    expect([model.tensors.size, optimizer.tensors.size]).toEqual([28, 56])
    const { batches } = JSON.parse(readFileSync(join(checkpoint, 'state.json'), 'utf8'))
    expect(batches.base).toEqual({ directory: modelFolder, sha256: expect.stringMatching(/^[0-9a-f]{64}$/) })
    expect(batches.dropoutPasses).toBeGreaterThanOrEqual(2)
  })

  it('goes on from one to the same bits, with other threads', async () => {
    const whole = await wholeRun('whole')
    const left = await outcomeOf(loraRun(directory), { leave: (event) => event.type === 'step' && event.step === 3 })
    expect(left.error).toBeUndefined()
    const { events, error } = await outcomeOf({ ...loraRun(directory), resume: true, threads: 1 })
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'stage')[0]?.resumedFrom).toBe(2)
    expect(resultOf(directory)).toEqual(resultOf(whole))
    expect(await lossRows(directory)).toEqual(await lossRows(whole))
  })

  it('does not go on from one with another base in the place of the old one', async () => {
    const base = join(root, 'base')
    cpSync(modelFolder, base, { recursive: true })
    const options = loraRun(directory, { model: base })
    await outcomeOf(options, { leave: (event) => event.type === 'step' && event.step === 3 })
    cpSync(join(await wholeRun('whole'), 'sft', 'model.safetensors'), join(base, 'model.safetensors'))
    const { error } = await outcomeOf({ ...options, resume: true })
    expect(error).toMatchObject({
      code: 'ERR_CONFIG',
      message: expect.stringMatching(/trained on another model: .*base had SHA-256 [0-9a-f]{64}, .* has [0-9a-f]{64}/),
    })
  })

  it.each(['selective', 'full'])(
    'has the same bits with activations computed again, dropout included: %s',
    async (mode) => {
      const whole = await wholeRun('whole')
      const { error } = await outcomeOf(loraRun(directory, { overrides: { 'sft.activationCheckpointing': mode } }))
      expect(error).toBeUndefined()
      expect(resultOf(directory)).toEqual(resultOf(whole))
    },
  )
})

describe('settings of an adapter', () => {
  it.each([
    ['sft.lora.rnk', '4', /no setting 'lora\.rnk'; known: .*lora\.rank/, "did you mean 'lora.rank'?"],
    ['sft.lora', '4', /no setting 'lora'/, expect.stringContaining("did you mean 'lora.rank', 'lora.alpha', ")],
    ['sft.lora.rank', '1.5', /sft\.lora\.rank must be a whole number, got 1\.5/, undefined],
    ['sft.lora.rank', '-1', /sft\.lora\.rank must not be negative/, undefined],
    ['sft.lora.rsLora', '1', /sft\.lora\.rsLora must be true or false/, undefined],
    ['sft.lora.alpha', '0', /LoRA: alpha must be a number > 0; got 0/, undefined],
    ['sft.lora.dropout', '1', /LoRA: dropout must be at least 0 and below 1; got 1/, undefined],
    ['sft.lora.targetModules', 'q_proj,vproj', /no linear layer is named 'vproj'/, "did you mean 'v_proj'?"],
  ])('%s=%s is refused, in the plan and in the run', async (path, text, message, hint) => {
    const options = loraRun(directory, { overrides: { [path]: text } })
    const fault = { code: 'ERR_CONFIG', message: expect.stringMatching(message), hint }
    await expect(planRun(tulu3(), options)).rejects.toMatchObject(fault)
    expect((await outcomeOf(options)).error).toMatchObject(fault)
  })

  it('are part of the plan: what is trained, with which memory and work', async () => {
    const [adapted, full] = await Promise.all([
      planRun(tulu3(), loraRun(directory)),
      planRun(tulu3(), sftRun(directory, rows)),
    ])
    const [one, all] = [adapted.stages[0]!, full.stages[0]!]
    expect([one.trainedParameters, one.parameters]).toEqual([parametersOfRank4, all.parameters])
    expect(all.trainedParameters).toBe(all.parameters)
    const bytes = (stage: typeof one, part: string) => stage.memory.find(({ name }) => name === part)!.bytes
    expect(bytes(one, 'optimizer')).toBe(8 * parametersOfRank4)
    expect(bytes(one, 'gradients')).toBe(4 * parametersOfRank4)
    expect(bytes(one, 'weights')).toBe(bytes(all, 'weights') + 4 * parametersOfRank4)
    expect(one.flops!).toBeLessThan(all.flops!)
    expect(one.settings['lora.rank']).toBe(4)
    expect([one.origins['lora.rank'], one.origins['lora.rsLora']]).toEqual(['flag', 'default'])
  })
})

describe('stages on pairs', () => {
  const pairs = Array.from({ length: 16 }, (_, i) => ({
    prompt: `Say ${i}.`,
    chosen: `${i}, as you wish.`,
    rejected: `No, ${i} not.`,
  }))

  /** The run of one stage with an adapter and dropout: four steps. */
  function pairRun(stage: 'dpo' | 'reward_model', folder: string, changed: Partial<RunOptions> = {}): RunOptions {
    const settings = { steps: 4, batchSequences: 4, maxTokens: 400, checkpointEvery: 2, lr: 1e-2, warmupRatio: 0 }
    const overrides = { ...settings, 'lora.rank': 2, 'lora.alpha': 4, 'lora.dropout': 0.1 }
    return {
      directory: folder,
      model: modelFolder,
      data: [writeLines(join(root, 'pairs.jsonl'), pairs)],
      stages: [stage],
      overrides: Object.fromEntries(Object.entries(overrides).map(([key, value]) => [`${stage}.${key}`, `${value}`])),
      ...changed,
    }
  }

  /** Runs it in one go, and in two with a resume between; returns the folder of the whole one. */
  async function twice(stage: 'dpo' | 'reward_model') {
    const whole = join(root, `${stage}-whole`)
    const { events, error } = await outcomeOf(pairRun(stage, whole))
    expect(error).toBeUndefined()
    await outcomeOf(pairRun(stage, directory), { leave: (event) => event.type === 'step' && event.step === 3 })
    const rest = await outcomeOf({ ...pairRun(stage, directory), resume: true, threads: 1 })
    expect(rest.error).toBeUndefined()
    expect(eventsOf(rest.events, 'stage')[0]?.resumedFrom).toBe(2)
    for (const file of ['adapter/adapter_model.safetensors', 'model.safetensors']) {
      expect(hashOfFile(directory, stage, file), file).toBe(hashOfFile(whole, stage, file))
    }
    return { whole, events }
  }

  it('DPO starts out as its reference, which is the base, and learns', async () => {
    const overrides = { ...pairRun('dpo', directory).overrides, 'dpo.lora.dropout': '0', 'dpo.warmupRatio': '0.5' }
    const plain = await outcomeOf(pairRun('dpo', join(root, 'dpo-plain'), { overrides }))
    expect(plain.error).toBeUndefined()
    const [first, ...others] = eventsOf(plain.events, 'step')
    // Nothing but a sigmoid of zero: the policy is its reference to rounding.
    expect(first!.loss).toBeCloseTo(Math.LN2, 4)
    expect(others.at(-1)!.loss).toBeLessThan(0.9 * Math.LN2)
    const { events } = await twice('dpo')
    expect(eventsOf(events, 'step').at(-1)!.loss).toBeLessThan(Math.LN2)
  })

  it('a reward model trains its head with the adapter, and stores both', async () => {
    const { whole } = await twice('reward_model')
    const folder = join(whole, 'reward_model')
    const { tensors } = await openSafetensors(join(folder, 'adapter', 'adapter_model.safetensors'))
    expect(tensors.has('base_model.model.score.weight')).toBe(true)
    expect(tensors.size).toBe(28 + 1)
    const json = JSON.parse(readFileSync(join(folder, 'adapter/adapter_config.json'), 'utf8'))
    expect(json).toMatchObject({ task_type: 'SEQ_CLS', modules_to_save: ['score'] })
    using device = openDevice({ threads: 1 })
    using merged = await loadRewardModel(device, folder)
    // The adapter on another head: the stored one takes its place.
    using fresh = await loadRewardModel(device, modelFolder, { head: () => ({ seed: 5, deviation: 1 }) })
    await loadAdapter(fresh, join(folder, 'adapter'))
    await mergeAdapter(fresh)
    const wanted = merged.parameters()
    for (const [name, tensor] of fresh.parameters()) {
      expect(Buffer.from((await tensor.read()).buffer), name).toEqual(
        Buffer.from((await wanted.get(name)!.read()).buffer),
      )
    }
  })
})
