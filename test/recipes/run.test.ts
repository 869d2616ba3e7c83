// run(): stages chained, models and data files, and runs that are continued.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { loadModel, loadRewardModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { RunOptions } from '../../lib/recipes/run.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { leakedTensors } from '../train/small_runs.js'
import {
  chats,
  eventsOf,
  hashOfFile,
  lossRows,
  modelFolder,
  outcomeOf,
  schoolProblems,
  sftRun,
  tinyPocket,
  writeLines,
} from './small_run.js'

// Seconds on a quiet machine; a busy one takes its time.
vi.setConfig({ testTimeout: 240_000 })

let root: string
let number = 0
let directory: string
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-run-'))
})
beforeEach(() => {
  directory = join(root, `run-${number++}`)
})
afterAll(async () => {
  rmSync(root, { recursive: true, force: true })
  expect(await leakedTensors()).toBe(0)
})

const trained = ['base', 'sft', 'dpo', 'reward_model', 'rlvr'] as const
const stages = [...trained, 'eval'] as const

describe('the pocket recipe', () => {
  it('chains its stages, and leaves a run folder that says everything', async () => {
    const { events, error } = await outcomeOf({ directory, overrides: tinyPocket })
    expect(error).toBeUndefined()
    expect(events[0]).toMatchObject({ type: 'run', recipe: 'tulu3', scale: 'pocket', stages: [...stages] })
    expect(eventsOf(events, 'stage').map(({ stage, totalSteps }) => [stage, totalSteps])).toEqual([
      ['base', 6],
      ['sft', 6],
      ['dpo', 4],
      ['reward_model', 4],
      ['rlvr', 4],
    ])
    expect(eventsOf(events, 'saved').map(({ directory: folder }) => folder)).toEqual(
      stages.map((stage) => join(directory, stage)),
    )
    expect(events.at(-1)).toMatchObject({ type: 'done', directory })
    for (const file of ['recipe.json', 'metrics.jsonl', 'samples.jsonl', 'report.html', 'checkpoints', ...stages]) {
      expect(existsSync(join(directory, file)), file).toBe(true)
    }
    expect(readdirSync(directory).filter((name) => name.includes('.tmp'))).toEqual([])
    const record = JSON.parse(readFileSync(join(directory, 'recipe.json'), 'utf8'))
    const base = record.stages[0]
    expect([base.settings.width, base.origins.width]).toEqual([32, 'flag'])
    expect([base.settings.lr, base.origins.lr]).toEqual([3e-3, 'recipe'])
    expect([base.settings.beta1, base.origins.beta1]).toEqual([0.9, 'default'])
    expect((await lossRows(directory)).length).toBe(24)
    expect(existsSync(join(directory, 'rlvr', 'value', 'model.safetensors'))).toBe(true)
    const [comparison] = eventsOf(events, 'comparison')
    expect(Object.keys(comparison!.metrics)).toEqual(['base', 'sft', 'dpo', 'rlvr'])
    expect(Object.keys(comparison!.answers[9]!.byStage)).toEqual(['base', 'sft', 'dpo', 'rlvr'])
    expect(readFileSync(join(directory, 'report.html'), 'utf8')).toContain('answered by each stage')
    await expectSavedModels(directory)
  })

  it('resumed after its first stage does that stage not again, and ends with the same model and rows', async () => {
    const whole = join(root, 'whole')
    await outcomeOf({ directory: whole, overrides: tinyPocket })
    const before = await outcomeOf(
      { directory, overrides: tinyPocket },
      { leave: (event) => event.type === 'step' && event.stage === 'sft' && event.step === 4 },
    )
    expect(before.error).toBeUndefined()
    // Leftovers of a process that was killed while it saved.
    mkdirSync(join(directory, 'sft.tmp-999999'))
    writeFileSync(join(directory, '.metrics.jsonl.tmp-999999-0-0'), 'half')
    const { events, error } = await outcomeOf({ directory, overrides: tinyPocket, resume: true, threads: 1 })
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'note')[0]?.text).toContain('is finished')
    expect(eventsOf(events, 'stage').map(({ stage, resumedFrom }) => [stage, resumedFrom])).toEqual([
      ['sft', 3],
      ['dpo', undefined],
      ['reward_model', undefined],
      ['rlvr', undefined],
    ])
    for (const stage of trained) {
      expect(hashOfFile(directory, stage, 'model.safetensors'), stage).toBe(
        hashOfFile(whole, stage, 'model.safetensors'),
      )
    }
    expect(await lossRows(directory)).toEqual(await lossRows(whole))
    expect(readdirSync(directory).filter((name) => name.includes('.tmp'))).toEqual([])
    const again = await outcomeOf({ directory, overrides: tinyPocket, resume: true })
    expect(eventsOf(again.events, 'step')).toEqual([])
    expect(readFileSync(join(directory, 'samples.jsonl'), 'utf8')).toBe(
      readFileSync(join(whole, 'samples.jsonl'), 'utf8'),
    )
  })

  it('stops between stages without beginning the next one', async () => {
    const stop = new AbortController()
    const outcome = await outcomeOf(
      { directory, overrides: tinyPocket, stop: stop.signal },
      {
        leave: (event) => {
          if (event.type === 'saved') stop.abort()
          return false
        },
      },
    )
    expect(outcome.error).toMatchObject({ code: 'ERR_ABORTED', details: { stage: 'sft' } })
    expect(existsSync(join(directory, 'base', 'model.safetensors'))).toBe(true)
    const rest = await outcomeOf({ directory, overrides: tinyPocket, resume: true })
    expect(rest.error).toBeUndefined()
    expect(rest.events.at(-1)?.type).toBe('done')
  })

  it('is let go of in the middle of its preparation by a consumer who leaves, by signal and by stop', async () => {
    const left = await outcomeOf({ directory, overrides: tinyPocket }, { leave: (event) => event.type === 'progress' })
    expect(left.error).toBeUndefined()
    for (const kind of ['signal', 'stop'] as const) {
      const controller = new AbortController()
      const folder = join(root, `left-by-${kind}`)
      const outcome = await outcomeOf(
        { directory: folder, overrides: { ...tinyPocket, 'base.tokens': '50000000' }, [kind]: controller.signal },
        {
          leave: (event) => {
            if (event.type === 'progress' && event.what === 'writing the corpus') controller.abort()
            return false
          },
        },
      )
      expect(outcome.error, kind).toMatchObject({ code: 'ERR_ABORTED' })
    }
  })
})

