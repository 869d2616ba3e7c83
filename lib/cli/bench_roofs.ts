// Measures the roofs that `caravan bench kernels` holds kernels against, in the same run and with the same threads.
import { affine, fill, sum } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep } from '../tensor/index.js'
import type { MemorySpeed, Roofs } from './bench_floor.js'
import { inTurns, measurePeak, type PeakScale, peakSizes } from './machine.js'
import type { Rival } from './rival.js'
import { repeatsFor, secondsPerCall } from './timing.js'

/** Bytes that the copies and the sums move: on a CPU from what fits a second-level cache to what fits none. On a GPU
 *  the data of a kernel change from call to call, so no cache serves it. */
const levelBytes: { readonly [scale in PeakScale]: readonly number[] } = {
  cpu: [2 ** 18, 2 ** 20, 2 ** 22, 2 ** 24, 2 ** 26, 2 ** 28],
  gpu: [2 ** 30],
  tiny: [2 ** 13],
}
const LEVEL_SECONDS = 0.015
const SAMPLES = 5
const ROW_ELEMENTS = 1024

/** Peaks and cache levels, best of a few. The peak of a product is that of the fastest library here, ours or a rival's:
 *  a share of our own product alone would say nothing about it. */
export async function measureRoofs(
  device: Device,
  dtype: 'f32' | 'bf16',
  { rivals, scale }: { rivals: readonly Rival[]; scale: PeakScale },
): Promise<Roofs & { product: string }> {
  const { gflops, gbps } = await measurePeak(device, dtype, { scale })
  const best = { gflops, product: 'caravan' }
  const { rows, inputs, outputs } = peakSizes[scale].product
  for (const rival of rivals) {
    for (let i = 0; i < SAMPLES; i++) {
      const seconds = await rival.seconds('linear', { lead: [rows], D: inputs, F: outputs }, LEVEL_SECONDS)
      if (seconds === undefined) break
      const theirs = (2 * rows * inputs * outputs) / seconds / 1e9
      // One of half the speed will not catch up.
      if (theirs < gflops / 2) break
      if (theirs > best.gflops) Object.assign(best, { gflops: theirs, product: rival.name })
    }
  }
  const levels: MemorySpeed[] = []
  for (const bytes of levelBytes[scale]) levels.push(await memorySpeed(device, bytes, peakSizes[scale].sources))
  return { gbps, ...best, levels }
}

/** The speed of a copy that reads half of `bytes` and writes the other half, and of sums over rows of `bytes`. */
async function memorySpeed(device: Device, bytes: number, sources: number): Promise<MemorySpeed> {
  const filled = (shape: number[]) =>
    Array.from({ length: sources }, () => keep(fill(device, shape, { value: 1, dtype: 'f32' })))
  const halves = filled([bytes / 8])
  const copyGbps = await speed(device, inTurns(halves.map((half) => () => affine(half, 1, 0))), bytes)
  for (const half of halves) half.dispose()
  const wholes = filled([bytes / 4 / ROW_ELEMENTS, ROW_ELEMENTS])
  const readGbps = await speed(device, inTurns(wholes.map((whole) => () => sum(whole, 1))), bytes)
  for (const whole of wholes) whole.dispose()
  return { bytes, copyGbps, readGbps }
}

async function speed(device: Device, call: () => unknown, bytes: number): Promise<number> {
  const repeats = await repeatsFor(device, call, LEVEL_SECONDS)
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < SAMPLES; i++) best = Math.min(best, await secondsPerCall(device, call, repeats))
  return bytes / best / 1e9
}
