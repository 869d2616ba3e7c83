// `caravan bench growth`: how time and memory grow with the length of a sequence, the vocabulary, the depth and the
// threads. Sizes double until the time of a series is used up; what was left out is said.
import { availableParallelism } from 'node:os'
import { openDevice } from '../ops/index.js'
import {
  afterwards,
  benchMachine,
  type GrowthFile,
  type GrowthPoint,
  type GrowthSeries,
  writeBenchFile,
} from './bench_file.js'
import { growthLines } from './bench_growth_lines.js'
import { type GrowthPlan, growthPlans } from './bench_growth_plans.js'
import type { DtypeFlag } from './command_options.js'
import { exitCodes } from './failure.js'
import { ProgressLine } from './progress_line.js'
import { startRivals } from './rival.js'
import { Terminal } from './terminal.js'

export interface BenchGrowthFlags {
  dtype: DtypeFlag
  threads?: number
  /** About how long all of it takes. */
  seconds: number
  peer: boolean
  /** true: JSON in place of the table; a path: the file that gets the measurements. */
  json?: boolean | string
}

/** Calls that a point costs, with those before the measurements: by these the cost of a larger point is foreseen. */
const READINGS = 8
/** Rivals that are so much slower that their points would take the time of everything else. */
const tooSlow = new Set(['tfjs'])

/** Measures growth and prints it; the value is the exit code. */
export async function benchGrowth(flags: BenchGrowthFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const progress = new ProgressLine(terminal)
  const threads = flags.threads ?? availableParallelism()
  const { rivals: all, notes } = flags.peer
    ? await startRivals({ threads, dtype: flags.dtype })
    : { rivals: [], notes: [] }
  try {
    const rivals = all.filter(({ name }) => !tooSlow.has(name))
    const machine = machineNow(threads)
    const plans = growthPlans({ dtype: flags.dtype, threads, rivals })
    const series: GrowthSeries[] = []
    const end = performance.now() / 1000 + flags.seconds
    for (const [i, plan] of plans.entries()) {
      const parts = ['measuring', plan.what, `against ${plan.variable}`]
      if (terminal.interactive) progress.show({ id: 'growth', done: series.length, total: plans.length, parts })
      // What one series leaves of its time is for those after it.
      const left = end - performance.now() / 1000
      series.push(await measureSeries(plan, left / (plans.length - i)))
    }
    progress.clear()
    const named = rivals.map(({ name, version }) => ({ name, version }))
    const file: GrowthFile = {
      kind: 'growth',
      machine: afterwards(machine),
      dtype: flags.dtype,
      rivals: named,
      notes,
      series,
    }
    if (flags.json === true) terminal.line(JSON.stringify(file))
    else for (const line of growthLines(file, terminal)) terminal.line(line)
    if (typeof flags.json === 'string') await writeBenchFile(flags.json, file)
    return exitCodes.done
  } finally {
    for (const rival of all) rival.close()
  }
}

function machineNow(threads: number) {
  using device = openDevice({ threads })
  return benchMachine(device)
}

/** Measures the sizes of a plan in order for as long as the next one is expected to fit into `seconds`; the first two
 *  always are, since one point shows no growth. */
export async function measureSeries(
  { what, variable, sizes, values, order, measure }: GrowthPlan,
  seconds: number,
  now: () => number = () => performance.now() / 1000,
): Promise<GrowthSeries> {
  const started = now()
  const points: GrowthPoint[] = []
  let cost = 0
  for (const x of values) {
    const last = points.at(-1)
    const more = last ? ((x / last.x) ** order - 1) * READINGS * callSeconds(last) : 0
    if (points.length >= 2 && now() - started + cost + more > seconds) break
    const begun = now()
    points.push({ x, ...(await measure(x)) })
    cost = now() - begun
  }
  return { what, variable, sizes, points, left: values.slice(points.length) }
}

/** One call of everybody. */
function callSeconds({ medianSeconds, rivals }: GrowthPoint): number {
  return medianSeconds + Object.values(rivals).reduce((sum, rival) => sum + rival.medianSeconds, 0)
}