/** Stages as Hugging Face folders that load, trained. */
async function expectSavedModels(folder: string): Promise<void> {
  using device = openDevice({ threads: 1 })
  const weights: Float32Array[] = []
  for (const stage of ['base', 'sft', 'dpo']) {
    const model = await loadModel(device, join(folder, stage))
    const tokenizer = await Tokenizer.load(join(folder, stage))
    expect(tokenizer.vocabularySize).toBe(model.config.V)
    weights.push((await model.head.read()) as Float32Array)
    model.dispose()
  }
  expect(weights[0]!.length).toBe(weights[1]!.length)
  expect(weights[0]).not.toEqual(weights[1])
  expect(weights[1]).not.toEqual(weights[2])
  const reward = await loadRewardModel(device, join(folder, 'reward_model'))
  // It starts from the SFT model, not from the one before it, and with a head of zeros.
  expect((await reward.score.weight.read()).some((x) => x !== 0)).toBe(true)
  reward.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
}

describe('a model and data files', () => {
  it('in place of the base stage: rows of GSM8K by their fields', async () => {
    const { events, error } = await outcomeOf(
      sftRun(directory, schoolProblems(30), { fields: { prompt: 'question', completion: 'answer' } }),
    )
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'stage').map(({ stage }) => stage)).toEqual(['sft'])
    const steps = eventsOf(events, 'step')
    expect(steps.map(({ step }) => step)).toEqual([1, 2, 3, 4])
    expect(steps.every(({ loss }) => loss > 0 && Number.isFinite(loss))).toBe(true)
    const record = JSON.parse(readFileSync(join(directory, 'recipe.json'), 'utf8'))
    expect(record).toMatchObject({ model: modelFolder, fields: { prompt: 'question', completion: 'answer' } })
    expect(existsSync(join(directory, 'report.html'))).toBe(true)
    // Trained as a Llama, saved as the one it was.
    expect(JSON.parse(readFileSync(join(directory, 'sft', 'config.json'), 'utf8'))).toMatchObject({
      model_type: 'llama',
      vocab_size: 358,
    })
  })

  it('trains the file of real problems when it is there', async (context) => {
    const real = join(import.meta.dirname, '../../../shared/data/gsm8k')
    const names = existsSync(real) ? readdirSync(real) : []
    const file = names.find((name) => /^(train|test)\.jsonl$/.test(name))
    if (!file) context.skip('no GSM8K beside the repository')
    const head = readFileSync(join(real, file!), 'utf8').split('\n').slice(0, 40)
    const { error, events } = await outcomeOf(
      sftRun(directory, head, { fields: { prompt: 'question', completion: 'answer' } }),
    )
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'step').length).toBe(4)
  })

  it('mixes files by count and share, and says what it took', async () => {
    const a = writeLines(join(root, 'a.jsonl'), chats(10))
    const b = writeLines(join(root, 'b.jsonl'), chats(20))
    const { events, error } = await outcomeOf(
      sftRun(directory, [], {
        data: [a, b],
        overrides: { 'sft.mix': '7,0.5', 'sft.steps': '0', 'sft.epochs': '1', 'sft.batchSequences': '1' },
      }),
    )
    expect(error).toBeUndefined()
    // 7 rows of the first and half of the second.
    expect(eventsOf(events, 'stage')[0]?.totalSteps).toBe(7 + 10)
    const note = eventsOf(events, 'note').find(({ text }) => text.includes('a.jsonl'))
    expect(note?.text).toContain('b.jsonl')
  })

  it('with one amount too few is refused', async () => {
    const a = writeLines(join(root, 'a.jsonl'), chats(10))
    const { error } = await outcomeOf(sftRun(directory, [], { data: [a, a], overrides: { 'sft.mix': '7' } }))
    expect(error).toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining('1 amounts for 2 data files') })
  })

  it('holds rows out for the evaluation loss', async () => {
    const { events, error } = await outcomeOf(
      sftRun(directory, chats(40), { overrides: { 'sft.evaluationShare': '0.25', 'sft.evaluateEvery': '2' } }),
    )
    expect(error).toBeUndefined()
    const evaluations = eventsOf(events, 'evaluation')
    expect(evaluations.map(({ step }) => step)).toEqual([2, 4])
    expect(evaluations.every(({ metrics }) => Number(metrics.evalLoss) > 0)).toBe(true)
  })

  it.each([
    ['text', [{ text: 'Once upon a time there was a caravan.' }, { text: 'It went on.' }]],
    ['token ids', [{ input_ids: [5, 6, 7, 8], labels: [-100, 6, 7, 8] }]],
  ])('of %s rows are trained or refused by line, never a crash', async (_, rows) => {
    const { error, events } = await outcomeOf(sftRun(directory, rows, { overrides: { 'sft.steps': '1' } }))
    if (error) expect(error).toMatchObject({ code: 'ERR_DATA', details: { line: 1 } })
    else expect(eventsOf(events, 'step').length).toBe(1)
  })
})

