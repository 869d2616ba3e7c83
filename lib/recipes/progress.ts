// Turns the progress callbacks of a long preparation into events of the run.
import type { RunEvent } from '../train/events.js'

export type Report = (event: RunEvent) => void

/** Runs `work` and yields what it reports, oldest first; the value of the generator is the work's result. */
export async function* reporting<T>(work: (report: Report) => Promise<T>): AsyncGenerator<RunEvent, T> {
  const waiting: RunEvent[] = []
  let wake = () => {}
  let settled = false
  const finished = work((event) => {
    waiting.push(event)
    wake()
  }).finally(() => {
    settled = true
    wake()
  })
  finished.catch(() => {}) // awaited below
  while (!settled || waiting.length > 0) {
    const event = waiting.shift()
    if (event) yield event
    else await new Promise<void>((resolve) => (wake = resolve))
  }
  return await finished
}
