// What the machine is, and how fast it is at the two things that matter: multiply-add and moving memory. The peaks are
// measured with the engine's own kernels, so a share of them is a share of what is known to be reachable here.
import { cpus, loadavg, totalmem } from 'node:os'
import { affine, fill, linear } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep } from '../tensor/index.js'
import { bytesText } from './format.js'
import { repeatsFor, secondsPerCall } from './timing.js'

export interface Peak {
  /** 10^9 floating-point operations a second of a large matrix product. */
  gflops: number
  /** 10^9 bytes a second, read plus written, of a copy that does not fit a cache. */
  gbps: number
}

/** Elements of the copy: 128 MiB read and as many written, more than the caches of current processors. */
const COPY_ELEMENTS = 2 ** 25
const PRODUCT = { rows: 512, inputs: 1024, outputs: 1024 }
const SAMPLES = 5

/** Name of the processor as the system tells it. */
export function processorName(): string {
  return cpus()[0]?.model.trim().replaceAll(/\s+/g, ' ') ?? 'unknown processor'
}

/** The 1, 5 and 15 minute load averages, one digit each. */
export function loadText(): string {
  return loadavg()
    .map((value) => value.toFixed(1))
    .join(' ')
}

/** One line that says where a number was measured that no device made. */
export function machineName(): string {
  return `${processorName()}, ${cpus().length} threads, ${bytesText(totalmem())}, load ${loadText()}`
}

/** One line that says where a number was measured. */
export function machineLine(device: Device): string {
  if (device.kind === 'cuda') return `${device.name}, ${device.isa}, load ${loadText()}`
  const cores = `${device.threads} of ${cpus().length} threads`
  return `${processorName()}, ${cores}, ${device.isa}, ${bytesText(totalmem())}, load ${loadText()}`
}

/** Measures both peaks, best of a few, in about `seconds` seconds. */
export async function measurePeak(device: Device, dtype: 'f32' | 'bf16', seconds = 1): Promise<Peak> {
  const { rows, inputs, outputs } = PRODUCT
  using x = keep(fill(device, [rows, inputs], { value: 0.5, dtype }))
  using w = keep(fill(device, [outputs, inputs], { value: 0.25, dtype }))
  const product = await bestSeconds(device, () => linear(x, w), seconds / 2)
  using source = keep(fill(device, [COPY_ELEMENTS], { value: 1, dtype: 'f32' }))
  const copy = await bestSeconds(device, () => affine(source, 1, 0), seconds / 2)
  return { gflops: (2 * rows * inputs * outputs) / product / 1e9, gbps: (8 * COPY_ELEMENTS) / copy / 1e9 }
}

async function bestSeconds(device: Device, call: () => unknown, seconds: number): Promise<number> {
  const repeats = await repeatsFor(device, call, seconds / (SAMPLES + 1))
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < SAMPLES; i++) best = Math.min(best, await secondsPerCall(device, call, repeats))
  return best
}
