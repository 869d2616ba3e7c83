// A check of each op in a process of its own: a kernel that faults on a GPU takes every later call of its process with
// it, and one that never ends must not keep the others from being checked.
import { spawn } from 'node:child_process'
import type { Op } from '../tensor/index.js'
import type { BenchCheckFlags, CheckResult } from './bench_check.js'
import type { DtypeFlag } from './command_options.js'

/** Processes at a time: a check waits more than it computes. */
const PROCESSES = 4
const SECONDS_PER_OP = 120

/** Checks each row of `rows` in a process; `show` gets the results as they come. */
export async function checkIsolated(
  rows: readonly { op: Op; dtype: DtypeFlag }[],
  flags: BenchCheckFlags,
  show: (result: CheckResult) => void,
): Promise<void> {
  const waiting = [...rows]
  const worker = async () => {
    for (let row = waiting.shift(); row; row = waiting.shift()) show(await checkInProcess(row, flags))
  }
  await Promise.all(Array.from({ length: PROCESSES }, worker))
}

function checkInProcess(
  { op, dtype }: { op: Op; dtype: DtypeFlag },
  { device, threads, extent, seed }: BenchCheckFlags,
): Promise<CheckResult> {
  const { name } = op.definition
  const words = [process.argv[1]!, 'bench', 'check', name, '--dtype', dtype, '--extent', extent, '--seed', String(seed)]
  if (device) words.push('--device', device)
  if (threads) words.push('--threads', String(threads))
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...words, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] })
    let [stdout, stderr] = ['', '']
    const timer = setTimeout(() => child.kill('SIGKILL'), SECONDS_PER_OP * 1000)
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    const failed = (reason: string): CheckResult => {
      return { op: name, dtype, kernel: true, samples: 0, repeats: true, seconds: 0, faults: [reason] }
    }
    child.on('error', (error) => resolve(failed(error.message)))
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      const line = stdout.split('\n').find((one) => one.startsWith('{"type":"check"'))
      const how = signal === 'SIGKILL' ? `did not end within ${SECONDS_PER_OP} s` : `ended with ${signal ?? code}`
      resolve(line ? (JSON.parse(line) as CheckResult) : failed(`its process ${how}: ${stderr.trim().slice(-300)}`))
    })
  })
}
