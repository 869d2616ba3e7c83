// What the machine is, and how fast it is at the two things that matter: multiply-add and moving memory. The peaks are
// measured with the engine's own kernels, so a share of them is a share of what is known to be reachable here.
import { cpus, loadavg, totalmem } from 'node:os'
import { affine, fill, linear, randomNormal } from '../ops/index.js'
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

/** How large the work is whose speed counts as the peak. */
export interface PeakSizes {
  /** Elements that are copied: more bytes than the caches hold. */
  copyElements: number
  /** Sources of the copies, in turns, so that none is left in a cache. */
  sources: number
  product: { rows: number; inputs: number; outputs: number }
}

export type PeakScale = 'cpu' | 'gpu' | 'tiny'

/** 128 MiB read and as many written; on a GPU 512 MiB each. 'tiny' measures nothing: it tries the way. */
export const peakSizes: { readonly [scale in PeakScale]: PeakSizes } = {
  cpu: { copyElements: 2 ** 25, sources: 1, product: { rows: 512, inputs: 1024, outputs: 1024 } },
  gpu: { copyElements: 2 ** 27, sources: 2, product: { rows: 8192, inputs: 8192, outputs: 8192 } },
  tiny: { copyElements: 2 ** 10, sources: 2, product: { rows: 16, inputs: 32, outputs: 16 } },
}

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

/** What a measurement takes: about `seconds` of time, and the sizes of `scale`, without which the device decides. */
export interface PeakOptions {
  seconds?: number
  scale?: PeakScale
}

/** The peaks in a dtype, each the best of five. */
export async function measurePeak(device: Device, dtype: 'f32' | 'bf16', options: PeakOptions = {}): Promise<Peak> {
  return { gflops: await measureProduct(device, dtype, options), gbps: await measureCopy(device, options) }
}

/** 10^9 floating-point operations a second of a product of random numbers: on equal ones a GPU clocks higher. */
export async function measureProduct(
  device: Device,
  dtype: 'f32' | 'bf16',
  { seconds = 0.5, scale = scaleOf(device) }: PeakOptions = {},
): Promise<number> {
  const { rows, inputs, outputs } = peakSizes[scale].product
  const random = (shape: number[], stream: number) =>
    keep(randomNormal(device, shape, { deviation: 1, seed: 1, stream, dtype }))
  using x = random([rows, inputs], 1)
  using w = random([outputs, inputs], 2)
  return (2 * rows * inputs * outputs) / (await bestSeconds(device, () => linear(x, w), seconds)) / 1e9
}

/** 10^9 bytes a second, read plus written, of a copy in f32. */
export async function measureCopy(
  device: Device,
  { seconds = 0.5, scale = scaleOf(device) }: PeakOptions = {},
): Promise<number> {
  const { copyElements, sources } = peakSizes[scale]
  // Random for a GPU, which clocks higher on equal numbers; a processor does not, and would draw them for a second.
  const source = (stream: number) =>
    device.kind === 'cuda'
      ? randomNormal(device, [copyElements], { deviation: 1, seed: 1, stream, dtype: 'f32' })
      : fill(device, [copyElements], { value: 1, dtype: 'f32' })
  const copied = Array.from({ length: sources }, (_, i) => keep(source(3 + i)))
  const copySeconds = await bestSeconds(device, inTurns(copied.map((one) => () => affine(one, 1, 0))), seconds)
  for (const one of copied) one.dispose()
  return (8 * copyElements) / copySeconds / 1e9
}

function scaleOf(device: Device): PeakScale {
  return device.kind === 'cuda' ? 'gpu' : 'cpu'
}

/** Runs another of `calls` each time. */
export function inTurns(calls: readonly (() => unknown)[]): () => unknown {
  let next = 0
  return () => calls[next++ % calls.length]!()
}

async function bestSeconds(device: Device, call: () => unknown, seconds: number): Promise<number> {
  const repeats = await repeatsFor(device, call, seconds / (SAMPLES + 1))
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < SAMPLES; i++) best = Math.min(best, await secondsPerCall(device, call, repeats))
  return best
}
