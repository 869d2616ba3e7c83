// Ending a loop from outside, at any moment: it settles within a micro-batch, frees everything, and the device goes on.
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { openDevice } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import { trainLoop } from '../../lib/train/loop.js'
import {
  adamOptions,
  leakedTensors,
  loopOptions,
  pocketSizes,
  randomExamples,
  sftOf,
  smallModel,
  tiny,
  trained,
} from './small_runs.js'

let device: Device
beforeAll(() => {
  device = openDevice({ threads: 2 })
})
afterAll(() => device.close())

const sizes = { ...pocketSizes, L: 2 }
const examples = randomExamples({ count: 64, V: sizes.V, least: 30, most: 60 })
/** Steps of several micro-batches. */
const newMethod = () => sftOf(examples, { batch: { sequences: 32 }, microBatchTokens: 128 })

const liveTensors = async () => {
  await device.idle()
  return device.stats().liveTensors
}

describe('an AbortSignal', () => {
  it('at 25 random moments ends the loop before the next micro-batch and leaves nothing', async () => {
    const random = new Random(5)
    for (let i = 0; i < 25; i++) {
      const model = smallModel(device, sizes)
      const optimizer = new AdamW(model.parameters(), adamOptions)
      const abort = new AbortController()
      const method = newMethod()
      const loss = method.loss.bind(method)
      const moment = random.integer(1, 40)
      // After so many milliseconds, which may be in an update, or after so many micro-batches.
      const timer = random.chance(0.5) ? sleep(moment).then(() => abort.abort()) : undefined
      let [begun, begunLater] = [0, 0]
      method.loss = (...given) => {
        if (abort.signal.aborted) begunLater++
        if (++begun >= moment && !timer) abort.abort()
        return loss(...given)
      }
      const loop = trainLoop({ ...loopOptions(device, method, model, optimizer), signal: abort.signal })
      const ending = (async () => {
        for await (const _ of loop);
      })()
      await expect(ending).rejects.toMatchObject({ code: 'ERR_ABORTED' })
      await timer
      expect(begunLater).toBe(0)
      optimizer.dispose()
      model.dispose()
      expect(await liveTensors()).toBe(0)
    }
    const after = await trained(
      device,
      smallModel(device, tiny),
      sftOf(randomExamples({ count: 8, V: tiny.V }), {}, { maxSteps: 2 }),
    )
    expect(after.steps.every(({ loss }) => Number.isFinite(loss))).toBe(true)
  })

  it('that has fired before the start ends it before the first micro-batch', async () => {
    const model = smallModel(device, tiny)
    const optimizer = new AdamW(model.parameters(), adamOptions)
    const method = sftOf(randomExamples({ count: 8, V: tiny.V }))
    const loop = trainLoop({ ...loopOptions(device, method, model, optimizer), signal: AbortSignal.abort('no') })
    await expect(loop.next()).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'no' })
    expect(await loop.next()).toEqual({ done: true, value: undefined })
    optimizer.dispose()
    model.dispose()
    expect(await liveTensors()).toBe(0)
  })
})

describe('the loop', () => {
  it('frees everything when its consumer leaves, and does nothing while a step is held', async () => {
    const model = smallModel(device, tiny)
    const optimizer = new AdamW(model.parameters(), adamOptions)
    const method = sftOf(randomExamples({ count: 40, V: tiny.V }))
    for await (const { step } of trainLoop(loopOptions(device, method, model, optimizer))) {
      await device.idle()
      const { commandsRun } = device.stats()
      await sleep(20)
      expect(device.stats().commandsRun).toBe(commandsRun)
      if (step === 3) break
    }
    optimizer.dispose()
    model.dispose()
    expect(await liveTensors()).toBe(0)
  })

  it('has as many live tensors and bytes after each step as after the first', async () => {
    const model = smallModel(device, tiny)
    const optimizer = new AdamW(model.parameters(), adamOptions)
    const seen = new Set<string>()
    const method = sftOf(randomExamples({ count: 40, V: tiny.V }), { microBatchTokens: 50 }, { maxSteps: 30 })
    for await (const _ of trainLoop(loopOptions(device, method, model, optimizer))) {
      await device.idle()
      const { liveTensors: tensors, liveBytes } = device.stats()
      seen.add(`${tensors} tensors, ${liveBytes} bytes`)
    }
    expect([...seen].length).toBe(1)
    optimizer.dispose()
    model.dispose()
    expect(await liveTensors()).toBe(0)
  })

  it('that runs out of memory in a step rejects with ERR_OOM, and a smaller batch goes on as if nothing had been', async () => {
    const few = randomExamples({ count: 8, V: sizes.V, least: 50, most: 60 })
    const small = () => sftOf(few, { batch: { sequences: 1 } }, { maxSteps: 3 })
    const wanted = await trained(device, smallModel(device, sizes), small())
    using limited = openDevice({ threads: 2, memoryBudgetBytes: 12 * 2 ** 20 })
    const model = smallModel(limited, sizes)
    const optimizer = new AdamW(model.parameters(), adamOptions)
    await limited.idle()
    const before = limited.stats().liveTensors
    const large = sftOf(examples, { batch: { sequences: 64 }, microBatchTokens: 4096 }, { maxSteps: 3 })
    const loop = trainLoop(loopOptions(limited, large, model, optimizer))
    await expect(loop.next()).rejects.toMatchObject({ code: 'ERR_OOM', hint: expect.stringContaining('micro-batch') })
    await limited.idle()
    expect(limited.stats().liveTensors).toBe(before)
    optimizer.dispose()
    const after = await trained(limited, model, small())
    expect(after.weights).toBe(wanted.weights)
    await limited.idle()
    expect(limited.stats().liveTensors).toBe(0)
  })

  it('whose device is closed under it rejects, and does not hang', async () => {
    const closing = openDevice({ threads: 2 })
    const model = smallModel(closing, tiny)
    const optimizer = new AdamW(model.parameters(), adamOptions)
    const method = sftOf(randomExamples({ count: 40, V: tiny.V }))
    const ending = (async () => {
      for await (const { step } of trainLoop(loopOptions(closing, method, model, optimizer)))
        if (step === 2) closing.close()
    })()
    await expect(ending).rejects.toMatchObject({ code: expect.stringMatching(/ERR_(DEVICE|ABORTED)/) })
    optimizer.dispose()
    model.dispose()
  })

  it('leaves nothing to the garbage collector', async () => {
    expect(await leakedTensors()).toBe(0)
  })
})
