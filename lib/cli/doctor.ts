// `caravan doctor`: what is here, what was chosen, what is missing and why. It must work where the engine does not, so
// the engine is asked last and its failure is a finding, not an error of this command.
import { createRequire } from 'node:module'
import { arch, availableParallelism, cpus, freemem, platform, release, totalmem } from 'node:os'
import { CaravanError } from '../base/errors.js'
import { compareTables, openDevice } from '../ops/index.js'
import { cudaBackend, loadAddon } from '../runtime/index.js'
import { exitCodes } from './failure.js'
import { bytesText, shortNumber } from './format.js'
import { loadText, measureCopy, measureProduct, type Peak, processorName } from './machine.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'

export interface Diagnosis {
  node: string
  platform: string
  processor: string
  cores: { available: number; logical: number }
  memory: { totalBytes: number; freeBytes: number }
  load: string
  engine: EngineFindings | { error: string; hint?: string }
  cuda: CudaFindings
  peers: { [name: string]: boolean }
}

interface CudaFindings {
  available: boolean
  /** Why it is not; empty when it is. */
  reason: string
  /** The file of the module, where there is one. */
  module?: string
  devices: { name: string; totalBytes: number; capability: number }[]
  /** Versions, and the libraries that were looked for. */
  findings: { name: string; text: string }[]
}

interface EngineFindings {
  addon: string
  isa: { name: string; supported: boolean; built: boolean; kernels: number }[]
  chosenIsa: string
  threads: number
  peak: { f32: Peak; bf16: Peak }
  tableFaults: string[]
}

/** Of each measurement: somebody waits for the answer. */
const PEAK_SECONDS = 0.25

/** Prints the diagnosis; the exit code is 1 when the engine cannot run. */
export async function doctor(flags: { threads?: number; json?: boolean }): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const diagnosis = await diagnose(flags.threads)
  if (flags.json) terminal.line(JSON.stringify(diagnosis))
  else for (const line of diagnosisLines(diagnosis, terminal)) terminal.line(line)
  const { engine } = diagnosis
  return 'error' in engine || engine.tableFaults.length > 0 ? exitCodes.failed : exitCodes.done
}

async function diagnose(threads?: number): Promise<Diagnosis> {
  return {
    node: process.version,
    platform: `${platform()} ${release()} ${arch()}`,
    processor: processorName(),
    cores: { available: availableParallelism(), logical: cpus().length },
    memory: { totalBytes: totalmem(), freeBytes: freemem() },
    load: loadText(),
    engine: await engineFindings(threads),
    cuda: cudaFindings(),
    peers: Object.fromEntries(
      ['onnxruntime-node', '@tensorflow/tfjs-node-gpu'].map((name) => [name, isInstalled(name)]),
    ),
  }
}

async function engineFindings(threads?: number): Promise<Diagnosis['engine']> {
  try {
    const addon = loadAddon()
    const kernels = addon.kernels()
    const isa = addon.isaLevels().map(([name, supported]) => {
      const count = kernels.filter(([level]) => level === name).length
      return { name, supported, built: count > 0, kernels: count }
    })
    const tableFaults = compareTables()
    using device = openDevice({ threads })
    const gbps = await measureCopy(device, { seconds: PEAK_SECONDS })
    const peak = {
      f32: { gflops: await measureProduct(device, 'f32', { seconds: PEAK_SECONDS }), gbps },
      bf16: { gflops: await measureProduct(device, 'bf16', { seconds: PEAK_SECONDS }), gbps },
    }
    return { addon: addonPath(), isa, chosenIsa: device.isa, threads: device.threads, peak, tableFaults }
  } catch (error) {
    if (!(error instanceof CaravanError) || error.code === 'ERR_CONFIG') throw error
    return { error: error.message, hint: error.hint }
  }
}

/** The .node file that the process has loaded. */
export function addonPath(): string {
  const loaded = Object.keys(createRequire(import.meta.url).cache).find((path) => path.endsWith('caravan.node'))
  return loaded ?? process.env.CARAVAN_ADDON ?? 'unknown'
}

function cudaFindings(): CudaFindings {
  try {
    const { path, facts, unavailable } = cudaBackend()
    const module = facts ? path : undefined
    const devices = (facts?.devices ?? []).map(([name, totalBytes, capability]) => ({ name, totalBytes, capability }))
    const findings = (facts ? loadAddon().findings(path) : []).map(([name, text]) => ({ name, text }))
    return { available: unavailable === '', reason: unavailable, module, devices, findings }
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    return { available: false, reason: 'the engine does not load', devices: [], findings: [] }
  }
}

function isInstalled(name: string): boolean {
  try {
    createRequire(import.meta.url).resolve(name)
    return true
  } catch {
    return false
  }
}

function diagnosisLines(found: Diagnosis, terminal: Terminal): string[] {
  const { bold, dim } = terminal.color
  const { cores, memory } = found
  const machine = [
    ['node', found.node],
    ['system', found.platform],
    ['processor', `${found.processor}, ${cores.available} of ${cores.logical} threads available, load ${found.load}`],
    ['memory', `${bytesText(memory.totalBytes)}, ${bytesText(memory.freeBytes)} free`],
  ]
  const extras = [
    ...Object.entries(found.peers).map(([name, present]) => [
      name,
      present ? 'installed' : dim('not installed (optional)'),
    ]),
  ]
  const section = (title: string, rows: string[][]) => [bold(title), ...tableLines(rows, { indent: '  ' }), '']
  return [
    ...section('machine', machine),
    ...section('engine', engineRows(found.engine, terminal)),
    ...section('cuda', cudaRows(found.cuda)),
    ...section('optional', extras),
  ]
}

function cudaRows(cuda: CudaFindings): string[][] {
  const devices = cuda.devices.map(({ name, totalBytes, capability }, i) => {
    const version = `${Math.floor(capability / 10)}.${capability % 10}`
    return [`device ${i}`, `${name}, ${bytesText(totalBytes)}, compute capability ${version}`]
  })
  return [
    ['available', cuda.available ? 'yes' : `no: ${cuda.reason}`],
    ...(cuda.module ? [['module', cuda.module]] : []),
    ...devices,
    ...cuda.findings.map(({ name, text }) => [name, text]),
  ]
}

function engineRows(engine: Diagnosis['engine'], terminal: Terminal): string[][] {
  const { green, red, yellow, dim } = terminal.color
  if ('error' in engine) {
    const rows = [[red('does not load'), engine.error]]
    return engine.hint ? [...rows, ['what to do', engine.hint]] : rows
  }
  const levels = engine.isa.map(({ name, supported, built, kernels }) => {
    if (!built) return `${name} ${dim('(not built)')}`
    if (!supported) return `${name} ${dim(`(${kernels} kernels, not supported here)`)}`
    return name === engine.chosenIsa ? green(`${name} (${kernels} kernels, chosen)`) : `${name} (${kernels} kernels)`
  })
  const { f32, bf16 } = engine.peak
  return [
    ['addon', engine.addon],
    ['instructions', levels.join(', ')],
    ['threads', String(engine.threads)],
    ['products', `${shortNumber(f32.gflops)} GFLOP/s in f32, ${shortNumber(bf16.gflops)} GFLOP/s in bf16 (measured)`],
    ['memory', `${shortNumber(f32.gbps)} GB/s (measured, copy)`],
    ...engine.tableFaults.map((fault) => [yellow('mismatch'), fault]),
  ]
}
