// Stages on preference pairs from files: every loss, what is logged, the reference's file, margins, shared prompts, and
// what is refused.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { openSafetensors } from '../../lib/data/safetensors.js'
import type { RunOptions } from '../../lib/recipes/run.js'
import { MetricsLog } from '../../lib/train/metrics.js'
import { leakedTensors } from '../train/small_runs.js'
import { eventsOf, hashOfFile, modelFolder, outcomeOf, writeLines } from './small_run.js'

vi.setConfig({ testTimeout: 240_000 })

let root: string
let number = 0
let directory: string
let file: string
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-pairs-'))
  file = writeLines(join(root, 'pairs.jsonl'), pairs(24))
})
beforeEach(() => {
  directory = join(root, `run-${number++}`)
})
afterAll(async () => {
  rmSync(root, { recursive: true, force: true })
  expect(await leakedTensors()).toBe(0)
})

/** Pairs that a model can learn to tell apart: one side counts, the other does not. */
const pairs = (count: number) =>
  Array.from({ length: count }, (_, i) => ({
    prompt: `What comes after the number ${i}, if you count upwards?`,
    chosen: `${i + 1}`,
    rejected: `no idea ${'at all '.repeat(1 + (i % 3))}`,
    by: i / 10,
  }))

type Kind = 'dpo' | 'reward_model'

function pairRun(kind: Kind, settings: { [key: string]: unknown } = {}, more: Partial<RunOptions> = {}): RunOptions {
  const all = {
    steps: 4,
    batchSequences: 8,
    maxTokens: 300,
    checkpointEvery: 2,
    lr: 1e-3,
    template: 'tulu',
    ...settings,
  }
  const overrides = Object.fromEntries(Object.entries(all).map(([key, value]) => [`${kind}.${key}`, String(value)]))
  return { directory, stages: [kind], model: modelFolder, data: [file], overrides, ...more }
}

const finalHash = (kind: Kind, folder = directory) => hashOfFile(folder, kind, 'model.safetensors')
const referenceFiles = (folder = directory) =>
  readdirSync(join(folder, '.cache')).filter((name) => name.startsWith('reference-'))

