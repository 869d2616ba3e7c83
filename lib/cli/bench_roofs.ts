// Measures the roofs that `caravan bench kernels` holds kernels against, in the same run and with the same threads.
import { affine, fill, sum } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep } from '../tensor/index.js'
import type { MemorySpeed, Roofs } from './bench_floor.js'
import { measurePeak } from './machine.js'
import type { Rival } from './rival.js'
import { repeatsFor, secondsPerCall } from './timing.js'

/** Bytes that the copies and the sums move: from what fits a second-level cache to what fits none. */
const LEVEL_BYTES = [2 ** 18, 2 ** 20, 2 ** 22, 2 ** 24, 2 ** 26, 2 ** 28]
const LEVEL_SECONDS = 0.015
const SAMPLES = 5
const ROW_ELEMENTS = 1024
/** The product of which the fastest maker gives the peak. */
const PRODUCT = { lead: [512], D: 1024, F: 1024 }
const PRODUCT_FLOPS = 2 * 512 * 1024 * 1024

/** Peaks and cache levels, best of a few. The peak of a product is that of the fastest library here, ours or a rival's:
 *  a share of our own product alone would say nothing about it. */
export async function measureRoofs(
  device: Device,
  dtype: 'f32' | 'bf16',
  rivals: readonly Rival[],
): Promise<Roofs & { product: string }> {
  const { gflops, gbps } = await measurePeak(device, dtype)
  const best = { gflops, product: 'caravan' }
  for (const rival of rivals) {
    for (let i = 0; i < SAMPLES; i++) {
      const seconds = await rival.seconds('linear', PRODUCT, LEVEL_SECONDS)
      if (seconds === undefined) break
      const theirs = PRODUCT_FLOPS / seconds / 1e9
      // One of half the speed will not catch up.
      if (theirs < gflops / 2) break
      if (theirs > best.gflops) Object.assign(best, { gflops: theirs, product: rival.name })
    }
  }
  const levels: MemorySpeed[] = []
  for (const bytes of LEVEL_BYTES) levels.push(await memorySpeed(device, bytes))
  return { gbps, ...best, levels }
}

/** The speed of a copy that reads half of `bytes` and writes the other half, and of sums over rows of `bytes`. */
async function memorySpeed(device: Device, bytes: number): Promise<MemorySpeed> {
  using half = keep(fill(device, [bytes / 8], { value: 1, dtype: 'f32' }))
  const copyGbps = await speed(device, () => affine(half, 1, 0), bytes)
  using whole = keep(fill(device, [bytes / 4 / ROW_ELEMENTS, ROW_ELEMENTS], { value: 1, dtype: 'f32' }))
  const readGbps = await speed(device, () => sum(whole, 1), bytes)
  return { bytes, copyGbps, readGbps }
}

async function speed(device: Device, call: () => unknown, bytes: number): Promise<number> {
  const repeats = await repeatsFor(device, call, LEVEL_SECONDS)
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < SAMPLES; i++) best = Math.min(best, await secondsPerCall(device, call, repeats))
  return bytes / best / 1e9
}
