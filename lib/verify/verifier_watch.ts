// Thread beside a process that judges. It ends that process when a completion takes too long or too much memory, after
// writing the verdicts that were made before, and when the parent has gone: one that hangs would not hear of it.
import { workerData } from 'node:worker_threads'
import { answer, VerifierJournal } from './verifier_journal.js'
import { outOfMemory, type ProcessLimits, SIGNS, tookTooLong } from './verifier_process.js'

export interface WatchData {
  memory: SharedArrayBuffer
  limits: ProcessLimits
  parent: number
}

const { memory, limits, parent } = workerData as WatchData
const journal = new VerifierJournal(memory)
const ownBytes = process.memoryUsage.rss()
let seen: number | undefined
let since = 0

setInterval(
  () => {
    if (process.ppid !== parent) end()
    const { current } = journal
    if (current !== seen) since = performance.now()
    seen = current
    if (current === undefined) return
    if (performance.now() - since > limits.timeoutMs) condemn(current, tookTooLong(limits))
    else if (process.memoryUsage.rss() - ownBytes > 2 * limits.memoryMiB * 2 ** 20)
      condemn(current, outOfMemory(limits))
  },
  Math.min(10, Math.max(2, limits.timeoutMs / 50)),
)

function condemn(count: number, reason: string): void {
  if (!journal.condemn(count)) return
  journal.flush()
  answer(SIGNS.condemned, JSON.stringify(reason))
  end()
}

function end(): void {
  process.kill(process.pid, 'SIGKILL')
}
