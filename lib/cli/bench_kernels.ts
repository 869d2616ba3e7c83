// `caravan bench kernels`: every op of the table that has a benchmark sample, as time, GB/s and GFLOP/s, as shares of
// what this machine was measured to do in the same run, and beside the least time that is possible at those speeds.
// Other libraries, where they are installed, take their turns in between.
import { CaravanError, nearestName } from '../base/errors.js'
import { openDevice } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { declaredOps, type Op, type Sample } from '../tensor/index.js'
import { benchCall, sampleText, takesDtype } from './bench_call.js'
import {
  afterwards,
  benchMachine,
  type FailedKernel,
  type KernelFile,
  type KernelResult,
  writeBenchFile,
} from './bench_file.js'
import { attentionFlops, floorOf, type Roofs } from './bench_floor.js'
import { kernelLines } from './bench_kernel_lines.js'
import { measureRoofs } from './bench_roofs.js'
import { type Spread, spreadOf } from './bench_spread.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { inTurns } from './machine.js'
import { ProgressLine } from './progress_line.js'
import { type Rival, startRivals } from './rival.js'
import { Terminal } from './terminal.js'
import { repeatsFor, secondsPerCall } from './timing.js'

export type KernelShapes = 'cpu' | 'gpu' | 'tiny'

export interface BenchKernelFlags {
  dtype: DtypeFlag
  device?: DeviceFlag
  threads?: number
  samples: number
  /** Which sizes; default those of the device. tiny: the smallest of the tests, to try the way. */
  shapes?: KernelShapes
  peer: boolean
  /** true: lines of JSON in place of the table; a path: the file that gets the measurements. */
  json?: boolean | string
}

/** How long one measurement takes: long beside a wait, short beside a change of load. */
const MEASUREMENT_SECONDS = 0.03
/** Slow kernels, and slow rivals, get fewer measurements than asked for, once this long has been spent on them; those
 *  of many seconds two. */
const KERNEL_SECONDS = 1.5
const FEWEST_SAMPLES = 3
const FAR_SLOWER = 10

/** Measures kernels and prints them; the value is the exit code. */
export async function benchKernels(names: readonly string[], flags: BenchKernelFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const dtype = engineDtype(flags.dtype)!
  if (typeof flags.json === 'string' && declaredOps().has(flags.json)) {
    throw new CaravanError('ERR_USAGE', `--json was given the file name '${flags.json}', which is the name of an op`, {
      hint: `write the op first: bench kernels ${flags.json} --json [file]`,
    })
  }
  const scale = flags.shapes ?? (flags.device === 'cuda' ? 'gpu' : 'cpu')
  const rows = benchRows(names, dtype, scale)
  using device = openDevice({ kind: flags.device, threads: flags.threads })
  const options = { threads: device.threads, dtype: flags.dtype, device: device.kind }
  const { rivals, notes } = flags.peer ? await startRivals(options) : { rivals: [], notes: [] }
  try {
    const machine = benchMachine(device)
    const roofs = await measureRoofs(device, dtype, { rivals, scale })
    const named = rivals.map(({ name: rival, version }) => ({ name: rival, version }))
    const head = { kind: 'kernels', machine, dtype: flags.dtype, roofs, rivals: named, notes } as const
    if (flags.json === true) terminal.line(JSON.stringify({ type: 'machine', ...head }))
    const { kernels, failed } = await measureAll(rows, { device, flags, roofs, rivals }, terminal)
    const file: KernelFile = { ...head, machine: afterwards(machine), kernels, ...(failed.length > 0 && { failed }) }
    if (flags.json !== true) for (const line of kernelLines(file, terminal)) terminal.line(line)
    if (typeof flags.json === 'string') await writeBenchFile(flags.json, file)
    return failed.length === 0 ? exitCodes.done : exitCodes.failed
  } finally {
    for (const rival of rivals) rival.close()
  }
}

