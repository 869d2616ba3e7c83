// A step whose gradients are not finite changes nothing and is said to be skipped; several in a row end the run; how
// many there were survives a resume.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PackedBatch } from '../../lib/data/pack.js'
import type { Method } from '../../lib/methods/method.js'
import type { Sft } from '../../lib/methods/sft.js'
import type { CausalLm } from '../../lib/models/index.js'
import { affine, openDevice } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import type { RunEvent } from '../../lib/train/events.js'
import { trainLoop } from '../../lib/train/loop.js'
import { runStage } from '../../lib/train/run_stage.js'
import { adamOptions, hashOf, loopOptions, randomExamples, sftOf, smallModel, tiny } from './small_runs.js'

type Models = { policy: CausalLm }
/** `factor` multiplies the loss. */
type SpoiledBatch = PackedBatch & { factor?: number }

/** Supervised fine-tuning whose loss is spoiled at some steps (from 1), in their last micro-batch. */
class Spoiled implements Method<Models, SpoiledBatch> {
  readonly name = 'spoiled'
  // The spoilt factor is a gradient other than 1.
  readonly unitSeed = false

  constructor(
    private readonly inner: Sft,
    private readonly spoil: (step: number) => number | undefined,
  ) {}

  get totalSteps() {
    return this.inner.totalSteps
  }

  *batches() {
    for (const batch of this.inner.batches()) {
      const step = (this.inner.state() as { done: number }).done
      const factor = this.spoil(step)
      yield {
        ...batch,
        *microBatches() {
          const micros = [...batch.microBatches()]
          for (const [i, micro] of micros.entries()) {
            yield { ...micro, factor: i === micros.length - 1 ? factor : undefined }
          }
        },
      }
    }
  }

  loss(models: Models, micro: SpoiledBatch) {
    const { sum } = this.inner.loss(models, micro)
    return { sum: micro.factor === undefined ? sum : affine(sum, micro.factor, 0) }
  }

  state() {
    return this.inner.state()
  }

  restore(state: unknown) {
    this.inner.restore(state)
  }
}

let device: Device
let root: string
beforeAll(() => {
  device = openDevice({ threads: 2 })
  root = mkdtempSync(join(tmpdir(), 'caravan-not-finite-'))
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  rmSync(root, { recursive: true, force: true })
})

const examples = randomExamples({ count: 24, V: tiny.V })
const newMethod = (spoil: (step: number) => number | undefined, maxSteps = 10) =>
  new Spoiled(sftOf(examples, { microBatchTokens: 48 }, { maxSteps }), spoil)

describe('a step that is not finite', () => {
  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    '(%s) changes no bit, and only itself is skipped',
    async (bad) => {
      const model = smallModel(device, tiny)
      const optimizer = new AdamW(model.parameters(), adamOptions)
      const method = newMethod((step) => (step === 4 ? bad : undefined))
      const hashes: string[] = []
      const skipped: number[] = []
      let updates = 0
      for await (const step of trainLoop(loopOptions(device, method, model, optimizer))) {
        hashes.push((await hashOf(model.parameters())) + (await hashOf(optimizer.tensors())))
        if (step.skipped) {
          skipped.push(step.step)
          expect(step.skippedInARow).toBe(1)
          expect(step.notFinite).toBe([...model.parameters().keys()][0])
          expect(optimizer.updates).toBe(updates)
        } else {
          expect(step.skippedInARow).toBe(0)
          expect(step.notFinite).toBeUndefined()
          expect(Number.isFinite(step.loss)).toBe(true)
        }
        updates = optimizer.updates
      }
      expect(skipped).toEqual([4])
      expect(hashes[3]).toBe(hashes[2])
      expect(new Set(hashes).size).toBe(9)
      optimizer.dispose()
      model.dispose()
    },
  )

  it('ends the run when it is the last of too many in a row, naming step and parameter', async () => {
    const model = smallModel(device, tiny)
    const optimizer = new AdamW(model.parameters(), adamOptions)
    // Two in a row, a good one, then three in a row.
    const method = newMethod((step) => ([2, 3, 5, 6, 7].includes(step) ? Number.NaN : undefined))
    const rows: number[] = []
    const options = { ...loopOptions(device, method, model, optimizer), maxSkippedInARow: 3 }
    const ending = (async () => {
      for await (const step of trainLoop(options)) rows.push(step.skippedInARow)
    })()
    await expect(ending).rejects.toMatchObject({
      code: 'ERR_DIVERGED',
      details: { step: 7, skipped: 3, notFinite: [...model.parameters().keys()][0] },
      hint: expect.stringContaining('learning rate'),
    })
    expect(rows).toEqual([0, 1, 2, 0, 1, 2, 3])
    optimizer.dispose()
    model.dispose()
  })

  it('ends the run at once with a limit of 0 or 1, and a good step never does', async () => {
    for (const maxSkippedInARow of [0, 1]) {
      const model = smallModel(device, tiny)
      const optimizer = new AdamW(model.parameters(), adamOptions)
      const method = newMethod((step) => (step === 3 ? Number.NaN : undefined))
      let seen = 0
      const options = { ...loopOptions(device, method, model, optimizer), maxSkippedInARow }
      const ending = (async () => {
        for await (const { step } of trainLoop(options)) seen = step
      })()
      await expect(ending).rejects.toMatchObject({ code: 'ERR_DIVERGED', details: { step: 3 } })
      expect(seen).toBe(3)
      optimizer.dispose()
      model.dispose()
    }
  })
})

