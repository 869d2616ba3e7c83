// Timing of work on a device. Calls are queued in a row and waited for once, so that the cost of a wait (about 15 us)
// is spread over all of them, as it is in training.
import type { Device } from '../runtime/index.js'
import { scope } from '../tensor/index.js'

/** Seconds of wall clock for one of `repeats` calls in a row. What the calls make is freed. */
export async function secondsPerCall(device: Device, call: () => unknown, repeats: number): Promise<number> {
  await device.idle()
  const started = performance.now()
  for (let i = 0; i < repeats; i++) {
    scope(() => {
      call()
    })
  }
  await device.idle()
  return (performance.now() - started) / 1000 / repeats
}

/** How many calls in a row take about `seconds`; the calls it needs to find out warm the caches. */
export async function repeatsFor(device: Device, call: () => unknown, seconds: number): Promise<number> {
  await secondsPerCall(device, call, 1)
  const one = await secondsPerCall(device, call, 2)
  return Math.max(1, Math.min(2000, Math.round(seconds / Math.max(one, 1e-7))))
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
