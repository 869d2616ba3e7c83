// Memory that runs out at any allocation of a step, tensors and working memory of kernels alike: the step fails with
// ERR_OOM and changes nothing, nothing stays behind, and the same step afterwards gives the same bits.
import { afterAll, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import type { CausalLm } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import { leaks, type Tensor } from '../../lib/tensor/index.js'
import { trainLoop } from '../../lib/train/loop.js'
import { adamOptions, hashOf, loopOptions, randomExamples, sftOf, smallModel, tiny } from './small_runs.js'

const device = openDevice({ threads: 2 })
afterAll(() => {
  device.close()
  expect(leaks.caught).toBe(0)
})

const examples = randomExamples({ count: 4, V: tiny.V })

/** One step, of two micro-batches at least, on `model`; the value is what it threw. */
async function step(model: CausalLm, optimizer: AdamW): Promise<CaravanError | undefined> {
  const method = sftOf(examples, { batch: { sequences: 4 }, microBatchTokens: 32 }, { maxSteps: 1 })
  try {
    for await (const _ of trainLoop(loopOptions(device, method, model, optimizer)));
    return undefined
  } catch (error) {
    return error as CaravanError
  }
}

async function withModel<T>(
  dtype: 'f32' | 'bf16',
  body: (model: CausalLm, optimizer: AdamW) => Promise<T>,
): Promise<T> {
  using model = smallModel(device, tiny, { dtype })
  const optimizer = new AdamW(model.parameters(), adamOptions)
  await device.idle()
  try {
    return await body(model, optimizer)
  } finally {
    optimizer.dispose()
  }
}

const state = (model: CausalLm, optimizer: AdamW) =>
  hashOf(new Map<string, Tensor>([...model.parameters(), ...optimizer.tensors()]))

describe.each(['f32', 'bf16'] as const)('an allocation that fails in a step in %s', (dtype) => {
  it('fails that step alone, whichever it is', async () => {
    const [fresh, trained] = await withModel(dtype, async (model, optimizer) => {
      const before = await state(model, optimizer)
      expect(await step(model, optimizer)).toBeUndefined()
      return [before, await state(model, optimizer)]
    })
    expect(fresh).not.toBe(trained)
    let failures = 0
    for (let failed = true; failed; failures += failed ? 1 : 0) {
      failed = await withModel(dtype, async (model, optimizer) => {
        const n = failures + 1
        device.failAllocation(n)
        const error = await step(model, optimizer)
        device.failAllocation(0)
        if (error) {
          expect(error.code, `allocation ${n}: ${error.message}`).toBe('ERR_OOM')
          expect(await state(model, optimizer), `allocation ${n}: ${error.message}`).toBe(fresh)
          expect(await step(model, optimizer)).toBeUndefined()
        }
        expect(await state(model, optimizer), `allocation ${n}`).toBe(trained)
        return error !== undefined
      })
      await device.idle()
      expect(device.stats(), `allocation ${failures + 1}`).toMatchObject({ liveTensors: 0, liveBytes: 0 })
    }
    expect(failures).toBeGreaterThan(100)
  }, 120_000)
})
