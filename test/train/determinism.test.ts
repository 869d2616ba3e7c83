// The same bits on any number of threads, from run to run, and with activations computed again; the same numbers to
// rounding for any micro-batch size.
import { describe, expect, it, vi } from 'vitest'
import { openDevice } from '../../lib/ops/index.js'
import type { Checkpointing } from '../../lib/tensor/index.js'
import {
  pocketSizes,
  randomExamples,
  type Sizes,
  sftOf,
  smallModel,
  type Trained,
  tiny,
  trained,
} from './small_runs.js'

// Seconds on a quiet machine; a busy one takes its time.
vi.setConfig({ testTimeout: 240_000 })

const STEPS = 12
const examples = randomExamples({ count: 60, V: 1024, least: 8, most: 60 })
const odd: Sizes = { V: 331, D: 24, L: 2, H: 3, F: 52 }
const oddExamples = randomExamples({ count: 60, V: 331, least: 1, most: 70, seed: 9 })

interface Variation {
  threads: number
  checkpointing?: Checkpointing
  microBatchTokens?: number
  dtype?: 'f32' | 'bf16'
}

async function run(
  sizes: Sizes,
  { threads, checkpointing, microBatchTokens = 256, dtype }: Variation,
): Promise<Trained> {
  using device = openDevice({ threads })
  const model = smallModel(device, sizes, { dtype })
  const loader = { batch: { sequences: 8 }, microBatchTokens }
  const method = sftOf(sizes === odd ? oddExamples : examples, loader, {
    activationCheckpointing: checkpointing ?? 'none',
    maxSteps: STEPS,
  })
  const outcome = await trained(device, model, method)
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  return outcome
}

function expectSameBits(got: Trained, wanted: Trained, label: string): void {
  expect(got.steps.length).toBe(STEPS)
  expect(got.metrics, `${label}: loss and gradient norm`).toBe(wanted.metrics)
  expect(got.weights, `${label}: weights`).toBe(wanted.weights)
  expect(got.moments, `${label}: moments`).toBe(wanted.moments)
}

describe('bit identity', () => {
  it('holds on 1, 2, 3 and 4 threads, and from run to run, at the sizes of the pocket recipe', async () => {
    const wanted = await run(pocketSizes, { threads: 1 })
    for (const threads of [2, 3, 4, 2]) {
      expectSameBits(await run(pocketSizes, { threads }), wanted, `${threads} threads`)
    }
  })

  it('holds at odd sizes, in f32 and bf16', async () => {
    for (const dtype of ['f32', 'bf16'] as const) {
      const wanted = await run(odd, { threads: 1, dtype })
      for (const threads of [2, 3, 4]) {
        expectSameBits(await run(odd, { threads, dtype }), wanted, `${dtype}, ${threads} threads`)
      }
    }
  })

  it('holds with activation checkpointing, in less memory', async () => {
    const plain = await run(pocketSizes, { threads: 2 })
    const [selective, full] = [
      await run(pocketSizes, { threads: 3, checkpointing: 'selective' }),
      await run(pocketSizes, { threads: 1, checkpointing: 'full' }),
    ]
    expectSameBits(selective, plain, 'selective')
    expectSameBits(full, plain, 'full')
    const peak = ({ steps }: Trained) => Math.max(...steps.map(({ peakBytes }) => peakBytes))
    expect(peak(selective)).toBeLessThan(0.9 * peak(plain))
    // Of the last block, which only computes rows that are read, there is little to leave out.
    expect(peak(full)).toBeLessThan(0.92 * peak(selective))
  })

  it('holds with activation checkpointing at odd sizes in bf16', async () => {
    const plain = await run(odd, { threads: 2, dtype: 'bf16' })
    for (const checkpointing of ['selective', 'full'] as const) {
      expectSameBits(await run(odd, { threads: 3, dtype: 'bf16', checkpointing }), plain, checkpointing)
    }
  })

  it('can fail: another seed, another batch order, and another learning rate give other bits', async () => {
    using device = openDevice({ threads: 2 })
    const method = (seed: number) => sftOf(oddExamples, { seed, microBatchTokens: 128 }, { maxSteps: 3 })
    const base = await trained(device, smallModel(device, odd), method(1))
    expect((await trained(device, smallModel(device, odd), method(1))).weights).toBe(base.weights)
    expect((await trained(device, smallModel(device, odd, { seed: 2 }), method(1))).weights).not.toBe(base.weights)
    expect((await trained(device, smallModel(device, odd), method(2))).weights).not.toBe(base.weights)
    expect((await trained(device, smallModel(device, odd), method(1), { lr: 2e-3 })).weights).not.toBe(base.weights)
  })
})

describe('micro-batches', () => {
  it('change nothing but rounding', async () => {
    const wanted = await run(odd, { threads: 2, microBatchTokens: 4096 })
    for (const microBatchTokens of [90, 200]) {
      const got = await run(odd, { threads: 2, microBatchTokens })
      for (const [i, { loss, gradientNorm }] of wanted.steps.entries()) {
        // Adam's division carries the rounding of early steps on: the bound grows with the steps.
        const bound = 1e-6 * (i + 1)
        expect(Math.abs(got.steps[i]!.loss / loss - 1), `${microBatchTokens}: loss of step ${i + 1}`).toBeLessThan(
          bound,
        )
        expect(Math.abs(got.steps[i]!.gradientNorm / gradientNorm - 1), `norm of step ${i + 1}`).toBeLessThan(
          10 * bound,
        )
      }
    }
  })

  it('of one sequence each see no neighbour: packing equals no packing', async () => {
    using device = openDevice({ threads: 2 })
    const few = randomExamples({ count: 16, V: tiny.V })
    const packed = await trained(
      device,
      smallModel(device, tiny),
      sftOf(few, { microBatchTokens: 200 }, { maxSteps: 4 }),
    )
    const alone = await trained(device, smallModel(device, tiny), sftOf(few, { packing: 'none' }, { maxSteps: 4 }))
    for (const [i, { loss, tokens }] of packed.steps.entries()) {
      expect(Math.abs(alone.steps[i]!.loss / loss - 1)).toBeLessThan(1e-5)
      expect(alone.steps[i]!.tokens).toBe(tokens)
    }
  })
})
