// `caravan bench check`: every kernel of a device against the CPU engine, under the tolerance rule of the tests, and
// twice for equal bits. It needs no test files: on a machine where only the package is, this says whether to trust it.
import { CaravanError, nearestName } from '../base/errors.js'
import { compareTables, fill, openDevice } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { declaredOps, type Op, type Sample, scope, type Tensor } from '../tensor/index.js'
import {
  argumentsOn,
  callOp,
  digestOf,
  disposeAll,
  roundedCall,
  type SampleCall,
  type Tensors,
  testSamples,
} from '../tensor/sample_call.js'
import { sampleText, takesDtype } from './bench_call.js'
import { checkIsolated } from './bench_check_isolated.js'
import { allSamples, checkSamples, completeCall } from './check_samples.js'
import { type Results, readResults, resultDtype, resultTensors, truthOf } from './check_truth.js'
import { type DeviceFlag, type DtypeFlag, dtypes, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { machineLine } from './machine.js'
import { oddSamples } from './odd_samples.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { closeness } from './tolerance.js'

export const extents = ['few', 'usual', 'all'] as const

export interface BenchCheckFlags {
  /** Default: both. */
  dtype?: DtypeFlag
  device?: DeviceFlag
  threads?: number
  /** few: the table's samples; usual: and sizes of several tiles; all: and every size 0, 1, around vectors. */
  extent: (typeof extents)[number]
  seed: number
  /** A process for each op. */
  isolated?: boolean
  json?: boolean
}

/** What was found of one op in one dtype. */
export interface CheckResult {
  op: string
  dtype: DtypeFlag
  /** Whether the device has a kernel of its own: else its definition was run there. */
  kernel: boolean
  samples: number
  /** Largest error as a share of what is allowed; absent when nothing could be run. */
  worst?: number
  /** The result and the sample of that error. */
  worstAt?: string
  /** Whether two runs gave equal bits. */
  repeats: boolean
  seconds: number
  faults: string[]
}

/** More faults of one op say nothing new. */
const MOST_FAULTS = 5

/** Checks the ops named, or all; prints a line each. The exit code is 1 when one is wrong. */
export async function benchCheck(names: readonly string[], flags: BenchCheckFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const ops = opsNamed(names)
  using under = openDevice({ kind: flags.device, threads: flags.threads })
  const machine = machineLine(under)
  const tableFaults = compareTables(under.kind)
  if (flags.json) terminal.line(JSON.stringify({ type: 'machine', machine, tableFaults }))
  else for (const line of [terminal.color.dim(machine), ...tableFaults]) terminal.line(line)
  const results: CheckResult[] = []
  const show = (result: CheckResult) => {
    results.push(result)
    if (flags.json) terminal.line(JSON.stringify({ type: 'check', ...result }))
    else for (const line of resultLines(result, terminal)) terminal.line(line)
  }
  const wanted = dtypes.filter((dtype) => flags.dtype === undefined || flags.dtype === dtype)
  const rows = ops.flatMap((op) =>
    wanted.filter((dtype) => takesDtype(op, engineDtype(dtype)!)).map((dtype) => ({ op, dtype })),
  )
  if (flags.isolated) await checkIsolated(rows, flags, show)
  else {
    using cpu = openDevice({ kind: 'cpu', threads: flags.threads })
    for (const { op, dtype } of rows) show(await checkOp(op, dtype, { under, cpu, ...flags }))
  }
  const wrong = results.filter(isWrong)
  const summary = `${results.length} checks, ${wrong.length} failed`
  if (!flags.json) terminal.line(wrong.length === 0 ? summary : terminal.color.red(summary))
  return wrong.length + tableFaults.length === 0 && results.length > 0 ? exitCodes.done : exitCodes.failed
}

export function isWrong({ faults, repeats }: CheckResult): boolean {
  return faults.length > 0 || !repeats
}

function opsNamed(names: readonly string[]): Op[] {
  const ops = declaredOps()
  const unknown = names.find((name) => !ops.has(name))
  if (unknown === undefined) return names.length === 0 ? [...ops.values()] : names.map((name) => ops.get(name)!)
  const nearest = nearestName(unknown, [...ops.keys()])
  throw new CaravanError('ERR_USAGE', `there is no op '${unknown}'`, {
    hint: nearest ? `did you mean ${nearest}?` : 'docs/ops.md lists the ops',
  })
}

interface Checking {
  under: Device
  cpu: Device
  extent: BenchCheckFlags['extent']
  seed: number
}

/** Checks `op` at its samples. Whatever goes wrong is a fault of the result, not an error. */
export async function checkOp(op: Op, dtype: DtypeFlag, checking: Checking): Promise<CheckResult> {
  const { name } = op.definition
  const started = performance.now()
  const kernel = checking.under.opIndex(name) !== undefined
  const samples = samplesOf(op, checking.extent)
  const result: CheckResult = {
    op: name,
    dtype,
    kernel,
    samples: samples.length,
    repeats: true,
    seconds: 0,
    faults: [],
  }
  for (const sample of samples) {
    const fault = (message: string) => {
      if (result.faults.length < MOST_FAULTS) result.faults.push(`${sampleText(sample) || name}: ${message}`)
    }
    try {
      const call = await completeCall(op, sample, {
        cpu: checking.cpu,
        dtype: engineDtype(dtype)!,
        seed: checking.seed,
      })
      await checkCall(call, { ...checking, dtype: engineDtype(dtype)!, result, fault })
    } catch (error) {
      fault(error instanceof Error ? error.message : String(error))
    }
  }
  if (samples.length === 0) result.faults.push('no samples')
  return { ...result, seconds: (performance.now() - started) / 1000 }
}

function samplesOf(op: Op, extent: BenchCheckFlags['extent']): Sample[] {
  if (extent === 'few') {
    const few = testSamples(op)
    return few.length > 0 ? few : allSamples(op).slice(0, 2)
  }
  return extent === 'usual' ? checkSamples(op) : [...checkSamples(op), ...oddSamples(op)]
}

interface CallCheck extends Checking {
  dtype: 'f32' | 'bf16'
  result: CheckResult
  fault: (message: string) => void
}

async function checkCall(plain: SampleCall, { under, cpu, dtype, result, fault }: CallCheck): Promise<void> {
  const call = roundedCall(plain, dtype)
  const first = await runTwice(under, call, dtype)
  if (!first.repeats) {
    result.repeats = false
    fault('two runs differ in their bits')
  }
  const { truth, naive, roundsInside, freeRoundings, terms } = await truthOf(call, dtype, { cpu, under })
  for (const [name, got] of first.results) {
    const stored = roundsInside ? dtype : resultDtype(call, name, dtype)
    if (!truth.has(name)) continue
    const sides = { got, truth: truth.get(name)!, naive: naive.get(name)! }
    const { mine, allowed } = closeness({
      ...sides,
      dtype: stored,
      terms: terms?.[name],
      freeRoundings: freeRoundings?.[stored],
    })
    const share = Math.max(shareOf(mine.most, allowed.most), shareOf(mine.rms, allowed.rms))
    if (share > (result.worst ?? -1))
      Object.assign(result, { worst: share, worstAt: `${name}, ${sampleText(call.sample)}` })
    if (share > 1 || Number.isNaN(share)) fault(`${name} is off by ${mine.most}, allowed are ${allowed.most}`)
  }
}

const shareOf = (error: number, allowed: number) => (error === 0 ? 0 : error / allowed)

/** Runs `call` two times and compares all bits of the results. The second run writes where numbers lie that are none,
 *  so that a kernel which reads what it should have written is seen. */
async function runTwice(
  device: Device,
  call: SampleCall,
  dtype: 'f32' | 'bf16',
): Promise<{ results: Results; repeats: boolean }> {
  const given = [argumentsOn(device, call, dtype), argumentsOn(device, call, dtype)]
  const made: Tensors[] = []
  try {
    for (const one of given) {
      for (const tensor of Object.values(made[0] ?? {})) poison(tensor)
      made.push(scope(() => callOp(call.op, one)))
    }
    const tensors = made.map((one, i) => resultTensors(call.op, given[i]!, one))
    const [a, b] = [await digestOf(tensors[0]!), await digestOf(tensors[1]!)]
    const repeats = Object.keys(a).every((name) => a[name] === b[name])
    return { results: await readResults(tensors[0]!), repeats }
  } finally {
    disposeAll(...given, ...made)
  }
}

/** Fills as much memory as `tensor` has and gives it back: the next tensor of that size is likely to get it. */
function poison({ device, shape, dtype }: Tensor): void {
  if (dtype === 'u8' || dtype === 'f16') return
  fill(device, shape, { value: dtype === 'i32' ? 0x7ead_beef : Number.NaN, dtype }).dispose()
}

function resultLines(result: CheckResult, terminal: Terminal): string[] {
  const { green, red, yellow, dim } = terminal.color
  const { op, dtype, samples, kernel, worst, worstAt, repeats, faults } = result
  const verdict = isWrong(result) ? red('FAIL') : green('ok  ')
  const share = worst === undefined ? '-' : worst.toFixed(2)
  const cells = [verdict, op.padEnd(30), dtype.padEnd(4), `${samples} samples`.padStart(12)]
  const bits = repeats ? 'bits repeat' : red('bits differ')
  const line = [...cells, `worst ${share} of allowed`, bits, ...(kernel ? [] : [yellow('no kernel')])].join('  ')
  const where = isWrong(result) && worstAt ? [dim(`     worst: ${worstAt}`)] : []
  return [
    line,
    ...where,
    ...tableLines(
      faults.map((text) => [text]),
      { indent: '     ' },
    ),
  ]
}
