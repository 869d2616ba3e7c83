// Training on all cores in the process of a service: a timer of 5 ms fires in time. The machine may be late by itself,
// so what counts is how much training adds to that.
import { existsSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { openDevice } from '../../lib/ops/index.js'
import { pocketSizes, randomExamples, sftOf, smallModel, trained } from './small_runs.js'

const PERIOD_MS = 5

/** How late a timer of PERIOD_MS is, over and over, until `done`. */
async function lateness(done: Promise<unknown>): Promise<number[]> {
  let running = true
  done.finally(() => {
    running = false
  })
  const late: number[] = []
  while (running) {
    const asked = performance.now()
    await sleep(PERIOD_MS)
    late.push(performance.now() - asked - PERIOD_MS)
  }
  return late.sort((a, b) => a - b)
}

const at = (sorted: number[], share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!

/** With nothing of ours running. */
const idle = () => lateness(sleep(1500))

async function whileTraining(): Promise<number[]> {
  using device = openDevice({ threads: availableParallelism() })
  const examples = randomExamples({ count: 60, V: pocketSizes.V, least: 60, most: 120 })
  const run = (maxSteps: number) => {
    const options = { batch: { sequences: 16 }, microBatchTokens: 1024, epochs: maxSteps }
    return trained(device, smallModel(device, pocketSizes), sftOf(examples, options, { maxSteps }))
  }
  // Until the JavaScript of a step has been compiled, the first ones take ten times as long to be written.
  await run(8)
  const training = run(40)
  const late = await lateness(training)
  expect((await training).steps.length).toBe(40)
  return late
}

describe('the event loop', () => {
  it('is at most 10 ms later at p99 and 50 ms at worst while every core trains', async (context) => {
    const quiet = await idle()
    const training = await whileTraining()
    const after = await idle()
    const idleP99 = Math.max(at(quiet, 0.99), at(after, 0.99))
    const idleWorst = Math.max(quiet.at(-1)!, after.at(-1)!)
    const facts = `late by p99 ${at(training, 0.99).toFixed(1)} ms, worst ${training.at(-1)!.toFixed(1)} ms over ${training.length} timers; idle p99 ${idleP99.toFixed(1)}, worst ${idleWorst.toFixed(1)}`
    // Where other processes hold the cores, the kernel's time slices are measured, not this engine.
    if (idleP99 > 5) context.skip(`the machine is busy: ${facts}`)
    expect(training.length, facts).toBeGreaterThan(20)
    expect(at(training, 0.99), facts).toBeLessThanOrEqual(idleP99 + 10)
    expect(training.at(-1), facts).toBeLessThanOrEqual(idleWorst + 50)
  })

  it.skipIf(!existsSync('/proc/thread-self/schedstat'))(
    'is never held by a call: no turn takes 50 ms of this thread',
    async () => {
      // CPU time of the JavaScript thread does not depend on what else the machine does.
      const turns: number[] = []
      let running = true
      const watch = (async () => {
        let before = threadCpuMs()
        while (running) {
          await new Promise<void>((resolve) => setImmediate(resolve))
          const now = threadCpuMs()
          turns.push(now - before)
          before = now
        }
      })()
      using device = openDevice({ threads: availableParallelism() })
      const examples = randomExamples({ count: 60, V: pocketSizes.V, least: 60, most: 120 })
      const model = smallModel(device, pocketSizes)
      const method = sftOf(examples, { batch: { sequences: 16 }, microBatchTokens: 1024 }, { maxSteps: 4 })
      await trained(device, model, method)
      running = false
      await watch
      expect(Math.max(...turns)).toBeLessThan(50)
    },
  )
})

/** CPU time of the calling thread in ms; process.cpuUsage() counts all threads. */
function threadCpuMs(): number {
  return Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[0]) / 1e6
}
