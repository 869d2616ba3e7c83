// PyTorch as a rival: found, never required. It runs in a process of its own, by the scripts in bench/.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { StepResult } from './bench_step.js'

/** Its numbers, or why there are none. */
export type PeerStep = (StepResult & { version?: string }) | { absent: string }

/** What every run of PyTorch needs. */
interface TorchOptions {
  model: string
  dtype: 'fp32' | 'bf16'
  device?: 'cpu' | 'cuda'
  threads?: number
  /** torch.compile. */
  peerCompile?: boolean
  /** bf16 weights and moments. */
  peerPure?: boolean
  peer?: boolean | string
  /** Seconds after which PyTorch is stopped. */
  peerTimeout: number
}

export interface TorchStepOptions extends TorchOptions {
  method: 'sft' | 'dpo'
  cachedReference?: boolean
  steps: number
  batch: number
  length: number
}

/** The interpreter to try: CARAVAN_PYTHON, else python3. */
export function pythonCommand(environment: NodeJS.ProcessEnv = process.env): string {
  return environment.CARAVAN_PYTHON ?? 'python3'
}

/** Path of a script in bench/ of this package. */
export function benchScript(name: string): string {
  return fileURLToPath(new URL(`../../bench/${name}`, import.meta.url))
}

/** Runs the same step in PyTorch with its default script, or the one that `peer` names. */
export async function runTorchStep(options: TorchStepOptions): Promise<PeerStep> {
  const { method, cachedReference, steps, batch, length, ...shared } = options
  const sizes = ['--steps', String(steps), '--batch', String(batch), '--length', String(length)]
  const words = [...sizes, ...(cachedReference ? ['--cached-reference'] : [])]
  const row = await runTorch(method, words, shared)
  if ('absent' in row) return row
  return {
    tokensPerSecond: row.numbers.tokens_per_s!,
    gflops: row.numbers.gflops!,
    peakMiB: row.numbers.peak_rss_mib!,
    deviceMiB: row.numbers.peak_device_mib ?? undefined,
    stepSeconds: row.numbers.step_s!,
    loss: row.numbers.loss!,
    version: row.version,
  }
}

/** New tokens a second of the rival's generation, prompts included. */
export type PeerGenerate = { tokensPerSecond: number; version?: string } | { absent: string }

/** Generates the same batch in PyTorch. */
export async function runTorchGenerate(
  options: TorchOptions & { batch: number; prompt: number; newTokens: number },
): Promise<PeerGenerate> {
  const { batch, prompt, newTokens, ...shared } = options
  const words = ['--batch', String(batch), '--prompt', String(prompt), '--new-tokens', String(newTokens)]
  const row = await runTorch('generate', words, shared)
  return 'absent' in row ? row : { tokensPerSecond: row.numbers.tokens_per_s!, version: row.version }
}

interface PeerRow {
  numbers: { [key: string]: number }
  version?: string
}

/** The line that the script prints for one mode. */
async function runTorch(
  mode: string,
  words: readonly string[],
  { model, dtype, device, threads, peer, peerCompile, peerPure, peerTimeout }: TorchOptions,
): Promise<PeerRow | { absent: string }> {
  const script = typeof peer === 'string' ? peer : benchScript('torch_peer.py')
  if (!existsSync(script)) return { absent: `no PyTorch numbers: ${script} is not there` }
  const all = [script, mode, '--model', model, '--dtype', dtype, ...words]
  if (device === 'cuda') all.push('--device', 'cuda')
  if (peerCompile) all.push('--compile')
  if (peerPure) all.push('--pure')
  if (threads !== undefined) all.push('--threads', String(threads))
  const { exitCode, stdout, stderr, timedOut } = await runProcess(pythonCommand(), all, peerTimeout)
  if (timedOut) {
    const why = `did not end within ${peerTimeout} s and was stopped; --peer-timeout gives it more`
    return { absent: `no PyTorch numbers: ${pythonCommand()} ${script} ${why}` }
  }
  if (exitCode !== 0) {
    const why = stderr.trim().split('\n').at(-1) ?? ''
    return { absent: `no PyTorch numbers: ${pythonCommand()} ${script} ended with ${exitCode}: ${why}` }
  }
  try {
    const numbers = JSON.parse(stdout.trim().split('\n').at(-1)!) as PeerRow['numbers'] & { version?: string }
    return { numbers, version: numbers.version }
  } catch {
    return { absent: `no PyTorch numbers: the script printed no JSON line but "${stdout.trim().slice(-100)}"` }
  }
}

interface Finished {
  exitCode: number
  stdout: string
  stderr: string
  timedOut: boolean
}

/** Runs a process to its end, or kills it after `seconds`; one that cannot be started ends with 127. */
function runProcess(command: string, words: readonly string[], seconds: number): Promise<Finished> {
  return new Promise((resolve) => {
    const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'pipe'] })
    let [stdout, stderr] = ['', '']
    const finish = (exitCode: number, { reason = stderr, timedOut = false } = {}) => {
      clearTimeout(timer)
      resolve({ exitCode, stdout, stderr: reason, timedOut })
    }
    const timer = setTimeout(() => {
      child.kill('SIGKILL')
      // A process that the child has started may hold the pipes open for ever: they are not waited for.
      child.stdout.destroy()
      child.stderr.destroy()
      finish(128, { timedOut: true })
    }, seconds * 1000)
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    child.on('error', (error) => finish(127, { reason: error.message }))
    child.on('close', (code, signal) => finish(code ?? 128, { reason: signal ?? stderr }))
  })
}
