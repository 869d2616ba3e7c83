import { describe, expect, it } from 'vitest'
import { PagePool } from '../../lib/generate/page_pool.js'
import type { ResolvedRequest } from '../../lib/generate/request.js'
import { Scheduler } from '../../lib/generate/scheduler.js'

const ids = (...values: number[]) => Int32Array.from(values)
const settings = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }

function request(prompt: Int32Array, changed: Partial<ResolvedRequest> = {}): ResolvedRequest {
  const fixed = { index: 0, stopTexts: [], seed: 7, samples: 1, steering: undefined, signal: undefined, settings }
  return { ...fixed, prompt, maxTokens: 3, stopIds: new Set([99]), ...changed }
}

/** Takes tokens and ends the sequences that have ended, as the engine does. */
function accept(scheduler: Scheduler, tokens: ArrayLike<number>) {
  const accepted = scheduler.accept(tokens)
  for (const { sequence, finishReason } of accepted) if (finishReason) scheduler.finish(sequence)
  return accepted
}

it('feeds prompts by pieces, lets waiting sequences go first, and refills slots and pages', () => {
  const scheduler = new Scheduler({ pages: 2, slots: 2, stepRows: 4 })
  const [first, second, third] = [request(ids(1, 2)), request(ids(3, 4, 5)), request(ids(6))]
  for (const one of [first, second, third]) scheduler.add(one)
  // Page 0 takes the first, page 1 the second; four rows a step leave one token of the second for later.
  expect(scheduler.next()).toEqual({
    ahead: false,
    ids: ids(1, 2, 3, 4),
    positions: ids(0, 1, 0, 1),
    cacheRows: ids(0, 1, 64, 65),
    segments: ids(0, 2, 0, 2, 2, 4, 1, 2),
    pages: ids(0, 1),
    lastRows: ids(1),
    draws: [{ settings, key: { seed: 7, sample: 0, position: 2 }, previous: undefined }],
  })
  expect(scheduler.waitingCount).toBe(1)
  accept(scheduler, [50])
  expect(scheduler.next()).toMatchObject({
    ids: ids(50, 5),
    positions: ids(2, 2),
    cacheRows: ids(2, 66),
    segments: ids(0, 1, 0, 3, 1, 2, 1, 3),
    lastRows: ids(0, 1),
  })
  const accepted = accept(scheduler, [99, 60])
  expect(accepted.map(({ finishReason }) => finishReason)).toEqual(['stop', undefined])
  expect(accepted[0]!.sequence).toMatchObject({ request: first, known: [1, 2, 50, 99] })
  // The third takes over page 0.
  expect(scheduler.next()!.cacheRows).toEqual(ids(67, 0))
  expect(accept(scheduler, [61, 70]).map(({ sequence }) => sequence.request)).toEqual([second, third])
  scheduler.next()
  expect(accept(scheduler, [62, 71]).map(({ finishReason }) => finishReason)).toEqual(['length', undefined])
  scheduler.next()
  accept(scheduler, [99])
  expect(scheduler.next()).toBeUndefined()
  expect(scheduler.idle).toBe(true)
  expect(scheduler.freePages).toBe(2)
})

describe('samples of one prompt', () => {
  const prompt = Int32Array.from({ length: 130 }, (_, i) => i)

  it('share its pages, and copy the rows of the page in which it ends', () => {
    const scheduler = new Scheduler({ pages: 5, slots: 8, stepRows: 200 })
    scheduler.add(request(prompt, { samples: 3 }))
    const step = scheduler.next()!
    expect(scheduler.freePages).toBe(0)
    expect(step.ids).toEqual(prompt)
    expect(step.lastRows).toEqual(ids(129, 129, 129))
    expect(step.draws.map(({ key }) => key)).toEqual([0, 1, 2].map((sample) => ({ seed: 7, sample, position: 130 })))
    accept(scheduler, [7, 8, 99])
    expect(scheduler.freePages).toBe(1)
    expect(scheduler.next()).toMatchObject({
      ids: ids(7, 8),
      positions: ids(130, 130),
      cacheRows: ids(2 * 64 + 2, 3 * 64 + 2),
      segments: ids(0, 1, 0, 131, 1, 2, 3, 131),
      pages: ids(0, 1, 2, 0, 1, 3),
    })
    expect(scheduler.takeCopies()).toEqual({ from: [128, 129, 128, 129], to: [192, 193, 256, 257] })
    expect(scheduler.takeCopies()).toEqual({ from: [], to: [] })
    accept(scheduler, [99, 9])
    expect(scheduler.freePages).toBe(2)
    scheduler.next()
    accept(scheduler, [99])
    expect(scheduler.freePages).toBe(5)
  })

  it('go in several waves where slots or pages are few', () => {
    for (const options of [
      { pages: 50, slots: 2, stepRows: 200 },
      { pages: 4, slots: 8, stepRows: 200 },
    ]) {
      const scheduler = new Scheduler(options)
      scheduler.add(request(prompt, { samples: 3, maxTokens: 2 }))
      const seen: number[] = []
      for (let step = scheduler.next(); step; step = scheduler.next()) {
        scheduler.takeCopies()
        for (const { sequence, finishReason } of accept(
          scheduler,
          step.lastRows.map(() => 1),
        )) {
          if (finishReason) seen.push(sequence.sample)
        }
      }
      expect(seen).toEqual([0, 1, 2])
      expect(scheduler.freePages).toBe(options.pages)
    }
  })

  it('of one new token need no page of their own', () => {
    const scheduler = new Scheduler({ pages: 3, slots: 9, stepRows: 200 })
    scheduler.add(request(prompt, { samples: 9, maxTokens: 1 }))
    expect(scheduler.next()!.lastRows).toHaveLength(9)
    accept(scheduler, Array(9).fill(1))
    expect(scheduler.takeCopies().from).toEqual([])
    expect(scheduler.idle).toBe(true)
    expect(scheduler.freePages).toBe(3)
  })

  it('are cancelled together, those that wait too', () => {
    const scheduler = new Scheduler({ pages: 5, slots: 2, stepRows: 64 })
    const cancelled = request(prompt, { samples: 3 })
    scheduler.add(cancelled)
    scheduler.add(request(ids(1)))
    scheduler.next()
    accept(scheduler, [])
    expect(scheduler.cancel(cancelled).map(({ sample }) => sample)).toEqual([0, 1, 2])
    expect(scheduler.freePages).toBe(5)
    expect(scheduler.next()!.ids).toEqual(ids(1))
  })
})

