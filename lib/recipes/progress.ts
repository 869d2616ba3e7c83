// Turns the progress callbacks of a long preparation into events of the run.
import type { RunEvent } from '../train/events.js'

export type Report = (event: RunEvent) => void

export interface Reporting<T> {
  /** Any of these ends the work early. */
  signals: readonly (AbortSignal | undefined)[]
  /** Frees a result that nobody waits for any more. */
  discard: (value: T) => void | Promise<void>
}

/** Runs `work` and yields what it reports, oldest first; the value of the generator is the work's result. A consumer
 *  who  leaves aborts the signal that the work was given, and is let go when the work has ended. */
export async function* reporting<T>(
  work: (report: Report, signal: AbortSignal) => Promise<T>,
  { signals, discard }: Reporting<T>,
): AsyncGenerator<RunEvent, T> {
  const left = new AbortController()
  const signal = AbortSignal.any([left.signal, ...signals.filter((given) => given !== undefined)])
  const waiting: RunEvent[] = []
  let wake = () => {}
  let settled = false
  const report = (event: RunEvent) => {
    waiting.push(event)
    wake()
  }
  const finished = work(report, signal).finally(() => {
    settled = true
    wake()
  })
  finished.catch(() => {}) // awaited below
  let handedOver = false
  try {
    while (!settled || waiting.length > 0) {
      const event = waiting.shift()
      if (event) yield event
      else {
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
    }
    const value = await finished
    handedOver = true
    return value
  } finally {
    if (!handedOver) {
      left.abort()
      await finished.then(discard, () => {})
    }
  }
}