describe('other models', () => {
  it.each(['bf16', 'f32'] as const)('train in %s and are saved in it', async (dtype) => {
    const { error } = await outcomeOf(
      sftRun(directory, chats(8), { dtype, overrides: { 'sft.activationCheckpointing': 'full' } }),
    )
    expect(error).toBeUndefined()
    const config = JSON.parse(readFileSync(join(directory, 'sft', 'config.json'), 'utf8'))
    expect(config.torch_dtype).toBe(dtype === 'bf16' ? 'bfloat16' : 'float32')
  })
})

describe('resuming', () => {
  const rows = chats(20)

  it('a folder that holds a run needs to be asked for', async () => {
    const options = sftRun(directory, rows)
    expect((await outcomeOf(options)).error).toBeUndefined()
    const again = await outcomeOf(options)
    expect(again.error).toMatchObject({
      code: 'ERR_CONFIG',
      message: expect.stringContaining('already holds a run'),
      hint: expect.stringContaining('--resume'),
    })
    expect(again.events).toEqual([])
  })

  it('refuses other settings, naming the one that differs, and allows those that do not matter', async () => {
    const options = sftRun(directory, rows, { overrides: { 'sft.lr': '1e-4' } })
    await outcomeOf(options, { leave: (event) => event.type === 'step' && event.step === 3 })
    const changed = (overrides: { [path: string]: string }, others: Partial<RunOptions> = {}) =>
      outcomeOf({ ...options, resume: true, ...others, overrides: { ...options.overrides, ...overrides } })
    expect((await changed({ 'sft.lr': '2e-4' })).error).toMatchObject({
      code: 'ERR_CONFIG',
      message: expect.stringContaining('sft.lr = 0.0001, not 0.0002'),
      details: { what: 'sft.lr', before: 1e-4, now: 2e-4 },
    })
    expect((await changed({ 'sft.batchSequences': '5' })).error?.message).toContain('sft.batchSequences')
    expect((await changed({}, { seed: 2 })).error?.message).toContain('seed')
    expect((await changed({}, { dtype: 'bf16' })).error?.message).toContain('dtype')
    expect((await changed({}, { data: [modelFolder] })).error?.message).toContain('data')
    const harmless = {
      'sft.checkpointEvery': '1',
      'sft.keepCheckpoints': '3',
      'sft.activationCheckpointing': 'selective',
    }
    const fine = await changed(harmless, { threads: 3 })
    expect(fine.error).toBeUndefined()
    expect(eventsOf(fine.events, 'stage')[0]?.resumedFrom).toBe(2)
  })

  it('with data that has changed is refused, not silently continued', async () => {
    const options = sftRun(directory, rows)
    await outcomeOf(options, { leave: (event) => event.type === 'step' && event.step === 3 })
    writeLines(options.data![0]!, chats(19))
    const { error } = await outcomeOf({ ...options, resume: true })
    expect(error).toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining('saved place in the data') })
  })

  it('is not needed for a folder whose run failed before its first step', async () => {
    const { error } = await outcomeOf(sftRun(directory, [{ messages: 'no' }]))
    expect(error?.code).toBe('ERR_DATA')
    const again = await outcomeOf(sftRun(directory, rows, { overrides: { 'sft.lr': '2e-4' } }))
    expect(again.error).toBeUndefined()
    expect(JSON.parse(readFileSync(join(directory, 'recipe.json'), 'utf8')).stages[0].settings.lr).toBe(2e-4)
  })

  it('of a folder without a run is a new run', async () => {
    const { error, events } = await outcomeOf(sftRun(directory, rows, { resume: true }))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'step').length).toBe(4)
  })
})