describe('dpo', () => {
  it.each(['dpo', 'dpo_norm', 'simpo', 'ipo', 'ipo_sum', 'hinge', 'robust', 'wpo'])(
    '%s lowers its loss',
    async (loss) => {
      const beta = loss === 'dpo_norm' || loss === 'simpo' ? 2 : 0.1
      const options = pairRun('dpo', { loss, beta, steps: 9, epochs: 3, warmupRatio: 0 })
      const { events, error } = await outcomeOf(options)
      expect(error).toBeUndefined()
      const steps = eventsOf(events, 'step')
      expect(steps.every((step) => Number.isFinite(step.loss) && !step.skipped)).toBe(true)
      // An epoch has three steps, so step 7 sees the pairs of step 1 in another order.
      const mean = (from: number) => steps.slice(from, from + 3).reduce((sum, step) => sum + step.loss, 0) / 3
      expect(mean(6)).toBeLessThan(mean(0))
      const [first, last] = [steps[0]!.metrics, steps.at(-1)!.metrics]
      expect(last['rewards/margin']!).toBeGreaterThan(first['rewards/margin']!)
      // Compared with itself the first policy has rewards of exactly 0.
      if (loss !== 'simpo') expect([first['rewards/chosen'], first['rewards/rejected']]).toEqual([0, 0])
      expect(existsSync(join(directory, '.cache'))).toBe(true)
      expect(referenceFiles()).toHaveLength(loss === 'simpo' ? 0 : 1)
    },
  )

  it('logs the names of the field, for the report too', async () => {
    await outcomeOf(pairRun('dpo'))
    const [row] = await new MetricsLog(directory).rows()
    for (const name of ['rewards/chosen', 'rewards/accuracy', 'rewards/margin', 'logps/rejected', 'length/chosen']) {
      expect(row).toHaveProperty([name], expect.any(Number))
    }
    const report = readFileSync(join(directory, 'report.html'), 'utf8')
    for (const title of ['Rewards: accuracy', 'Rewards: margin', 'Logps', 'Length']) expect(report).toContain(title)
  })

  it('ends with the same bits on any number of threads, and after a stop', async () => {
    await outcomeOf(pairRun('dpo'))
    const wanted = finalHash('dpo')
    for (const threads of [1, 3]) {
      directory = join(root, `threads-${threads}`)
      await outcomeOf(pairRun('dpo', {}, { threads }))
      expect(finalHash('dpo')).toBe(wanted)
    }
    for (const damage of ['none', 'missing', 'corrupted', 'cut'] as const) {
      directory = join(root, `reference-${damage}`)
      const stopped = await outcomeOf(pairRun('dpo'), { leave: (event) => event.type === 'step' && event.step === 3 })
      expect(stopped.error).toBeUndefined()
      const path = join(directory, '.cache', referenceFiles()[0]!)
      if (damage === 'missing') rmSync(path)
      const content = damage === 'missing' ? Buffer.alloc(0) : readFileSync(path)
      if (damage === 'corrupted') content[content.length - 3]! ^= 1
      if (damage === 'corrupted' || damage === 'cut')
        writeFileSync(path, content.subarray(0, damage === 'cut' ? 99 : undefined))
      const { events, error } = await outcomeOf(pairRun('dpo', {}, { resume: true }))
      expect(error).toBeUndefined()
      expect(eventsOf(events, 'stage')[0]).toMatchObject({ resumedFrom: 2 })
      const warnings = eventsOf(events, 'warning').map(({ message }) => message)
      const damaged = damage === 'corrupted' || damage === 'cut'
      expect(warnings.filter((message) => message.includes('computed again'))).toHaveLength(damaged ? 1 : 0)
      expect(finalHash('dpo'), damage).toBe(wanted)
    }
  })

  it('is the same with shared prompts and other micro-batches, within rounding', async () => {
    const apart = { beta: 0.5, loss: 'dpo', sharePrompt: false }
    await outcomeOf(pairRun('dpo', apart))
    const wanted = await new MetricsLog(directory).rows()
    for (const [name, settings] of Object.entries({
      shared: { sharePrompt: true },
      small: { microBatchTokens: 40 },
      recomputed: { activationCheckpointing: 'full' },
    })) {
      directory = join(root, `way-${name}`)
      const { events } = await outcomeOf(pairRun('dpo', { ...apart, ...settings }))
      const rows = await new MetricsLog(directory).rows()
      for (const [i, row] of rows.entries()) {
        expect(Math.abs((row.loss as number) - (wanted[i]!.loss as number)), `${name} ${i}`).toBeLessThan(2e-6)
        const ratio = (row.gradNorm as number) / (wanted[i]!.gradNorm as number)
        expect(Math.abs(ratio - 1), `${name} ${i}`).toBeLessThan(1e-5)
      }
      const notes = eventsOf(events, 'note').filter(({ text }) => text.includes('not computed again'))
      expect(notes).toHaveLength(name === 'shared' ? 1 : 0)
      const tokens = (of: typeof rows) => of.reduce((sum, row) => sum + (row.tokens as number), 0)
      if (name === 'shared') expect(tokens(rows)).toBeLessThan(0.8 * tokens(wanted))
    }
  })

  it('evaluates on pairs that it holds out', async () => {
    const { events } = await outcomeOf(pairRun('dpo', { evaluationShare: 0.25, epochs: 4, steps: 9 }))
    const [evaluation] = eventsOf(events, 'evaluation')
    expect(evaluation!.metrics['eval/rewards/accuracy']).toBeGreaterThan(0.5)
    expect(evaluation!.metrics['eval/rewards/margin']).toBeGreaterThan(0)
    expect(evaluation!.metrics['eval/likelihood/accuracy']).toBeGreaterThanOrEqual(0)
  })
})

