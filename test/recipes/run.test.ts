// run(): stages chained, data files, resuming, and that every fault of what it is given is a typed error that says where.
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { RunOptions } from '../../lib/recipes/run.js'
import { tulu3 } from '../../lib/recipes/tulu3.js'
import { leaks } from '../../lib/tensor/index.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { findCheckpoint } from '../../lib/train/checkpoint.js'
import { goldenModel } from '../train/golden_tensors.js'
import { sha256 } from '../train/small_runs.js'
import { eventsOf, lossRows, modelFolder, outcomeOf, schoolProblems, tinyPocket, writeLines } from './small_run.js'

let root: string
let number = 0
let directory: string
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-run-'))
})
beforeEach(() => {
  directory = join(root, `run-${number++}`)
})
afterAll(() => {
  rmSync(root, { recursive: true, force: true })
  expect(leaks.caught).toBe(0)
})

const hashOfFile = (...path: string[]) => sha256(readFileSync(join(...path)))

/** SFT of the reference model on `rows` (or files): four steps. */
function sftRun(rows: readonly unknown[] | string[], changed: Partial<RunOptions> = {}): RunOptions {
  const isFiles = rows.length > 0 && typeof rows[0] === 'string' && existsSync(rows[0])
  const data = isFiles ? (rows as string[]) : [writeLines(join(root, `data-${number}.jsonl`), rows)]
  const { overrides, ...others } = changed
  return {
    directory,
    model: modelFolder,
    data,
    stages: ['sft'],
    ...others,
    overrides: { 'sft.steps': '4', 'sft.batchSequences': '4', 'sft.maxTokens': '400', 'sft.checkpointEvery': '2', ...overrides },
  }
}

const chats = (count: number) =>
  Array.from({ length: count }, (_, i) => ({
    messages: [
      { role: 'user', content: `Say ${i}.` },
      { role: 'assistant', content: `${i}, as you wish.` },
    ],
  }))

