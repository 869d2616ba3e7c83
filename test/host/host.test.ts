// The engine inside a host: in worker threads, terminated or exited at any moment, and beside a live event loop. Each
// in a process of its own, so that a crash is an exit code.
import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { runChild } from '../runtime/child_process.js'

interface Lateness {
  p99: number
  worst: number
  ticks: number
}

describe('worker threads', () => {
  it('four at once get the bits of the main thread, on 1 to 4 threads each', async () => {
    const { code, stdout, stderr } = await runChild('host/children/workers.mjs')
    expect(code, stderr).toBe(0)
    const { main, workers } = JSON.parse(stdout)
    expect(main).toMatch(/^[0-9a-f]{64}$/)
    expect(workers).toEqual(Array.from({ length: 4 }, () => ({ digest: main, live: 0, code: 0 })))
  })

  it('can be terminated at any moment, 20 times', async () => {
    const runs = await Promise.all([1, 2].map((seed) => runChild('host/children/terminate.mjs', [String(seed), '10'])))
    for (const { code, signal, stdout, stderr } of runs) {
      expect({ code, signal }, stderr).toEqual({ code: 0, signal: null })
      const { took, digest } = JSON.parse(stdout)
      expect(took.length).toBe(10)
      expect(digest).toBe(JSON.parse(runs[0]!.stdout).digest)
    }
  })
})

describe('process.exit', () => {
  const random = new Random(1)
  const moments = Array.from({ length: 10 }, () => random.integer(0, 120))

  it('in the middle of the queue keeps its exit code, 10 times', async () => {
    for (let i = 0; i < moments.length; i += 2) {
      const pair = moments.slice(i, i + 2).map((moment) => runChild('host/children/exit.mjs', [String(moment)]))
      for (const { code, signal, stderr } of await Promise.all(pair)) {
        expect({ code, signal }, stderr).toEqual({ code: 7, signal: null })
        expect(stderr).toBe('')
      }
    }
  })
})

describe('the event loop', () => {
  const ATTEMPTS = 4

  it('stays free while every core trains', async (context) => {
    let last: { idle: Lateness; busy: Lateness; passes: number } | undefined
    let quiet = false
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const { code, stdout, stderr } = await runChild('host/children/event_loop.mjs')
      expect(code, stderr).toBe(0)
      last = JSON.parse(stdout) as typeof last
      expect(last!.passes).toBeGreaterThan(0)
      // Only a machine that is punctual when idle can say anything about one that trains.
      if (last!.idle.p99 > 3 || last!.idle.worst > 15) continue
      quiet = true
      if (last!.busy.p99 <= 10 && last!.busy.worst <= 50) return
    }
    const { idle, busy } = last!
    const text = `idle: p99 ${idle.p99} ms, worst ${idle.worst} ms; busy: p99 ${busy.p99} ms, worst ${busy.worst} ms`
    context.skip(!quiet, `this machine is too busy to measure (${text})`)
    expect(busy.p99, text).toBeLessThanOrEqual(10)
    expect(busy.worst, text).toBeLessThanOrEqual(50)
  })
})
