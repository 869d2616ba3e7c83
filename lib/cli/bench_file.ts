// The files of `caravan bench`: one JSON document each, with the machine, its load before and after, and every
// measurement, so that `bench compare` and `bench page` need nothing else.
import { readFile } from 'node:fs/promises'
import { availableParallelism, loadavg, totalmem } from 'node:os'
import { CaravanError } from '../base/errors.js'
import { fileError, writeFileAtomic } from '../data/atomic_file.js'
import type { Device } from '../runtime/index.js'
import type { Roofs } from './bench_floor.js'
import type { Spread } from './bench_spread.js'
import type { DtypeFlag } from './command_options.js'
import { processorName } from './machine.js'

export interface BenchMachine {
  /** What computed; absent in files of older versions: cpu. */
  device?: 'cpu' | 'cuda'
  /** Of the GPU where that computed. */
  processor: string
  cores: number
  memoryBytes: number
  node: string
  isa: string
  threads: number
  /** Load averages of 1, 5 and 15 minutes. */
  load: { before: number[]; after: number[] }
}

export interface KernelResult extends Spread {
  op: string
  sample: string
  dtype: DtypeFlag
  /** Read and written; and of them those written. */
  bytes: number
  written: number
  /** Absent where the op does not say. */
  flops?: number
  gbps: number
  gflops?: number
  /** Of the peak that limits it more. */
  shareOfPeak: number
  floorSeconds: number
  bound: 'memory' | 'compute'
  /** Floor / median. */
  shareOfFloor: number
  /** By name; those that have such an op. */
  rivals: { [name: string]: Spread }
}

/** A call that could not be measured. */
export interface FailedKernel {
  op: string
  sample: string
  reason: string
}

export interface KernelFile {
  kind: 'kernels'
  machine: BenchMachine
  dtype: DtypeFlag
  roofs: Roofs & { product: string }
  rivals: { name: string; version: string }[]
  notes: string[]
  kernels: KernelResult[]
  /** Absent when all could be measured. */
  failed?: FailedKernel[]
}

export interface GrowthPoint extends Spread {
  x: number
  /** Most tensor memory in use at a time. */
  peakBytes: number
  rivals: { [name: string]: Spread }
}

export interface GrowthSeries {
  /** What is measured: attention, loss, step. */
  what: string
  /** What grows: T, V, layers, threads. */
  variable: string
  /** The sizes that stay. */
  sizes: string
  points: GrowthPoint[]
  /** Sizes that were left out, since the time was up. */
  left: number[]
}

export interface GrowthFile {
  kind: 'growth'
  machine: BenchMachine
  dtype: DtypeFlag
  rivals: { name: string; version: string }[]
  notes: string[]
  series: GrowthSeries[]
}

export interface StartupMeasure {
  name: string
  value: number
  unit: 'ms' | 's' | 'MiB'
  goal?: number
}

export interface StartupFile {
  kind: 'startup'
  machine: BenchMachine
  measures: StartupMeasure[]
}

export type BenchFile = KernelFile | GrowthFile | StartupFile

const FORMAT = 'caravan-bench'
const VERSION = 1
/** What a file of each kind must have as a list. */
const listOf = { kernels: 'kernels', growth: 'series', startup: 'measures' } as const

/** This machine as it is now. */
export function benchMachine(device: Pick<Device, 'isa' | 'threads' | 'kind' | 'name'>): BenchMachine {
  return {
    device: device.kind,
    processor: device.kind === 'cuda' ? device.name : processorName(),
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    node: process.version,
    isa: device.isa,
    threads: device.threads,
    load: { before: loadavg(), after: loadavg() },
  }
}

/** The machine with the load as it is now, at the end. */
export function afterwards(machine: BenchMachine): BenchMachine {
  return { ...machine, load: { ...machine.load, after: loadavg() } }
}

export async function writeBenchFile(path: string, file: BenchFile): Promise<void> {
  const head = { format: FORMAT, version: VERSION, date: new Date().toISOString() }
  await writeFileAtomic(path, `${JSON.stringify({ ...head, ...file }, null, 1)}\n`)
}

/** Reads a file of `caravan bench`. ERR_FILE when it cannot be read, ERR_FORMAT when it is something else. */
export async function readBenchFile(path: string): Promise<BenchFile> {
  const hint = 'files are written by bench kernels, bench growth and bench startup with --json FILE'
  let value: unknown
  try {
    value = JSON.parse(await readFile(path, 'utf8'))
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw fileError('read', path, error)
    throw new CaravanError('ERR_FORMAT', `${path} is not JSON: ${error.message}`, { details: { path }, hint })
  }
  const found = (typeof value === 'object' && value !== null ? value : {}) as { [key: string]: unknown }
  const list = listOf[found.kind as keyof typeof listOf]
  const isOurs = found.format === FORMAT && list !== undefined && Array.isArray(found[list])
  if (!isOurs || typeof found.machine !== 'object' || found.machine === null) {
    throw new CaravanError('ERR_FORMAT', `${path} holds no measurements of caravan bench`, { details: { path }, hint })
  }
  if (found.version !== VERSION) {
    const message = `${path} has version ${String(found.version)}, and this caravan reads version ${VERSION}`
    throw new CaravanError('ERR_FORMAT', message, { details: { path, version: found.version }, hint: 'measure anew' })
  }
  return found as unknown as BenchFile
}

/** Where a file was measured, and under which load. */
export function benchMachineLine({ device, processor, cores, threads, isa, load }: BenchMachine): string {
  const [before, after] = [load.before[0]!.toFixed(1), load.after[0]!.toFixed(1)]
  const share = device === 'cuda' ? '' : ` ${threads} of ${cores} threads,`
  return `${processor},${share} ${isa}, load ${before} before, ${after} after`
}