describe('the pocket recipe', () => {
  it('chains its stages, and leaves a run folder that says everything', async () => {
    const { events, error } = await outcomeOf({ directory, overrides: tinyPocket })
    expect(error).toBeUndefined()
    expect(events[0]).toMatchObject({ type: 'run', recipe: 'tulu3', scale: 'pocket', stages: ['base', 'sft'] })
    expect(eventsOf(events, 'stage').map(({ stage, totalSteps }) => [stage, totalSteps])).toEqual([
      ['base', 6],
      ['sft', 6],
    ])
    expect(eventsOf(events, 'saved').map(({ directory: folder }) => folder)).toEqual([join(directory, 'base'), join(directory, 'sft')])
    expect(events.at(-1)).toMatchObject({ type: 'done', directory })
    for (const file of ['recipe.json', 'metrics.jsonl', 'samples.jsonl', 'report.html', 'checkpoints', 'base', 'sft']) {
      expect(existsSync(join(directory, file)), file).toBe(true)
    }
    expect(readdirSync(directory).filter((name) => name.includes('.tmp'))).toEqual([])
    const record = JSON.parse(readFileSync(join(directory, 'recipe.json'), 'utf8'))
    const base = record.stages[0]
    expect([base.settings.width, base.origins.width]).toEqual([32, 'flag'])
    expect([base.settings.lr, base.origins.lr]).toEqual([3e-3, 'recipe'])
    expect([base.settings.beta1, base.origins.beta1]).toEqual([0.9, 'default'])
    expect((await lossRows(directory)).length).toBe(12)
    await expectSavedModels(directory)
  })

  it('resumed after its first stage does that stage not again, and ends with the same model and rows', async () => {
    const whole = join(root, 'whole')
    await outcomeOf({ directory: whole, overrides: tinyPocket })
    const before = await outcomeOf({ directory, overrides: tinyPocket }, { leave: (event) => event.type === 'step' && event.stage === 'sft' && event.step === 4 })
    expect(before.error).toBeUndefined()
    // Leftovers of a process that was killed while it saved.
    mkdirSync(join(directory, 'sft.tmp-999999'))
    writeFileSync(join(directory, '.metrics.jsonl.tmp-999999-0-0'), 'half')
    const { events, error } = await outcomeOf({ directory, overrides: tinyPocket, resume: true, threads: 1 })
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'note')[0]?.text).toContain('is finished')
    expect(eventsOf(events, 'stage').map(({ stage, resumedFrom }) => [stage, resumedFrom])).toEqual([['sft', 3]])
    for (const stage of ['base', 'sft']) {
      expect(hashOfFile(directory, stage, 'model.safetensors'), stage).toBe(hashOfFile(whole, stage, 'model.safetensors'))
    }
    expect(await lossRows(directory)).toEqual(await lossRows(whole))
    expect(readdirSync(directory).filter((name) => name.includes('.tmp'))).toEqual([])
    const again = await outcomeOf({ directory, overrides: tinyPocket, resume: true })
    expect(eventsOf(again.events, 'step')).toEqual([])
    expect(readFileSync(join(directory, 'samples.jsonl'), 'utf8')).toBe(readFileSync(join(whole, 'samples.jsonl'), 'utf8'))
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

/** Both stages as Hugging Face folders that load, trained. */
async function expectSavedModels(folder: string): Promise<void> {
  using device = openDevice({ threads: 1 })
  const weights: Float32Array[] = []
  for (const stage of ['base', 'sft']) {
    const model = await loadModel(device, join(folder, stage))
    const tokenizer = await Tokenizer.load(join(folder, stage))
    expect(tokenizer.vocabularySize).toBe(model.config.V)
    weights.push((await model.head.read()) as Float32Array)
    model.dispose()
  }
  expect(weights[0]!.length).toBe(weights[1]!.length)
  expect(weights[0]).not.toEqual(weights[1])
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
}

describe('a model and data files', () => {
  it('in place of the base stage: rows of GSM8K by their fields', async () => {
    const { events, error } = await outcomeOf(sftRun(schoolProblems(30), { fields: { prompt: 'question', completion: 'answer' } }))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'stage').map(({ stage }) => stage)).toEqual(['sft'])
    const steps = eventsOf(events, 'step')
    expect(steps.map(({ step }) => step)).toEqual([1, 2, 3, 4])
    expect(steps.every(({ loss }) => loss > 0 && Number.isFinite(loss))).toBe(true)
    const record = JSON.parse(readFileSync(join(directory, 'recipe.json'), 'utf8'))
    expect(record).toMatchObject({ model: modelFolder, fields: { prompt: 'question', completion: 'answer' } })
    expect(existsSync(join(directory, 'report.html'))).toBe(true)
    // Trained as a Llama, saved as the one it was.
    expect(JSON.parse(readFileSync(join(directory, 'sft', 'config.json'), 'utf8'))).toMatchObject({ model_type: 'llama', vocab_size: 358 })
  })

  it('trains the file of real problems when it is there', async (context) => {
    const real = join(import.meta.dirname, '../../../shared/data/gsm8k')
    const names = existsSync(real) ? readdirSync(real) : []
    const file = names.find((name) => /^(train|test)\.jsonl$/.test(name))
    if (!file) context.skip('no GSM8K beside the repository')
    const head = readFileSync(join(real, file!), 'utf8').split('\n').slice(0, 40)
    const { error, events } = await outcomeOf(sftRun(head, { fields: { prompt: 'question', completion: 'answer' } }))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'step').length).toBe(4)
  })

  it('mixes files by count and share, and says what it took', async () => {
    const a = writeLines(join(root, 'a.jsonl'), chats(10))
    const b = writeLines(join(root, 'b.jsonl'), chats(20))
    const { events, error } = await outcomeOf(
      sftRun([a, b], { overrides: { 'sft.mix': '7,0.5', 'sft.steps': '0', 'sft.epochs': '1', 'sft.batchSequences': '1' } }),
    )
    expect(error).toBeUndefined()
    // 7 rows of the first and half of the second.
    expect(eventsOf(events, 'stage')[0]?.totalSteps).toBe(7 + 10)
    const note = eventsOf(events, 'note').find(({ text }) => text.includes('a.jsonl'))
    expect(note?.text).toContain('b.jsonl')
  })

  it('with one amount too few is refused', async () => {
    const a = writeLines(join(root, 'a.jsonl'), chats(10))
    const { error } = await outcomeOf(sftRun([a, a], { overrides: { 'sft.mix': '7' } }))
    expect(error).toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining('1 amounts for 2 data files') })
  })

  it('holds rows out for the evaluation loss', async () => {
    const { events, error } = await outcomeOf(sftRun(chats(40), { overrides: { 'sft.evaluationShare': '0.25', 'sft.evaluateEvery': '2' } }))
    expect(error).toBeUndefined()
    const evaluations = eventsOf(events, 'evaluation')
    expect(evaluations.map(({ step }) => step)).toEqual([2, 4])
    expect(evaluations.every(({ metrics }) => Number(metrics.evalLoss) > 0)).toBe(true)
  })

  it.each([
    ['text', [{ text: 'Once upon a time there was a caravan.' }, { text: 'It went on.' }]],
    ['token ids', [{ input_ids: [5, 6, 7, 8], labels: [-100, 6, 7, 8] }]],
  ])('of %s rows are trained or refused by line, never a crash', async (_, rows) => {
    const { error, events } = await outcomeOf(sftRun(rows, { overrides: { 'sft.steps': '1' } }))
    if (error) expect(error).toMatchObject({ code: 'ERR_DATA', details: { line: 1 } })
    else expect(eventsOf(events, 'step').length).toBe(1)
  })
})

