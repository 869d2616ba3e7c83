// `caravan bench startup`: what a program pays before it does any work, each in a new process: importing the package,
// a model's first training step, and that of `caravan train`, which trains a tokenizer and writes its corpus before.
import { spawn } from 'node:child_process'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { CaravanError } from '../base/errors.js'
import { openDevice } from '../ops/index.js'
import {
  afterwards,
  type BenchMachine,
  benchMachine,
  benchMachineLine,
  type StartupFile,
  type StartupMeasure,
  writeBenchFile,
} from './bench_file.js'
import { addonPath } from './doctor.js'
import { exitCodes } from './failure.js'
import { shortNumber } from './format.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { median } from './timing.js'

export interface BenchStartupFlags {
  samples: number
  /** true: JSON in place of the table; a path: the file that gets the measurements. */
  json?: boolean | string
}

const MIB = 2 ** 20
/** A run that has not made a step by then never will. */
const STEP_SECONDS = 120

/** Measures and prints; the value is the exit code. */
export async function benchStartup(flags: BenchStartupFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const machine = machineNow()
  const imported = await repeated(flags.samples, importPackage)
  const steps = await repeated(flags.samples, firstStepSeconds)
  const runs = await repeated(1, firstStepOfTrainSeconds)
  const of = (name: 'milliseconds' | 'rssMiB') => median(imported.map((one) => one[name]))
  const measures: StartupMeasure[] = [
    { name: 'import of the package', value: of('milliseconds'), unit: 'ms', goal: 100 },
    { name: 'resident memory after it', value: of('rssMiB'), unit: 'MiB', goal: 60 },
    { name: 'size of the addon', value: (await stat(addonPath())).size / MIB, unit: 'MiB', goal: 4 },
    { name: 'new process to the first training step', value: median(steps), unit: 's', goal: 2 },
    { name: 'caravan train to its first step', value: median(runs), unit: 's', goal: 2 },
  ]
  const file: StartupFile = { kind: 'startup', machine: afterwards(machine), measures }
  if (flags.json === true) terminal.line(JSON.stringify(file))
  else for (const line of startupLines(file, terminal)) terminal.line(line)
  if (typeof flags.json === 'string') await writeBenchFile(flags.json, file)
  return exitCodes.done
}

function machineNow(): BenchMachine {
  using device = openDevice()
  return benchMachine(device)
}

async function repeated<T>(count: number, measure: () => Promise<T>): Promise<T[]> {
  const results: T[] = []
  for (let i = 0; i < count; i++) results.push(await measure())
  return results
}

/** Imports the package in a new process. */
async function importPackage(): Promise<{ milliseconds: number; rssMiB: number }> {
  const address = JSON.stringify(new URL('../index.js', import.meta.url).href)
  const script = `const started = performance.now()
await import(${address})
const milliseconds = performance.now() - started
console.log(JSON.stringify({ milliseconds, rssMiB: process.memoryUsage.rss() / ${MIB} }))`
  const line = await firstLine(['--input-type=module', '--eval', script], () => true)
  return JSON.parse(line) as { milliseconds: number; rssMiB: number }
}

/** Seconds from the start of a process to the end of the first step of a new model of the pocket's size. */
async function firstStepSeconds(): Promise<number> {
  const started = performance.now()
  await firstLine([fileURLToPath(new URL('./bench_first_step.js', import.meta.url))], (line) => line === 'done')
  return (performance.now() - started) / 1000
}

/** Seconds from the start of `caravan train` to the first step of the pocket model's first stage. */
async function firstStepOfTrainSeconds(): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), 'caravan-startup-'))
  try {
    const script = fileURLToPath(new URL('./main.js', import.meta.url))
    const started = performance.now()
    await firstLine([script, 'train', '--json', '--out', join(directory, 'run')], (line) =>
      line.includes('"type":"step"'),
    )
    return (performance.now() - started) / 1000
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

/** Runs node with `words` until it prints a line that is wanted, then ends it and returns the line. */
async function firstLine(words: readonly string[], isWanted: (line: string) => boolean): Promise<string> {
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
  const timer = setTimeout(() => child.kill('SIGKILL'), STEP_SECONDS * 1000)
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint += text
  })
  try {
    for await (const line of createInterface({ input: child.stdout })) if (isWanted(line)) return line
  } finally {
    clearTimeout(timer)
    child.kill('SIGKILL')
    await ended
  }
  throw new CaravanError('ERR_INTERNAL', `a process that was to be timed ended early: ${complaint.trim().slice(-300)}`)
}

function startupLines({ machine, measures }: StartupFile, terminal: Terminal): string[] {
  const { dim, green, red } = terminal.color
  const rows = measures.map(({ name, value, unit, goal }) => [
    name,
    `${shortNumber(value)} ${unit}`,
    goal === undefined ? '' : dim(`< ${goal} ${unit}`),
    goal === undefined ? '' : value < goal ? green('reached') : red('missed'),
  ])
  const header = ['', 'median', 'goal', ''].map((title) => dim(title))
  return [dim(benchMachineLine(machine)), ...tableLines([header, ...rows], { align: 'lrrl' })]
}