describe('kto', () => {
  const rows = () =>
    pairs(24).map(({ prompt, chosen, rejected }, i) => ({
      prompt,
      completion: i % 3 === 0 ? rejected : chosen,
      label: i % 3 !== 0,
    }))
  const ktoRun = (settings: object = {}, more: Partial<RunOptions> = {}) =>
    pairRun('dpo', { loss: 'kto', beta: 0.5, ...settings }, more)

  it('learns from answers that are good or bad, and from pairs', async () => {
    for (const data of [[writeLines(`${directory}-feedback.jsonl`, rows())], [file]]) {
      directory = `${directory}-on`
      const { events, error } = await outcomeOf(ktoRun({ steps: 6, epochs: 3, warmupRatio: 0 }, { data }))
      expect(error).toBeUndefined()
      const steps = eventsOf(events, 'step')
      // The policy is the reference at first: no answer is better, and the reference point is 0.
      expect(steps[0]!.loss).toBeCloseTo(0.5, 6)
      expect(steps[0]!.metrics).toMatchObject({ 'rewards/chosen': 0, 'rewards/rejected': 0, kl: 0 })
      expect(steps.at(-1)!.loss).toBeLessThan(0.5)
      expect(steps.at(-1)!.metrics['rewards/margin']).toBeGreaterThan(0)
    }
  })

  it('is the same in other micro-batches, within rounding, and resumes to the same bits', async () => {
    await outcomeOf(ktoRun())
    const [wanted, hash] = [await new MetricsLog(directory).rows(), finalHash('dpo')]
    directory = `${directory}-small`
    await outcomeOf(ktoRun({ microBatchTokens: 150 }))
    for (const [i, row] of (await new MetricsLog(directory).rows()).entries()) {
      expect(Math.abs((row.loss as number) - (wanted[i]!.loss as number))).toBeLessThan(2e-6)
    }
    directory = `${directory}-resumed`
    await outcomeOf(ktoRun(), { leave: (event) => event.type === 'step' && event.step === 3 })
    await outcomeOf(ktoRun({}, { resume: true, threads: 1 }))
    expect(finalHash('dpo')).toBe(hash)
  })

  it('cuts no answer, whose reference is of all of it', async () => {
    const refused = async (settings: object, message: RegExp) =>
      expect((await outcomeOf(ktoRun(settings))).error).toMatchObject({
        code: 'ERR_CONFIG',
        message: expect.stringMatching(message),
      })
    await refused({ packing: 'wrapped' }, /packing must be bfd or none/)
    await refused({ microBatchTokens: 40 }, /48 answers with their prompts are longer than dpo.microBatchTokens, 40,/)
    const { error, events } = await outcomeOf(ktoRun({ microBatchTokens: 40, packing: 'none' }))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'step')[0]!.loss).toBeCloseTo(0.5, 6)
  })

  it('trains an adapter where it is asked to', async () => {
    const { error, events } = await outcomeOf(ktoRun({ 'lora.rank': 2, lr: 1e-2, steps: 6, epochs: 3, warmupRatio: 0 }))
    expect(error).toBeUndefined()
    expect(existsSync(join(directory, 'dpo', 'adapter', 'adapter_model.safetensors'))).toBe(true)
    const losses = eventsOf(events, 'step').map(({ loss }) => loss)
    expect(losses[0]).toBeCloseTo(0.5, 6)
    expect(losses.at(-1)).toBeLessThan(0.5)
  })

  it('needs a label on every row', async () => {
    const data = [writeLines(`${directory}.jsonl`, [...rows(), { prompt: 'q', completion: 'a' }])]
    const { error } = await outcomeOf(ktoRun({}, { data }))
    expect(error).toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/jsonl:25: `label` must be true or/),
    })
    const mixed = await outcomeOf(ktoRun({ evaluationShare: 0.1 }, { directory: `${directory}-x` }))
    expect(mixed.error).toMatchObject({ code: 'ERR_CONFIG' })
  })
})