describe('resuming', () => {
  const rows = chats(20)

  it('a folder that holds a run needs to be asked for', async () => {
    const options = sftRun(rows)
    expect((await outcomeOf(options)).error).toBeUndefined()
    const again = await outcomeOf(options)
    expect(again.error).toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining('already holds a run'), hint: expect.stringContaining('--resume') })
    expect(again.events).toEqual([])
  })

  it('refuses other settings, naming the one that differs, and allows those that do not matter', async () => {
    const options = sftRun(rows, { overrides: { 'sft.lr': '1e-4' } })
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
    const fine = await changed({ 'sft.checkpointEvery': '1', 'sft.keepCheckpoints': '3' }, { threads: 3 })
    expect(fine.error).toBeUndefined()
    expect(eventsOf(fine.events, 'stage')[0]?.resumedFrom).toBe(2)
  })

  it('with data that has changed is refused, not silently continued', async () => {
    const options = sftRun(rows)
    await outcomeOf(options, { leave: (event) => event.type === 'step' && event.step === 3 })
    writeLines(options.data![0]!, chats(19))
    const { error } = await outcomeOf({ ...options, resume: true })
    expect(error).toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining('saved place in the data') })
  })

  it('is not needed for a folder whose run failed before its first step', async () => {
    const { error } = await outcomeOf(sftRun([{ messages: 'no' }]))
    expect(error?.code).toBe('ERR_DATA')
    const again = await outcomeOf(sftRun(rows, { overrides: { 'sft.lr': '2e-4' } }))
    expect(again.error).toBeUndefined()
    expect(JSON.parse(readFileSync(join(directory, 'recipe.json'), 'utf8')).stages[0].settings.lr).toBe(2e-4)
  })

  it('of a folder without a run is a new run', async () => {
    const { error, events } = await outcomeOf(sftRun(rows, { resume: true }))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'step').length).toBe(4)
  })
})