/** The benchmark samples of the ops named, or of all. ERR_USAGE for a name that is no op, or has no sample. */
function benchRows(names: readonly string[], dtype: 'f32' | 'bf16', scale: KernelShapes): { op: Op; sample: Sample }[] {
  const ops = declaredOps()
  const unknown = names.find((name) => !ops.has(name))
  if (unknown !== undefined) {
    const commands = ['step', 'generate', 'kernels', 'check', 'compare', 'growth', 'startup', 'page']
    const nearest = nearestName(unknown, [...commands, ...ops.keys()])
    throw new CaravanError('ERR_USAGE', `there is no op '${unknown}'`, {
      hint: nearest ? `did you mean ${nearest}?` : 'docs/ops.md lists the ops',
    })
  }
  const chosen = names.length === 0 ? [...ops.values()] : names.map((name) => ops.get(name)!)
  const rows = chosen.flatMap((op) =>
    takesDtype(op, dtype) ? samplesAt(op, scale).map((sample) => ({ op, sample })) : [],
  )
  if (rows.length > 0) return rows
  throw new CaravanError('ERR_USAGE', `op '${names.join("', '")}' has no benchmark sample for ${dtype}`)
}

function samplesAt({ definition: { samples } }: Op, scale: KernelShapes): Sample[] {
  // Of the ops that are measured at all: others take what a benchmark does not make, a shape or nothing.
  if (scale === 'tiny')
    return samples.some(({ bench }) => bench) ? samples.filter(({ bench }) => !bench).slice(0, 1) : []
  return samples.filter(({ bench }) => bench === (scale === 'gpu' ? 'cuda' : true))
}

interface Measuring {
  device: Device
  flags: Pick<BenchKernelFlags, 'dtype' | 'samples'>
  rivals: readonly Rival[]
}

/** Measures row by row. One that cannot be run, for want of memory or since its kernel fails, is named among the failed
 *  ones, and the rest goes on: time on a GPU is too dear to lose what was measured. */
async function measureAll(
  rows: readonly { op: Op; sample: Sample }[],
  measuring: Measuring & { roofs: Roofs; flags: BenchKernelFlags },
  terminal: Terminal,
): Promise<{ kernels: KernelResult[]; failed: FailedKernel[] }> {
  const asLines = measuring.flags.json === true
  const progress = new ProgressLine(terminal)
  const kernels: KernelResult[] = []
  const failed: FailedKernel[] = []
  for (const { op, sample } of rows) {
    const call = { op: op.definition.name, sample, dtype: measuring.flags.dtype }
    const parts = ['measuring', call.op, sampleText(sample)]
    const done = kernels.length + failed.length
    if (terminal.interactive && !asLines) progress.show({ id: 'kernels', done, total: rows.length, parts })
    try {
      const result = kernelResult(call, await measureCall(op, sample, measuring), measuring.roofs)
      kernels.push(result)
      if (asLines) terminal.line(JSON.stringify({ type: 'kernel', ...result }))
    } catch (error) {
      if (!(error instanceof CaravanError)) throw error
      failed.push({ op: call.op, sample: sampleText(sample), reason: error.message })
      if (asLines) terminal.line(JSON.stringify({ type: 'failed', ...failed.at(-1) }))
    }
  }
  progress.clear()
  return { kernels, failed }
}

/** What was measured of one op at one sample. */
export interface Measured {
  spread: Spread
  rivals: { [name: string]: Spread }
  bytes: number
  written: number
  flops: number | undefined
  /** Most tensor memory in use during a call, arguments included. */
  peakBytes: number
}

/** Bytes of the data of a kernel on a GPU, all sets together: several times its second-level cache. */
const ROTATED_BYTES = 2 ** 28
const MOST_SETS = 8

/** Times `op` at `sample`, ours and the rivals' in turns. On a GPU several sets of data take turns, as a cache that
 *  holds one set would flatter a small kernel. */
