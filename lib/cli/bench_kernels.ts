// `caravan bench kernels`: every op of the table that has a benchmark sample, as time, GB/s and GFLOP/s and as shares
// of what this machine was measured to do in the same run. PyTorch, where there is one, takes its turns in between.
import { CaravanError, nearestName } from '../base/errors.js'
import { openDevice } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { declaredOps, type Op, type Sample } from '../tensor/index.js'
import { type BenchCall, benchCall, sampleText, takesDtype } from './bench_call.js'
import { type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { percentText, shortNumber } from './format.js'
import { machineLine, measurePeak, type Peak } from './machine.js'
import { ProgressLine } from './progress_line.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { median, repeatsFor, secondsPerCall } from './timing.js'
import { TorchKernels } from './torch_kernels.js'

export interface BenchKernelFlags {
  dtype: DtypeFlag
  threads?: number
  samples: number
  peer: boolean
  json?: boolean
}

export interface KernelResult {
  op: string
  sample: string
  dtype: DtypeFlag
  /** Of one call. */
  medianSeconds: number
  bestSeconds: number
  gbps: number
  gflops: number | undefined
  /** Of the peak that limits it more. */
  shareOfPeak: number
  torchSeconds?: number
}

/** How long one measurement takes: long beside a wait, short beside a change of load. */
const MEASUREMENT_SECONDS = 0.03
/** Slow kernels get fewer measurements than asked for, once this long has been spent on them. */
const KERNEL_SECONDS = 1.5
const FEWEST_SAMPLES = 3

/** Measures kernels and prints them; the value is the exit code. */
export async function benchKernels(name: string | undefined, flags: BenchKernelFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const progress = new ProgressLine(terminal)
  const dtype = engineDtype(flags.dtype)!
  const rows = benchRows(name, dtype)
  using device = openDevice({ threads: flags.threads })
  const peak = await measurePeak(device, dtype)
  const torch = flags.peer ? await TorchKernels.start({ threads: device.threads, dtype: flags.dtype }) : undefined
  try {
    const notes = torch && 'absent' in torch ? torch.absent : undefined
    const rival = torch && !('absent' in torch) ? torch : undefined
    const head = { machine: machineLine(device), peak, torch: rival?.version }
    if (flags.json) terminal.line(JSON.stringify({ type: 'machine', ...head, note: notes }))
    const results: KernelResult[] = []
    for (const { op, sample } of rows) {
      const parts = ['measuring', op.definition.name, sampleText(sample)]
      if (terminal.interactive && !flags.json)
        progress.show({ id: 'kernels', done: results.length, total: rows.length, parts })
      const result = await measure(op, sample, { device, flags, peak, rival })
      results.push(result)
      if (flags.json) terminal.line(JSON.stringify({ type: 'kernel', ...result }))
    }
    progress.clear()
    if (!flags.json) for (const line of resultLines(results, { ...head, note: notes }, terminal)) terminal.line(line)
    return exitCodes.done
  } finally {
    if (torch && !('absent' in torch)) torch.close()
  }
}

/** The benchmark samples of the op named, or of all. ERR_USAGE for a name that is no op, or has no sample. */
function benchRows(name: string | undefined, dtype: 'f32' | 'bf16'): { op: Op; sample: Sample }[] {
  const ops = declaredOps()
  if (name !== undefined && !ops.has(name)) {
    const nearest = nearestName(name, ['step', 'kernels', ...ops.keys()])
    throw new CaravanError('ERR_USAGE', `there is no op '${name}'`, {
      hint: nearest ? `did you mean ${nearest}?` : 'docs/ops.md lists the ops',
    })
  }
  const chosen = name === undefined ? [...ops.values()] : [ops.get(name)!]
  const rows = chosen.flatMap((op) =>
    takesDtype(op, dtype) ? op.definition.samples.filter(({ bench }) => bench).map((sample) => ({ op, sample })) : [],
  )
  if (rows.length > 0) return rows
  throw new CaravanError('ERR_USAGE', `op '${name}' has no benchmark sample for ${dtype}`)
}

interface Measuring {
  device: Device
  flags: BenchKernelFlags
  peak: Peak
  rival: TorchKernels | undefined
}

async function measure(op: Op, sample: Sample, { device, flags, peak, rival }: Measuring): Promise<KernelResult> {
  const call = benchCall(op, sample, { device, dtype: engineDtype(flags.dtype)! })
  try {
    const repeats = await repeatsFor(device, call.run, MEASUREMENT_SECONDS)
    const times: number[] = []
    const torchTimes: number[] = []
    let spent = 0
    while (times.length < flags.samples && (times.length < FEWEST_SAMPLES || spent < KERNEL_SECONDS)) {
      times.push(await secondsPerCall(device, call.run, repeats))
      spent += times.at(-1)! * repeats
      const theirs = await rival?.seconds(op.definition.name, sample, MEASUREMENT_SECONDS)
      if (theirs !== undefined) torchTimes.push(theirs)
    }
    return kernelResult({ op, sample, flags, call, times, torchTimes, peak })
  } finally {
    for (const tensor of call.inputs.values()) tensor.dispose()
  }
}

interface Measured {
  op: Op
  sample: Sample
  flags: BenchKernelFlags
  call: BenchCall
  times: number[]
  torchTimes: number[]
  peak: Peak
}

function kernelResult({ op, sample, flags, call, times, torchTimes, peak }: Measured): KernelResult {
  const seconds = median(times)
  const gbps = call.bytes / seconds / 1e9
  const gflops = call.flops === undefined ? undefined : call.flops / seconds / 1e9
  return {
    op: op.definition.name,
    sample: sampleText(sample),
    dtype: flags.dtype,
    medianSeconds: seconds,
    bestSeconds: Math.min(...times),
    gbps,
    gflops,
    shareOfPeak: Math.max(gbps / peak.gbps, (gflops ?? 0) / peak.gflops),
    torchSeconds: torchTimes.length > 0 ? median(torchTimes) : undefined,
  }
}

interface Head {
  machine: string
  peak: Peak
  torch: string | undefined
  note: string | undefined
}

function resultLines(results: readonly KernelResult[], head: Head, terminal: Terminal): string[] {
  const { bold, dim } = terminal.color
  const titles = [
    'kernel',
    'sizes',
    'us',
    'best us',
    'GB/s',
    'GFLOP/s',
    'of peak',
    head.torch ? 'torch us' : '',
    head.torch ? 'x' : '',
  ]
  const rows = results.map((result) => [
    bold(result.op),
    dim(result.sample),
    microseconds(result.medianSeconds),
    microseconds(result.bestSeconds),
    shortNumber(result.gbps),
    result.gflops === undefined ? '' : shortNumber(result.gflops),
    percentText(result.shareOfPeak),
    result.torchSeconds === undefined ? '' : microseconds(result.torchSeconds),
    result.torchSeconds === undefined ? '' : shortNumber(result.torchSeconds / result.medianSeconds),
  ])
  const { gflops, gbps } = head.peak
  return [
    dim(head.machine),
    dim(`peak, measured: ${shortNumber(gflops)} GFLOP/s (product), ${shortNumber(gbps)} GB/s (copy)`),
    ...(head.torch ? [dim(`torch ${head.torch}, in turns with ours; x: its time / ours`)] : []),
    ...(head.note ? [dim(head.note)] : []),
    ...tableLines([titles.map((title) => dim(title)), ...rows], { align: 'llrrrrrrr' }),
  ]
}

function microseconds(seconds: number): string {
  return shortNumber(seconds * 1e6)
}
