// A stage with its checkpoints: resuming gives the same bits, a failing disk does not end the training, stopping saves.
import { mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { openDevice } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import type { RunEvent } from '../../lib/train/events.js'
import { MetricsLog } from '../../lib/train/metrics.js'
import { runStage, type StageRun, type StageSettings } from '../../lib/train/run_stage.js'
import { failingFileSystem } from './failing_file_system.js'
import { adamOptions, hashOf, randomExamples, sftOf, smallModel, tiny } from './small_runs.js'

let device: Device
let root: string
beforeAll(() => {
  device = openDevice({ threads: 2 })
  root = mkdtempSync(join(tmpdir(), 'caravan-stage-'))
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  rmSync(root, { recursive: true, force: true })
})

const examples = randomExamples({ count: 30, V: tiny.V })
const STEPS = 10

interface Given
  extends Partial<Pick<StageRun<never, never>, 'resume' | 'stop' | 'signal' | 'evaluate' | 'fileSystem'>> {
  settings?: Partial<StageSettings>
  /** Called with each event; false leaves. */
  onEvent?: (event: RunEvent) => boolean | undefined
  dtype?: 'f32' | 'bf16'
}

async function stage(name: string, { settings, onEvent, dtype, resume = false, ...given }: Given = {}) {
  const model = smallModel(device, tiny, { dtype })
  const parameters = model.parameters()
  const optimizer = new AdamW(parameters, adamOptions)
  const events: RunEvent[] = []
  let error: CaravanError | undefined
  try {
    for await (const event of runStage({
      stage: 'sft',
      device,
      method: sftOf(examples, { microBatchTokens: 70 }, { maxSteps: STEPS }),
      models: { policy: model },
      parameters,
      optimizer,
      settings: {
        lr: 3e-3,
        schedule: { kind: 'cosine', warmupSteps: 2 },
        maxNorm: 1,
        maxSkippedInARow: 3,
        checkpointEvery: 3,
        keepCheckpoints: 2,
        evaluateEvery: 0,
        ...settings,
      },
      directory: join(root, name),
      resume,
      flopsPerToken: 1,
      ...given,
    })) {
      events.push(event)
      if (onEvent?.(event) === false) break
    }
  } catch (caught) {
    error = caught as CaravanError
  }
  const hash = (await hashOf(parameters)) + (await hashOf(optimizer.tensors()))
  optimizer.dispose()
  model.dispose()
  const rows = await new MetricsLog(join(root, name)).rows()
  return { events, error, hash, rows: rows.map(({ step, loss, gradNorm, lr }) => ({ step, loss, gradNorm, lr })) }
}

const stepsOf = (events: RunEvent[]) => events.flatMap((event) => (event.type === 'step' ? [event.step] : []))
const savedSteps = (events: RunEvent[]) => events.flatMap((event) => (event.type === 'checkpoint' ? [event.step] : []))
const warnings = (events: RunEvent[]) => events.flatMap((event) => (event.type === 'warning' ? [event] : []))
const checkpoints = (name: string) => readdirSync(join(root, name, 'checkpoints', 'sft')).sort()

describe.each(['f32', 'bf16'] as const)('resuming (%s)', (dtype) => {
  it('after any step gives the bits, rows and learning rates of the undisturbed run', async () => {
    const whole = await stage(`whole-${dtype}`, { dtype })
    expect(stepsOf(whole.events)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    expect(savedSteps(whole.events)).toEqual([3, 6, 9])
    expect(checkpoints(`whole-${dtype}`)).toEqual(['step-6', 'step-9'])
    for (const leaveAt of [1, 3, 5, 9]) {
      const name = `parts-${dtype}-${leaveAt}`
      await stage(name, { dtype, onEvent: (event) => !(event.type === 'step' && event.step === leaveAt) })
      const rest = await stage(name, { dtype, resume: true })
      const from = Math.floor((leaveAt - 1) / 3) * 3
      expect(stepsOf(rest.events)[0], name).toBe(from + 1)
      expect(rest.events.find((event) => event.type === 'stage')).toMatchObject({
        resumedFrom: from || undefined,
        notes: [],
      })
      expect(rest.hash, name).toBe(whole.hash)
      expect(rest.rows, name).toEqual(whole.rows)
    }
  })
})

describe('resuming', () => {
  it('from a damaged checkpoint uses the one before, with a note, and ends with the same bits', async () => {
    const whole = await stage('undamaged')
    await stage('damaged', { onEvent: (event) => !(event.type === 'step' && event.step === 8) })
    truncateSync(join(root, 'damaged/checkpoints/sft/step-6/optimizer.safetensors'), 100)
    mkdirSync(join(root, 'damaged/checkpoints/sft/.tmp-step-9-1'))
    const rest = await stage('damaged', { resume: true })
    const begun = rest.events.find((event) => event.type === 'stage')
    expect(begun).toMatchObject({ resumedFrom: 3 })
    expect((begun as { notes: string[] }).notes).toEqual([
      expect.stringMatching(/passed over: .*step-6: optimizer\.safetensors has 100 bytes/),
    ])
    expect(rest.hash).toBe(whole.hash)
    expect(rest.rows).toEqual(whole.rows)
    expect(checkpoints('damaged')).toEqual(['step-6', 'step-9'])
  })

  it('with no checkpoint that verifies starts anew, and says why', async () => {
    const whole = await stage('whole-again')
    await stage('hopeless', { onEvent: (event) => !(event.type === 'step' && event.step === 7) })
    for (const step of [3, 6]) truncateSync(join(root, `hopeless/checkpoints/sft/step-${step}/MANIFEST.json`), 5)
    const rest = await stage('hopeless', { resume: true })
    expect((rest.events[0] as { notes: string[] }).notes.length).toBe(2)
    expect(stepsOf(rest.events)[0]).toBe(1)
    expect(rest.hash).toBe(whole.hash)
    expect(rest.rows).toEqual(whole.rows)
  })

  it('keeps evaluations with their steps', async () => {
    let count = 0
    const evaluate = async () => ({ evalLoss: 1 / ++count })
    const settings = { evaluateEvery: 3 }
    const { events } = await stage('evaluated', { evaluate, settings })
    const order = events.flatMap((event) =>
      event.type === 'evaluation' || event.type === 'checkpoint' ? [`${event.type} ${event.step}`] : [],
    )
    // A checkpoint without its evaluation would leave a hole after a kill between the two.
    expect(order).toEqual([
      'evaluation 3',
      'checkpoint 3',
      'evaluation 6',
      'checkpoint 6',
      'evaluation 9',
      'checkpoint 9',
      'evaluation 10',
    ])
    const rows = await new MetricsLog(join(root, 'evaluated')).rows()
    expect(rows.filter((row) => 'evalLoss' in row).map(({ step }) => step)).toEqual([3, 6, 9, 10])
  })
})

describe('a disk that fails', () => {
  it('costs checkpoints, each with a warning, but not the training', async () => {
    const whole = await stage('sound')
    const full = await stage('full', { fileSystem: failingFileSystem({ at: 0, sticky: true }) })
    expect(full.error).toBeUndefined()
    expect(full.hash).toBe(whole.hash)
    expect(savedSteps(full.events)).toEqual([])
    const unsaved = warnings(full.events).filter(({ code }) => code === 'ERR_CHECKPOINT_WRITE')
    expect(unsaved.length).toBe(3)
    expect(unsaved[0]).toMatchObject({
      code: 'ERR_CHECKPOINT_WRITE',
      message: expect.stringMatching(/step 3 was not saved.*ENOSPC.*training goes on/),
    })
  })

  it('for one save only is passed over: the next save works, and a resume goes on from there', async () => {
    const whole = await stage('sound-2')
    const counting = failingFileSystem()
    await stage('counted', { fileSystem: counting, onEvent: (event) => event.type !== 'checkpoint' })
    const at = counting.operations.length + 5 // inside the second save
    const partly = await stage('partly', {
      fileSystem: failingFileSystem({ at, failure: 'EIO' }),
      onEvent: (event) => !(event.type === 'step' && event.step === 8),
    })
    expect(savedSteps(partly.events)).toEqual([3])
    expect(warnings(partly.events)[0]?.message).toMatch(/step 6 was not saved.*EIO/)
    expect(checkpoints('partly')).toEqual(['step-3'])
    expect((await stage('partly', { resume: true })).hash).toBe(whole.hash)
  })

  it('finds the metrics on the disk before the checkpoint of the same step', async () => {
    const fileSystem = failingFileSystem()
    await stage('synced', { fileSystem })
    const { operations } = fileSystem
    const saves = operations.flatMap((operation, i) => (operation.startsWith('mkdir .tmp-step-') ? [i] : []))
    expect(saves.length).toBe(3)
    for (const at of saves) expect(operations.slice(at - 2, at)).toEqual(['fsync metrics.jsonl', 'close metrics.jsonl'])
    expect(operations.at(-2)).toBe('fsync metrics.jsonl')
  })

  it('also for the metrics keeps training, and keeps the rows for later', async () => {
    const whole = await stage('sound-3')
    const path = join(root, 'no-metrics', 'metrics.jsonl')
    const got = await stage('no-metrics', {
      onEvent: (event) => {
        if (event.type === 'stage' || (event.type === 'step' && event.step === 4))
          rmSync(path, { recursive: true, force: true })
        if (event.type === 'stage') mkdirSync(path)
        return true
      },
    })
    expect(got.error).toBeUndefined()
    expect(warnings(got.events).map(({ code }) => code)).toEqual(['ERR_FILE', 'ERR_FILE', 'ERR_FILE', 'ERR_FILE'])
    expect(got.rows).toEqual(whole.rows)
  })

  it('that has a file where the checkpoints should be is an error before the first step', async () => {
    mkdirSync(join(root, 'blocked'))
    writeFileSync(join(root, 'blocked', 'checkpoints'), '')
    const { error, events } = await stage('blocked')
    expect(events).toEqual([])
    expect(error).toMatchObject({
      code: 'ERR_FILE',
      details: { errno: 'ENOTDIR', path: join(root, 'blocked/checkpoints/sft') },
    })
  })
})

describe('stopping', () => {
  it('finishes the step, saves, and says where; the rest gives the same bits', async () => {
    const whole = await stage('not-stopped')
    const stop = new AbortController()
    const stopped = await stage('stopped', {
      stop: stop.signal,
      onEvent: (event) => {
        if (event.type === 'step' && event.step === 4) stop.abort()
        return true
      },
    })
    expect(stopped.error).toMatchObject({
      code: 'ERR_ABORTED',
      details: { step: 4, checkpoint: join(root, 'stopped/checkpoints/sft/step-4') },
      hint: expect.stringContaining('--resume'),
    })
    const rest = await stage('stopped', { resume: true })
    expect(stepsOf(rest.events)[0]).toBe(5)
    expect(rest.hash).toBe(whole.hash)
    expect(rest.rows).toEqual(whole.rows)
  })

  it('without being able to save does not claim to have saved', async () => {
    const { error } = await stage('stopped-full', {
      stop: AbortSignal.abort(),
      fileSystem: failingFileSystem({ at: 0, sticky: true }),
    })
    expect(error).toMatchObject({
      code: 'ERR_ABORTED',
      message: expect.stringMatching(/after step 1, without a checkpoint: .*ENOSPC/),
    })
    expect(error?.details.checkpoint).toBeUndefined()
  })
})

describe('an AbortSignal', () => {
  it('ends a step between two micro-batches, leaves no tensor, and the device goes on working', async () => {
    await device.idle() // the counters are those of the commands that have run
    const before = device.stats().liveTensors
    const abort = new AbortController()
    const ended = await stage('aborted', {
      signal: abort.signal,
      onEvent: (event) => {
        if (event.type === 'step' && event.step === 2) abort.abort(new Error('enough'))
        return true
      },
    })
    expect(ended.error).toMatchObject({ code: 'ERR_ABORTED', cause: expect.objectContaining({ message: 'enough' }) })
    expect(stepsOf(ended.events)).toEqual([1, 2])
    await device.idle()
    expect(device.stats().liveTensors).toBe(before)
    const whole = await stage('after-abort')
    expect(whole.error).toBeUndefined()
    expect((await stage('aborted', { resume: true })).hash).toBe(whole.hash)
  })
})
