// `caravan bench compare`: two files of kernel measurements, kernel by kernel. A difference counts only where the
// measurements themselves tell it from noise: the quartiles do not overlap, and the medians differ by more than 2 %.
import { CaravanError } from '../base/errors.js'
import { type BenchMachine, benchMachineLine, type KernelFile, type KernelResult, readBenchFile } from './bench_file.js'
import type { Spread } from './bench_spread.js'
import { exitCodes } from './failure.js'
import { percentText, shortNumber } from './format.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'

export interface BenchCompareFlags {
  failAbove?: number
  force?: boolean
  json?: boolean
}

export type Verdict = 'faster' | 'slower' | 'same'

export interface ComparedKernel {
  op: string
  sample: string
  dtype: string
  beforeSeconds: number
  afterSeconds: number
  /** After / before: above 1 is slower. */
  ratio: number
  verdict: Verdict
}

export interface Comparison {
  kernels: ComparedKernel[]
  onlyBefore: string[]
  onlyAfter: string[]
  /** Geometric mean of the ratios. */
  meanRatio: number
}

/** Differences below this are not worth a word, however little the measurements spread. */
const LEAST_DIFFERENCE = 1.02

/** Compares two files and prints it; exit code 1 when a kernel got slower by more than `failAbove` times. */
export async function benchCompare(before: string, after: string, flags: BenchCompareFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const [a, b] = [await kernelFile(before), await kernelFile(after)]
  const unlike = machineDifferences(a, b)
  if (unlike.length > 0 && !flags.force) {
    throw new CaravanError(
      'ERR_USAGE',
      `${before} and ${after} were measured under different conditions: ${unlike.join('; ')}`,
      {
        details: { differences: unlike },
        hint: 'measure both on one machine; --force compares them all the same',
      },
    )
  }
  const comparison = compareKernels(a.kernels, b.kernels)
  const failed = comparison.kernels.filter(
    ({ verdict, ratio }) => verdict === 'slower' && flags.failAbove !== undefined && ratio > flags.failAbove,
  )
  if (flags.json) {
    const head = { before: a.machine, after: b.machine, differences: unlike }
    terminal.line(JSON.stringify({ ...head, ...comparison, failed: failed.length }))
  } else {
    for (const machine of [a.machine, b.machine]) terminal.line(terminal.color.dim(benchMachineLine(machine)))
    for (const line of comparisonLines(comparison, terminal)) terminal.line(line)
    if (failed.length > 0)
      terminal.line(terminal.color.red(`${failed.length} slower by more than ${flags.failAbove} times`))
  }
  return failed.length > 0 ? exitCodes.failed : exitCodes.done
}

async function kernelFile(path: string): Promise<KernelFile> {
  const file = await readBenchFile(path)
  if (file.kind === 'kernels') return file
  throw new CaravanError('ERR_FORMAT', `${path} holds measurements of bench ${file.kind}, not of bench kernels`, {
    details: { path, kind: file.kind },
    hint: 'compare files of bench kernels --json FILE; bench page shows any of them side by side',
  })
}

/** In what two files differ that their times depend on, as readable lines. Load is not among them: it is shown. */
export function machineDifferences(a: Pick<KernelFile, 'machine'>, b: Pick<KernelFile, 'machine'>): string[] {
  const keys: (keyof BenchMachine)[] = ['processor', 'cores', 'isa', 'threads', 'memoryBytes']
  return keys.flatMap((key) => {
    const [one, other] = [a.machine[key], b.machine[key]]
    return one === other ? [] : [`${key} ${String(one)} and ${String(other)}`]
  })
}

/** Whether `after` is faster, slower, or not to be told from `before`. */
export function verdictOf(before: Spread, after: Spread): Verdict {
  const ratio = after.medianSeconds / before.medianSeconds
  if (ratio > LEAST_DIFFERENCE && after.lowSeconds > before.highSeconds) return 'slower'
  if (ratio < 1 / LEAST_DIFFERENCE && after.highSeconds < before.lowSeconds) return 'faster'
  return 'same'
}

/** Kernels that both have, in the order of the second, and those that one has alone. */
export function compareKernels(before: readonly KernelResult[], after: readonly KernelResult[]): Comparison {
  const known = new Map(before.map((kernel) => [keyOf(kernel), kernel]))
  const kernels: ComparedKernel[] = []
  const onlyAfter: string[] = []
  for (const kernel of after) {
    const earlier = known.get(keyOf(kernel))
    known.delete(keyOf(kernel))
    if (!earlier) {
      onlyAfter.push(keyOf(kernel))
      continue
    }
    const { op, sample, dtype } = kernel
    const [beforeSeconds, afterSeconds] = [earlier.medianSeconds, kernel.medianSeconds]
    const ratio = afterSeconds / beforeSeconds
    kernels.push({ op, sample, dtype, beforeSeconds, afterSeconds, ratio, verdict: verdictOf(earlier, kernel) })
  }
  const logarithms = kernels.reduce((sum, { ratio }) => sum + Math.log(ratio), 0)
  const meanRatio = kernels.length === 0 ? 1 : Math.exp(logarithms / kernels.length)
  return { kernels, onlyBefore: [...known.keys()], onlyAfter, meanRatio }
}

function keyOf({ op, sample, dtype }: KernelResult): string {
  return `${op} ${sample} ${dtype}`
}

function comparisonLines({ kernels, onlyBefore, onlyAfter, meanRatio }: Comparison, terminal: Terminal): string[] {
  const { bold, dim, green, red } = terminal.color
  const paint = { faster: green, slower: red, same: dim }
  const rows = kernels.map(({ op, sample, beforeSeconds, afterSeconds, ratio, verdict }) => [
    bold(op),
    dim(sample),
    shortNumber(beforeSeconds * 1e6),
    shortNumber(afterSeconds * 1e6),
    ratio.toFixed(3),
    paint[verdict](verdict === 'same' ? 'same' : `${verdict} ${percentText(Math.abs(ratio - 1))}`),
  ])
  const header = ['kernel', 'sizes', 'before us', 'after us', 'ratio', 'verdict'].map((title) => dim(title))
  const count = (wanted: Verdict) => kernels.filter(({ verdict }) => verdict === wanted).length
  return [
    ...tableLines([header, ...rows], { align: 'llrrrl' }),
    ...onlyBefore.map((key) => dim(`only before: ${key}`)),
    ...onlyAfter.map((key) => dim(`only after: ${key}`)),
    `${count('faster')} faster, ${count('slower')} slower, ${count('same')} the same; geometric mean of the ratios ${meanRatio.toFixed(3)}`,
  ]
}