describe('what cannot be run', () => {
  const refused = async (options: Partial<RunOptions>, wanted: object) => {
    const { error, events } = await outcomeOf({ directory, ...options })
    expect(error).toMatchObject(wanted)
    expect(error!.message.length).toBeGreaterThan(10)
    expect(eventsOf(events, 'step')).toEqual([])
  }

  it('stages', async () => {
    await refused({ stages: ['dpo'] }, { code: 'ERR_CONFIG', message: expect.stringContaining("'dpo' of tulu3 is not part of this version") })
    await refused({ stages: ['sfd'] }, { code: 'ERR_CONFIG', hint: "did you mean 'sft'?" })
    await refused({ stages: ['base'], model: modelFolder }, { code: 'ERR_CONFIG', message: expect.stringContaining('replaces the base stage') })
    await refused({ stages: ['sft'] }, { code: 'ERR_CONFIG', message: expect.stringContaining('needs a model') })
  })

  it('settings', async () => {
    await refused({ overrides: { 'sft.lrr': '1' } }, { code: 'ERR_CONFIG', hint: "did you mean 'lr'?" })
    await refused({ overrides: { 'sfd.lr': '1' } }, { code: 'ERR_CONFIG', hint: "did you mean 'sft.lr'?" })
    await refused({ overrides: { 'sft.lr': 'fast' } }, { code: 'ERR_CONFIG', message: expect.stringContaining('sft.lr must be a number') })
    await refused({ threads: 0, overrides: tinyPocket }, { code: 'ERR_CONFIG', message: expect.stringContaining('threads') })
    await refused({ device: 'cuda' }, { code: 'ERR_DEVICE' })
    expect(() => tulu3({ scale: '8B ' })).toThrow(expect.objectContaining({ code: 'ERR_CONFIG', hint: "did you mean '8b'?" }))
  })

  it('models', async () => {
    await refused(sftRun(chats(4), { model: join(root, 'nowhere') }), { message: expect.stringContaining('nowhere') })
    const broken = join(root, 'broken-model')
    cpSync(modelFolder, broken, { recursive: true })
    writeFileSync(join(broken, 'model.safetensors'), 'no')
    await refused(sftRun(chats(4), { model: broken }), { code: 'ERR_FORMAT', message: expect.stringContaining('model.safetensors') })
  })

  it('a tokenizer larger than the embedding', async () => {
    const grown = join(root, 'grown-tokenizer')
    cpSync(modelFolder, grown, { recursive: true })
    const path = join(grown, 'tokenizer.json')
    const json = JSON.parse(readFileSync(path, 'utf8'))
    for (let i = 0; i < 20; i++) {
      json.added_tokens.push({ id: 358 + i, content: `<|new${i}|>`, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true })
    }
    writeFileSync(path, JSON.stringify(json))
    await refused(sftRun(chats(4), { model: grown }), {
      code: 'ERR_TOKENIZER',
      message: expect.stringMatching(/tokens, the model's embedding only 358 rows/),
    })
  })

  it('data', async () => {
    const line = (rows: unknown[]) => sftRun(rows)
    await refused(line([]), { code: 'ERR_DATA' })
    await refused(sftRun(chats(4), { data: [join(root, 'nowhere.jsonl')] }), { code: 'ERR_FILE', details: { errno: 'ENOENT' } })
    const bad = line([chats(1)[0], chats(1)[0], '{"messages": [', chats(1)[0]])
    await refused(bad, { code: 'ERR_DATA', message: expect.stringContaining(`${bad.data![0]}:3`), details: { line: 3 } })
    const shapeless = line([chats(1)[0], { messages: 'hello' }])
    await refused(shapeless, { code: 'ERR_DATA', message: expect.stringContaining(`${shapeless.data![0]}:2`) })
    const roles = line([{ messages: [{ role: 'asistant', content: 'x' }] }])
    await refused(roles, { code: 'ERR_DATA', message: expect.stringContaining(':1') })
    const masked = line([{ messages: [{ role: 'user', content: 'Nobody answers.' }] }, { messages: [{ role: 'user', content: 'Nobody.' }] }])
    await refused(masked, { code: 'ERR_DATA', hint: expect.stringContaining('assistant') })
    await refused(sftRun(schoolProblems(3), { fields: { prompt: 'questoin', completion: 'answer' } }), { code: 'ERR_DATA' })
  })

  it('templates and folders', async () => {
    await refused(sftRun(chats(4), { overrides: { 'sft.template': 'tuluu' } }), { code: 'ERR_TEMPLATE', hint: expect.stringContaining('tulu') })
    writeFileSync(join(root, 'file'), '')
    await refused(sftRun(chats(4), { directory: join(root, 'file') }), { code: expect.stringMatching(/ERR_(FILE|CONFIG)/) })
    await refused(sftRun(chats(4), { directory: join(root, 'file', 'below') }), { code: 'ERR_FILE', details: { errno: 'ENOTDIR' } })
  })

  it('memory: a budget that does not suffice says what was wanted, and leaves the process sound', async () => {
    await refused(sftRun(chats(4), { memoryBudgetBytes: 100_000 }), { code: 'ERR_OOM', hint: expect.stringContaining('micro-batch') })
    expect((await outcomeOf(sftRun(chats(8), { directory: `${directory}-after` }))).error).toBeUndefined()
  })
})

/** A file system of `size` mounted on `folder`, or undefined where the test may not mount. */
function mounted(folder: string, size: string): (() => void) | undefined {
  mkdirSync(folder, { recursive: true })
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'none', folder], { stdio: 'ignore' })
    return () => execFileSync('umount', [folder])
  } catch {
    return undefined
  }
}

