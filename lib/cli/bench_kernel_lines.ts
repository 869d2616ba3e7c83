// Kernel measurements as a table for people.
import { benchMachineLine, type KernelFile, type KernelResult } from './bench_file.js'
import { relativeSpread } from './bench_spread.js'
import { bytesText, percentText, shortNumber } from './format.js'
import { tableLines } from './table.js'
import type { Terminal } from './terminal.js'

/** The table of a file, with what is needed to read it above. */
export function kernelLines(file: KernelFile, terminal: Terminal): string[] {
  const { bold, dim, red } = terminal.color
  const { roofs, rivals, notes } = file
  const titles = ['kernel', 'sizes', 'us', '+-', 'GB/s', 'GFLOP/s', 'of peak', 'floor us', 'of floor']
  const rows = file.kernels.map((result) => [
    bold(result.op),
    dim(result.sample),
    microseconds(result.medianSeconds),
    dim(percentText(relativeSpread(result))),
    shortNumber(result.gbps),
    result.gflops === undefined ? '' : shortNumber(result.gflops),
    percentText(result.shareOfPeak),
    microseconds(result.floorSeconds),
    percentText(result.shareOfFloor),
    ...rivals.map(({ name }) => ratioText(result, name)),
  ])
  const header = [...titles, ...rivals.map(({ name }) => `x ${name}`)].map((title) => dim(title))
  const levels = roofs.levels
    .map(({ bytes, copyGbps, readGbps }) => {
      return `${bytesText(bytes)} ${shortNumber(copyGbps)} / ${shortNumber(readGbps)}`
    })
    .join(', ')
  const names = rivals.map(({ name, version }) => `${name} ${version}`).join(', ')
  return [
    dim(benchMachineLine(file.machine)),
    dim(
      `peak, measured: ${shortNumber(roofs.gflops)} GFLOP/s (product, ${roofs.product}), ${shortNumber(roofs.gbps)} GB/s (copy)`,
    ),
    dim(`copy / read of so much, GB/s: ${levels}`),
    dim('median of measurements, +- half the distance of their quartiles; floor: bytes or operations at those speeds'),
    ...(rivals.length > 0 ? [dim(`in turns with ${names}; x: its time / ours`)] : []),
    ...notes.map((note) => dim(note)),
    ...tableLines([header, ...rows], { align: `ll${'r'.repeat(header.length - 2)}` }),
    ...(file.failed ?? []).map(({ op, sample, reason }) => red(`${op} ${sample} could not be measured: ${reason}`)),
  ]
}

function ratioText(result: KernelResult, rival: string): string {
  const theirs = result.rivals[rival]
  return theirs === undefined ? '' : shortNumber(theirs.medianSeconds / result.medianSeconds)
}

function microseconds(seconds: number): string {
  return shortNumber(seconds * 1e6)
}