describe('reward_model', () => {
  it('learns to tell the sides apart, and is saved as a classifier with one label', async () => {
    const { events, error } = await outcomeOf(pairRun('reward_model', { steps: 12, epochs: 4, evaluationShare: 0.2 }))
    expect(error).toBeUndefined()
    const steps = eventsOf(events, 'step')
    expect(steps.at(-1)!.loss).toBeLessThan(steps[0]!.loss)
    expect(steps.at(-1)!.metrics['rewards/accuracy']).toBeGreaterThan(0.9)
    expect(eventsOf(events, 'evaluation')[0]!.metrics['eval/rewards/accuracy']).toBeGreaterThan(0.9)
    const config = JSON.parse(readFileSync(join(directory, 'reward_model', 'config.json'), 'utf8'))
    expect(config.architectures).toEqual(['LlamaForSequenceClassification'])
  })

  it('is trained and resumed in bf16, too, with a head in f32 that is saved as the rest', async () => {
    const options = (folder: string) => pairRun('reward_model', { lr: 1e-2 }, { dtype: 'bf16', directory: folder })
    const { events, error } = await outcomeOf(options(directory))
    expect(error).toBeUndefined()
    expect(eventsOf(events, 'step').every(({ skipped }) => !skipped)).toBe(true)
    const path = join(directory, 'reward_model')
    const { tensors } = await openSafetensors(join(path, 'model.safetensors'))
    expect(new Set([...tensors.values()].map(({ dtype }) => dtype))).toEqual(new Set(['BF16']))
    expect(JSON.parse(readFileSync(join(path, 'config.json'), 'utf8')).torch_dtype).toBe('bfloat16')
    const again = `${directory}-resumed`
    await outcomeOf(options(again), { leave: (event) => event.type === 'step' && event.step === 3 })
    const rest = await outcomeOf({ ...options(again), resume: true })
    expect(eventsOf(rest.events, 'stage')[0]).toMatchObject({ resumedFrom: 2 })
    expect(finalHash('reward_model', again)).toBe(finalHash('reward_model'))
  })

  it('starts from the given model beside dpo, not from what dpo made', async () => {
    const settings = { ...pairRun('dpo', { steps: 2 }).overrides, ...pairRun('reward_model', { steps: 2 }).overrides }
    const overrides = { ...settings, 'reward_model.data': file, 'reward_model.headScale': '0' }
    const { error } = await outcomeOf(pairRun('dpo', {}, { stages: ['dpo', 'reward_model'], overrides }))
    expect(error).toBeUndefined()
    const together = finalHash('reward_model')
    directory = `${directory}-alone`
    await outcomeOf(pairRun('reward_model', { steps: 2, headScale: 0 }))
    expect(finalHash('reward_model')).toBe(together)
  })

  it('takes margins from a column', async () => {
    await outcomeOf(pairRun('reward_model'))
    const plain = await new MetricsLog(directory).rows()
    directory = `${directory}-margins`
    await outcomeOf(pairRun('reward_model', { marginColumn: 'by' }))
    const rows = await new MetricsLog(directory).rows()
    expect(rows[0]!.loss as number).toBeGreaterThan(plain[0]!.loss as number)
    const { error } = await outcomeOf(pairRun('reward_model', { marginColumn: 'buy' }, { directory: `${directory}-x` }))
    expect(error).toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/pairs\.jsonl:1: `buy` must be a number/),
    })
  })
})

describe('what is refused', () => {
  const refused = async (options: RunOptions, message: RegExp, code = 'ERR_CONFIG') => {
    const { error, events } = await outcomeOf(options)
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
    expect(eventsOf(events, 'step')).toEqual([])
  }

  it('settings that mean nothing', async () => {
    await refused(pairRun('dpo', { beta: 0 }), /beta must be above 0; got 0/)
    await refused(pairRun('dpo', { labelSmoothing: 0.5 }), /labelSmoothing must be in \[0, 0.5\)/)
    await refused(pairRun('dpo', { loss: 'dop' }), /loss must be one of .*got "dop"/)
    await refused(pairRun('dpo', { packing: 'wrapped' }), /packing must be bfd or none/)
    await refused(pairRun('dpo', {}, { data: [] as string[], model: undefined }), /needs a model/)
  })

  it('rows that are no pairs, by file and line', async () => {
    const bad = (rows: unknown[]) =>
      pairRun('dpo', {}, { data: [writeLines(`${directory}.jsonl`, [pairs(1)[0], ...rows])] })
    await refused(bad([{ prompt: 'q', chosen: 'a' }]), /jsonl:2: `rejected` is missing/, 'ERR_DATA')
    await refused(bad([{ prompt: 'q', chosen: 'a', rejected: 'a' }]), /jsonl:2: .*identical/, 'ERR_DATA')
    await refused(bad([{ text: 'q' }]), /jsonl:2: no known row shape/, 'ERR_DATA')
  })

  it('pairs of which nothing is left', async () => {
    await refused(pairRun('dpo', { maxTokens: 5 }), /none of the 24 examples has a token/, 'ERR_DATA')
  })

  it('but a side that is empty or cut off only costs its pair', async () => {
    const long = 'very '.repeat(100)
    const rows = [
      ...pairs(10),
      { prompt: 'q', chosen: '', rejected: 'b' },
      { prompt: long, chosen: 'a', rejected: 'b' },
    ]
    const data = [writeLines(`${directory}.jsonl`, rows)]
    const { events, error } = await outcomeOf(pairRun('dpo', { maxTokens: 90 }, { data }))
    expect(error).toBeUndefined()
    const warnings = eventsOf(events, 'warning').map(({ message }) => message)
    expect(warnings.some((message) => /1 rows left out/.test(message))).toBe(true)
    expect(warnings.some((message) => /1 examples have no token to train on/.test(message))).toBe(true)
    expect(eventsOf(events, 'step').every(({ loss }) => Number.isFinite(loss))).toBe(true)
  })
})
