// Steps that are given before the tokens of the last one are read: everything that comes out is what comes out without
// them, bit for bit, whatever ends sequences on the way.
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import {
  type GenerateEvent,
  type GenerateOptions,
  type GenerateRequest,
  generate,
  generateAll,
} from '../../lib/generate/index.js'
import { Scheduler, type Step } from '../../lib/generate/scheduler.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { modelFolder } from '../models/golden_model.js'

let device: Device
let model: CausalLm
beforeAll(async () => {
  device = openDevice(deviceUnderTest)
  model = await loadModel(device, modelFolder('llama_gqa_rope3'))
})
afterAll(async () => {
  model.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})
afterEach(() => {
  vi.restoreAllMocks()
})

const decode = (sequences: readonly Int32Array[]) =>
  sequences.map((ids) => Array.from(ids, (id) => String.fromCharCode(97 + (id % 26))).join(''))

/** Requests that end by their length, by stop ids, by a stop text, by steering; some with several samples. */
function requests(): GenerateRequest[] {
  return Array.from({ length: 12 }, (_, i): GenerateRequest => {
    const parts = { asked: 0 }
    return {
      prompt: Int32Array.from({ length: 1 + ((i * 7) % 70) }, (_, j) => (5 * i + 7 * j + 3) % 50),
      maxTokens: 4 + 3 * i,
      stopIds: i % 3 === 0 ? [] : Array.from({ length: 40 }, (_, j) => 3 + 6 * j + i),
      stopTexts: i % 4 === 1 ? ['e', 'qu'] : [],
      seed: i,
      samples: i % 5 === 2 ? 3 : 1,
      temperature: i % 4 === 0 ? 0 : 1,
      repetitionPenalty: i === 7 ? 1.2 : 1,
      ...(i % 4 === 2 && {
        steering: {
          maxTokens: 6,
          next: () =>
            parts.asked++ < 3 ? { append: Int32Array.of(1, 2), maxTokens: 5, stopIds: [9, 10, 11, 12] } : undefined,
        },
      }),
    }
  })
}

const aheadOf = Scheduler.prototype.ahead

/** What comes out, event by event of each sequence, and the steps that were given ahead. */
async function run(options: GenerateOptions, { isAhead }: { isAhead: boolean }) {
  const steps: Step[] = []
  vi.spyOn(Scheduler.prototype, 'ahead').mockImplementation(function (this: Scheduler) {
    const step = isAhead ? aheadOf.call(this) : undefined
    if (step) steps.push(step)
    return step
  })
  const sequences: { [key: string]: GenerateEvent[] } = {}
  let tokens = 0
  for await (const event of generate(model, requests(), { decode, ...options })) {
    const key = `${event.request} ${event.sample}`
    sequences[key] ??= []
    sequences[key].push(event)
    if (event.type === 'token') tokens++
  }
  return { sequences, tokens, steps }
}

describe.each<[string, GenerateOptions]>([
  ['many at once', { slots: 32 }],
  ['few at once, so that some wait', { slots: 3 }],
  ['in few pages', { slots: 32, cacheTokens: 4 * 64 }],
  ['in short steps', { slots: 4, stepRows: 8 }],
])('sequences %s', (_, options) => {
  it('give the same events', async () => {
    const without = await run(options, { isAhead: false })
    const withAhead = await run(options, { isAhead: true })
    expect(withAhead.sequences).toEqual(without.sequences)
    expect(withAhead.tokens).toBe(without.tokens)
    expect(without.steps).toEqual([])
    // Most steps can be given ahead here, and some of what they drew was for sequences that had ended.
    expect(withAhead.steps.length).toBeGreaterThan(10)
    const reasons = Object.values(withAhead.sequences).map((events) => events.at(-1))
    expect(new Set(reasons.map((event) => event?.type === 'finished' && event.finishReason)).size).toBe(2)
  })
})

it('a token that nobody wants any more is not seen, not even where it has no probability', async () => {
  const request = { prompt: Int32Array.of(1, 2, 3), maxTokens: 30, stopIds: [], temperature: 0 }
  const whole = (await generateAll(model, [request]))[0]![0]!
  const stop = whole.tokens[9]!
  const first = whole.tokens.indexOf(stop)
  const accept = Scheduler.prototype.accept
  let drawn = 0
  vi.spyOn(Scheduler.prototype, 'accept').mockImplementation(function (this: Scheduler, tokens) {
    drawn += tokens.length
    return accept.call(this, tokens)
  })
  const stopped = (await generateAll(model, [{ ...request, stopIds: [stop] }]))[0]![0]!
  expect(stopped.tokens).toEqual(whole.tokens.slice(0, first + 1))
  // The step ahead is waited for, and nothing of it is taken.
  expect(drawn).toBeLessThanOrEqual(first + 2)
})

it('a call that is left early leaves nothing behind', async () => {
  await device.idle()
  const before = device.stats().liveTensors
  let seen = 0
  for await (const event of generate(model, requests(), { decode, slots: 8 })) {
    if (event.type === 'token' && ++seen === 40) break
  }
  await device.idle()
  expect(device.stats().liveTensors).toBe(before)
})

it('an aborted request ends while a step for it is under way, and its neighbours do not notice', async () => {
  const ending = new AbortController()
  const neighbour: GenerateRequest = { prompt: Int32Array.of(4, 5), maxTokens: 25, stopIds: [], seed: 3 }
  const aborted: GenerateRequest = { ...neighbour, seed: 4, signal: ending.signal }
  const alone = await generateAll(model, [neighbour])
  const finished: GenerateEvent[] = []
  for await (const event of generate(model, [neighbour, aborted])) {
    if (event.type === 'finished') finished.push(event)
    else if (event.request === 1 && event.sample === 0 && !ending.signal.aborted) ending.abort()
  }
  const [first, second] = finished.map((event) => (event.type === 'finished' ? event : undefined))
  expect(first).toMatchObject({ request: 1, finishReason: 'aborted' })
  expect(second!.tokens).toEqual(alone[0]![0]!.tokens)
  expect(second!.logprobs).toEqual(alone[0]![0]!.logprobs)
})