export async function measureCall(op: Op, sample: Sample, { device, flags, rivals }: Measuring): Promise<Measured> {
  const dtype = engineDtype(flags.dtype)!
  const calls = [benchCall(op, sample, { device, dtype })]
  const { bytes, written, flops } = calls[0]!
  const sets = device.kind === 'cuda' ? Math.min(MOST_SETS, Math.ceil(ROTATED_BYTES / Math.max(1, bytes))) : 1
  const name = op.definition.name
  try {
    while (calls.length < sets) calls.push(benchCall(op, sample, { device, dtype, set: calls.length }))
    const run = inTurns(calls.map((call) => call.run))
    const repeats = await repeatsFor(device, run, MEASUREMENT_SECONDS)
    device.resetPeak()
    const contenders: Contender[] = [
      { name: '', seconds: () => secondsPerCall(device, run, repeats) },
      ...rivals.map((rival) => ({ name: rival.name, seconds: () => rival.seconds(name, sample, MEASUREMENT_SECONDS) })),
    ]
    const { '': spread, ...others } = await takeTurns(contenders, flags.samples)
    const counted = flops ?? attentionFlops(name, sample)
    return { spread: spread!, rivals: others, bytes, written, flops: counted, peakBytes: device.stats().peakBytes }
  } finally {
    for (const { inputs } of calls) for (const tensor of inputs.values()) tensor.dispose()
  }
}

interface Contender {
  name: string
  seconds: () => Promise<number | undefined>
}

/** Threads of pools go on waiting for work, on processors that the next one then shares with them, for a millisecond
 *  (ONNX Runtime) or some (the OpenMP of PyTorch). */
const REST_MS = 5

/** Lets all measure in turns, each until it has `samples` readings, or three and its time is up. */
async function takeTurns(contenders: readonly Contender[], samples: number): Promise<{ [name: string]: Spread }> {
  const runners = contenders.map((contender) => ({ ...contender, times: [] as number[], spent: 0, ended: false }))
  while (runners.some(({ ended }) => !ended)) {
    for (const runner of runners) {
      if (runner.ended) continue
      const started = performance.now()
      const seconds = await runner.seconds()
      runner.spent += (performance.now() - started) / 1000
      if (runners.length > 1) await new Promise((resolve) => setTimeout(resolve, REST_MS))
      if (seconds !== undefined) runner.times.push(seconds)
      const fewest = runner.spent > 4 * KERNEL_SECONDS ? 2 : FEWEST_SAMPLES
      const enough = runner.times.length >= fewest && runner.spent > KERNEL_SECONDS
      // One that is far slower than we are has said enough with one reading.
      const ours = runners[0]!.times[0] ?? 0
      const isFarSlower = seconds !== undefined && seconds > FAR_SLOWER * ours && runner.spent > KERNEL_SECONDS / 2
      runner.ended = seconds === undefined || runner.times.length >= samples || enough || isFarSlower
    }
  }
  return Object.fromEntries(
    runners.filter(({ times }) => times.length > 0).map(({ name, times }) => [name, spreadOf(times)]),
  )
}

/** Rates and floor of a measured call. */
export function kernelResult(
  { op, sample, dtype }: { op: string; sample: Sample; dtype: DtypeFlag },
  { spread, rivals, bytes, written, flops }: Omit<Measured, 'peakBytes'>,
  roofs: Roofs,
): KernelResult {
  const seconds = spread.medianSeconds
  const gbps = bytes / seconds / 1e9
  const gflops = flops === undefined ? undefined : flops / seconds / 1e9
  const floor = floorOf({ bytes, written, flops }, roofs)
  return {
    op,
    sample: sampleText(sample),
    dtype,
    ...spread,
    bytes,
    written,
    flops,
    gbps,
    gflops,
    shareOfPeak: Math.max(gbps / roofs.gbps, (gflops ?? 0) / roofs.gflops),
    floorSeconds: floor.seconds,
    bound: floor.bound,
    shareOfFloor: floor.seconds / seconds,
    rivals,
  }
}