/** Runs a stage with a checkpoint after every step until it ends or fails; `leaveAfter` breaks off as a kill would. */
async function stage(
  directory: string,
  spoil: (step: number) => number | undefined,
  { resume = false, leaveAfter = 0 } = {},
) {
  const model = smallModel(device, tiny)
  const optimizer = new AdamW(model.parameters(), adamOptions)
  const events: RunEvent[] = []
  let error: unknown
  try {
    const method = newMethod(spoil)
    for await (const event of runStage({
      stage: 'sft',
      device,
      method,
      models: { policy: model },
      parameters: model.parameters(),
      optimizer,
      settings: {
        lr: 3e-3,
        schedule: { kind: 'linear', warmupSteps: 2 },
        maxNorm: 1,
        maxSkippedInARow: 3,
        checkpointEvery: 1,
        keepCheckpoints: 2,
        evaluateEvery: 0,
      },
      directory,
      resume,
      flopsPerToken: 1,
    })) {
      events.push(event)
      if (leaveAfter > 0 && event.type === 'checkpoint' && event.step === leaveAfter) break
    }
  } catch (caught) {
    error = caught
  }
  const hash = (await hashOf(model.parameters())) + (await hashOf(optimizer.tensors()))
  const { updates } = optimizer
  optimizer.dispose()
  model.dispose()
  return { events, error, hash, updates }
}

describe('the count of skipped steps', () => {
  it('survives a resume: two before the kill and one after are three', async () => {
    const spoil = (step: number) => ([4, 5, 6].includes(step) ? Number.NaN : undefined)
    const whole = await stage(join(root, 'whole'), spoil)
    expect(whole.error).toMatchObject({ code: 'ERR_DIVERGED', details: { step: 6, skipped: 3 } })
    await stage(join(root, 'parts'), spoil, { leaveAfter: 5 })
    const rest = await stage(join(root, 'parts'), spoil, { resume: true })
    expect(rest.events.flatMap((event) => (event.type === 'step' ? [event.step] : []))).toEqual([6])
    expect(rest.error).toMatchObject({ code: 'ERR_DIVERGED', details: { step: 6, skipped: 3 } })
    expect(rest.hash).toBe(whole.hash)
  })

  it('and a run that recovers goes on with the same bits after a resume inside the bad stretch', async () => {
    const spoil = (step: number) => ([4, 5].includes(step) ? Number.NaN : undefined)
    const whole = await stage(join(root, 'recovering'), spoil)
    expect(whole.error).toBeUndefined()
    expect(whole.updates).toBe(8)
    await stage(join(root, 'recovering-parts'), spoil, { leaveAfter: 4 })
    const rest = await stage(join(root, 'recovering-parts'), spoil, { resume: true })
    expect(rest.error).toBeUndefined()
    expect(rest.updates).toBe(8)
    expect(rest.hash).toBe(whole.hash)
    expect(whole.events.filter((event) => event.type === 'step' && event.skipped).length).toBe(2)
  })
})