it('a sequence that has ended goes on without its stop token, as far as it has room', () => {
  const scheduler = new Scheduler({ pages: 1, slots: 1, stepRows: 8 })
  const steering = { maxTokens: 2, next: () => undefined }
  scheduler.add(request(ids(1, 2), { maxTokens: 8, steering }))
  const step = () => scheduler.next()!
  expect(step().ids).toEqual(ids(1, 2))
  const [first] = scheduler.accept([99])
  expect(first!.finishReason).toBe('stop')
  expect(scheduler.resume(first!.sequence, { append: ids(5, 6), maxTokens: 2, stopIds: [98] }, 'stop')).toBe(true)
  expect(step()).toMatchObject({ ids: ids(5, 6), positions: ids(2, 3), segments: ids(0, 2, 0, 4) })
  expect(scheduler.accept([99])[0]!.finishReason).toBeUndefined()
  step()
  const [second] = scheduler.accept([7])
  expect(second!).toMatchObject({ finishReason: 'length', sequence: { known: [1, 2, 5, 6, 99, 7] } })
  const more = { append: ids(1, 1, 1), maxTokens: 50, stopIds: [] }
  expect(scheduler.resume(second!.sequence, { ...more, append: ids(1, 1, 1, 1) }, 'length')).toBe(false)
  expect(scheduler.resume(second!.sequence, more, 'length')).toBe(true)
  expect(step().ids).toEqual(ids(7, 1, 1, 1))
  expect(scheduler.accept([3])[0]!.finishReason).toBe('length')
})

