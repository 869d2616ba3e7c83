// The one training loop. It never asks which method runs.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import type { Batch, Method } from '../methods/method.js'
import { addInto, fill } from '../ops/index.js'
import type { Optimizer, StepResult } from '../optim/optimizer.js'
import { type ScheduleOptions, scheduleFactor } from '../optim/schedule.js'
import type { Device } from '../runtime/index.js'
import { Gradients, keep, Tape, type Tensor } from '../tensor/index.js'

export interface LoopOptions<Models, Micro> {
  device: Device
  method: Method<Models, Micro>
  models: Models
  optimizer: Optimizer
  lr: number
  schedule: Omit<ScheduleOptions, 'totalSteps'>
  /** Largest gradient norm; 0 = no clipping. */
  maxNorm: number
  /** Steps in a row whose gradients may be NaN or infinite before ERR_DIVERGED. */
  maxSkippedInARow: number
  /** Number of the first step, when continuing. */
  firstStep: number
  skippedInARow: number
  signal?: AbortSignal
}

/** What one optimizer step did. */
export interface Step {
  /** From 1. */
  step: number
  totalSteps: number
  /** Mean over the batch's count. */
  loss: number
  lr: number
  gradientNorm: number
  /** What is logged beside the loss, by name: means over the batch's count, and the batch's facts as they are. */
  metrics: Record<string, number>
  /** True when the gradients were not finite: no parameter and no moment has changed. */
  skipped: boolean
  /** Of a skipped step: the first parameter whose gradient is not finite. */
  notFinite: string | undefined
  skippedInARow: number
  tokens: number
  seconds: number
  peakBytes: number
}

/** Runs the method to its end, one yielded step at a time; nothing runs while the consumer holds a step. */
export async function* trainLoop<Models, Micro>(options: LoopOptions<Models, Micro>): AsyncGenerator<Step> {
  const { device, method, models, optimizer, lr, schedule, maxNorm, maxSkippedInARow } = options
  const { totalSteps } = method
  let { firstStep: step, skippedInARow } = options
  const seed = keep(fill(device, [1], { value: 1, dtype: 'f32' }))
  seed.unit = true
  using gradients = new Gradients()
  try {
    for await (const batch of method.batches(models)) {
      const started = performance.now()
      device.resetPeak()
      const stepLr = lr * scheduleFactor(step, { ...schedule, totalSteps })
      const scale = 1 / Math.max(1, batch.count)
      const sums = await accumulate(batch, { ...options, seed, gradients, step: step + 1 })
      const update = device.named(`step ${step + 1} update`, () =>
        optimizer.step(gradients, { lr: stepLr, scale, maxNorm }),
      )
      const [{ gradientNorm, finite, notFinite, norms }, [loss, ...logged]] = await settled(update, sums, scale)
      const named = Object.fromEntries((method.metricNames ?? []).map((name, i) => [name, logged[i]!]))
      const metrics = { ...named, ...norms, ...batch.facts }
      gradients.dispose()
      skippedInARow = finite ? 0 : skippedInARow + 1
      yield {
        step: ++step,
        totalSteps,
        loss,
        lr: stepLr,
        gradientNorm,
        metrics,
        skipped: !finite,
        notFinite,
        skippedInARow,
        tokens: batch.tokens,
        seconds: (performance.now() - started) / 1000,
        peakBytes: device.stats().peakBytes,
      }
      if (!finite && skippedInARow >= maxSkippedInARow)
        throw diverged({ step, skipped: skippedInARow, loss, notFinite })
    }
  } finally {
    seed.dispose()
  }
}

type Accumulation<Models, Micro> = LoopOptions<Models, Micro> & { seed: Tensor; gradients: Gradients; step: number }

/** Adds up loss, what is logged beside it, and gradients over the micro-batches of a step. At most two of them are in
 *  flight, so the command stream stays short and the event loop gets its turn. */
async function accumulate<Models, Micro>(
  batch: Batch<Micro>,
  { device, method, models, seed, gradients, step, signal }: Accumulation<Models, Micro>,
): Promise<Tensor[]> {
  const names = method.metricNames?.length ?? 0
  const totals = (names > 0 ? [1, names] : [1]).map((count) => keep(fill(device, [count], { value: 0, dtype: 'f32' })))
  let before: Promise<void> = Promise.resolve()
  try {
    for (const micro of batch.microBatches()) {
      throwIfAborted(signal)
      using tape = new Tape({ into: gradients, unitSeed: method.unitSeed })
      const { sum, metrics } = device.named(`step ${step} forward`, () => tape.record(() => method.loss(models, micro)))
      device.named(`step ${step} backward`, () => tape.backward(sum, seed, gradients))
      for (const [i, part] of [sum, metrics].entries()) {
        if (!part) continue
        addInto(totals[i]!, part)
        part.dispose()
      }
      await before
      before = device.idle()
      before.catch(() => {}) // awaited in the next turn
    }
    await before
    return totals
  } catch (error) {
    for (const total of totals) total.dispose()
    await before.catch(() => {})
    throw error
  }
}

/** Result of the update; the mean loss followed by what is logged beside it, whose tensors are freed. */
async function settled(
  update: Promise<StepResult>,
  sums: readonly Tensor[],
  scale: number,
): Promise<[StepResult, [number, ...number[]]]> {
  try {
    // All reads are asked for at once: the device need not wait for an answer between them.
    const [result, ...values] = await Promise.all([update, ...sums.map((sum) => sum.read())])
    return [result, values.flatMap((read) => Array.from(read, (value) => value * scale)) as [number, ...number[]]]
  } finally {
    for (const sum of sums) sum.dispose()
  }
}

function diverged(facts: { step: number; skipped: number; loss: number; notFinite: string | undefined }): CaravanError {
  const { step, skipped, loss, notFinite } = facts
  const where = `step ${step}, loss ${loss}${notFinite ? `, first in ${notFinite}` : ''}`
  return new CaravanError('ERR_DIVERGED', `${skipped} steps in a row had gradients that are not finite (${where})`, {
    details: facts,
    hint: 'lower the learning rate, lengthen the warm-up, or look at the data of these steps; the last checkpoint is from before',
  })
}