describe('a disk that is full', () => {
  it('at the final save is a typed error; the checkpoint is intact and the run can be finished from it', async (context) => {
    const rows = chats(20)
    const whole = join(root, 'with-room')
    // The data is a part of the record, so both runs name the same file.
    const options = sftRun(rows, { overrides: { 'sft.keepCheckpoints': '2' } })
    expect((await outcomeOf({ ...options, directory: whole })).error).toBeUndefined()
    // Room for one checkpoint (model and two moments) and little more: not for a second one, nor for the model.
    const unmount = mounted(directory, '740k')
    if (!unmount) context.skip('no permission to mount a file system')
    let full: { error?: CaravanError; events: unknown[] }
    const rescued = `${directory}-rescued`
    try {
      full = await outcomeOf({ ...options, overrides: { ...options.overrides, 'sft.checkpointEvery': '1' } })
      const { checkpoint } = await findCheckpoint(join(directory, 'checkpoints', 'sft'))
      expect(checkpoint?.state.step).toBe(1)
      expect(existsSync(join(directory, 'sft'))).toBe(false)
      cpSync(directory, rescued, { recursive: true })
    } finally {
      unmount!()
    }
    expect(full.error).toMatchObject({ code: 'ERR_FILE', details: { errno: 'ENOSPC' }, hint: expect.stringContaining('free space') })
    const rest = await outcomeOf({ ...options, directory: rescued, resume: true })
    expect(rest.error).toBeUndefined()
    expect(eventsOf(rest.events, 'stage')[0]?.resumedFrom).toBe(1)
    expect(hashOfFile(rescued, 'sft', 'model.safetensors')).toBe(hashOfFile(whole, 'sft', 'model.safetensors'))
  })
})

describe('other models', () => {
  it.each(['bf16', 'f32'] as const)('train in %s and are saved in it', async (dtype) => {
    const { error } = await outcomeOf(sftRun(chats(8), { dtype, overrides: { 'sft.activationCheckpointing': 'true' } }))
    expect(error).toBeUndefined()
    const config = JSON.parse(readFileSync(join(directory, 'sft', 'config.json'), 'utf8'))
    expect(config.torch_dtype).toBe(dtype === 'bf16' ? 'bfloat16' : 'float32')
  })

  it('without a tokenizer are refused by the file that is missing', async () => {
    const { error } = await outcomeOf(sftRun(chats(4), { model: goldenModel('llama_gqa_rope3') }))
    expect(error?.message).toContain('tokenizer.json')
  })
})