describe('the step behind the one under way', () => {
  /** Two sequences whose prompts are in the cache, with a step under way that feeds 50 and 60. */
  function decoding(options: { pages?: number; slots?: number } = {}, changed: Partial<ResolvedRequest> = {}) {
    const scheduler = new Scheduler({ pages: 2, slots: 2, stepRows: 8, ...options })
    for (const prompt of [ids(1, 2), ids(3, 4)]) scheduler.add(request(prompt, { maxTokens: 9, ...changed }))
    scheduler.next()
    const [first, second] = accept(scheduler, [50, 60]).map(({ sequence }) => sequence)
    expect(scheduler.next()).toMatchObject({ ahead: false, ids: ids(50, 60), positions: ids(2, 2) })
    return { scheduler, first: first!, second: second! }
  }

  it('feeds what that one draws, a place further', () => {
    const { scheduler } = decoding()
    expect(scheduler.ahead()).toEqual({
      ahead: true,
      ids: ids(0, 1),
      positions: ids(3, 3),
      cacheRows: ids(3, 67),
      segments: ids(0, 1, 0, 4, 1, 2, 1, 4),
      pages: ids(0, 1),
      lastRows: ids(0, 1),
      draws: [4, 4].map((position) => ({ settings, key: { seed: 7, sample: 0, position }, previous: undefined })),
    })
    // One at a time, and again once the older one is answered.
    expect(scheduler.ahead()).toBeUndefined()
    expect(accept(scheduler, [51, 61]).map(({ place }) => place)).toEqual([0, 1])
    expect(scheduler.ahead()).toMatchObject({ ids: ids(0, 1), positions: ids(4, 4) })
    accept(scheduler, [52, 62])
    expect(accept(scheduler, [53, 63]).map(({ sequence }) => sequence.known)).toEqual([
      [1, 2, 50, 51, 52, 53],
      [3, 4, 60, 61, 62, 63],
    ])
    expect(scheduler.next()).toMatchObject({ ahead: false, ids: ids(53, 63), positions: ids(5, 5) })
  })

  it('gives nothing to a sequence that has ended meanwhile, and leaves it out from then on', () => {
    const { scheduler, first, second } = decoding()
    scheduler.ahead()
    expect(accept(scheduler, [99, 61])).toMatchObject([{ finishReason: 'stop' }, { finishReason: undefined }])
    expect(scheduler.freePages).toBe(1)
    // Place 1 of the step under way is the second's.
    expect(scheduler.ahead()).toMatchObject({ ids: ids(1), positions: ids(4), draws: [{ key: { position: 5 } }] })
    expect(accept(scheduler, [7, 62])).toEqual([{ sequence: second, place: 1, token: 62, finishReason: undefined }])
    expect(accept(scheduler, [63])).toMatchObject([{ sequence: second, place: 0, token: 63 }])
    expect(first.known).toEqual([1, 2, 50, 99])
    expect(scheduler.next()).toMatchObject({ ids: ids(63), positions: ids(5) })
  })

  it('gives nothing to a sequence that has gone on otherwise, whose keys and values are written over', () => {
    const { scheduler, first } = decoding({}, { steering: { maxTokens: 8, next: () => undefined } })
    scheduler.ahead()
    expect(scheduler.accept([99, 61])[0]).toMatchObject({ finishReason: 'stop' })
    expect(scheduler.resume(first, { append: ids(8, 9), maxTokens: 5, stopIds: [] }, 'stop')).toBe(true)
    expect(scheduler.ahead()).toBeUndefined()
    expect(accept(scheduler, [7, 62]).map(({ token }) => token)).toEqual([62])
    expect(scheduler.next()).toMatchObject({ ids: ids(62, 8, 9), positions: ids(4, 3, 4), cacheRows: ids(68, 3, 4) })
  })

  it('gives nothing to a request that was cancelled, whose pages are free at once', () => {
    const { scheduler, first, second } = decoding()
    scheduler.ahead()
    scheduler.cancel(first.request)
    expect(scheduler.freePages).toBe(1)
    expect(accept(scheduler, [51, 61]).map(({ sequence }) => sequence)).toEqual([second])
    expect(accept(scheduler, [52, 62]).map(({ token }) => token)).toEqual([62])
  })

  it('leaves out a sequence that its length ends', () => {
    const { scheduler } = decoding({}, { maxTokens: 2 })
    expect(scheduler.ahead()).toBeUndefined()
    const longer = decoding()
    longer.scheduler.add(request(ids(4), { maxTokens: 3 }))
    accept(longer.scheduler, [99, 61])
    longer.scheduler.next()
    accept(longer.scheduler, [62, 70])
    expect(longer.scheduler.next()!.ids).toEqual(ids(62, 70))
    expect(longer.scheduler.ahead()!.ids).toEqual(ids(0, 1))
    accept(longer.scheduler, [63, 71])
    expect(longer.scheduler.ahead()!.ids).toEqual(ids(0))
  })

  it('waits where a request could begin, a prompt is still to be fed, or a penalty wants the tokens', () => {
    const { scheduler } = decoding({ pages: 3, slots: 3 })
    scheduler.add(request(ids(4)))
    expect(scheduler.ahead()).toBeUndefined()
    const full = decoding().scheduler
    full.add(request(ids(4)))
    expect(full.ahead()).toBeDefined()

    const long = new Scheduler({ pages: 2, slots: 2, stepRows: 4 })
    long.add(request(ids(1)))
    long.add(request(ids(1, 2, 3, 4, 5, 6)))
    long.next()
    expect(long.ahead()).toBeUndefined()

    const penalty = { settings: { ...settings, repetitionPenalty: 1.1 } }
    expect(decoding({}, penalty).scheduler.ahead()).toBeUndefined()
  })
})

it('refuses a request that never fits', () => {
  const scheduler = new Scheduler({ pages: 1, slots: 2, stepRows: 4 })
  scheduler.add(request(ids(1, 2), { maxTokens: 63 }))
  expect(() => scheduler.add(request(ids(1, 2), { index: 4, maxTokens: 64 }))).toThrow(
    'request 4: prompt and maxTokens want 128 tokens of cache; the cache has 64',
  )
})

it('a page has as many users as were given it', () => {
  const pool = new PagePool(2)
  const page = pool.take()
  pool.share(page)
  pool.release(page)
  expect(pool.freeCount).toBe(1)
  pool.release(page)
  expect(pool.freeCount).toBe(2)
  pool.take()
  pool.take()
  expect(() => pool.take()).toThrow('all 2 pages of the cache are in use')
})
