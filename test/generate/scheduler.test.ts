import { expect, it } from 'vitest'
import { Scheduler } from '../../lib/generate/scheduler.js'

const ids = (...values: number[]) => Int32Array.from(values)
const options = { slots: 2, capacity: 10, maxTokens: 3, stopIds: new Set([99]), stepRows: 4 }

it('feeds prompts by pieces, lets waiting sequences go first, and refills slots', () => {
  const scheduler = new Scheduler([ids(1, 2), ids(3, 4, 5), ids(6)], options)
  // Slot 0 takes prompt 0, slot 1 prompt 1; four rows a step leave one token of prompt 1 for later.
  expect(scheduler.next()).toEqual({
    ids: ids(1, 2, 3, 4),
    positions: ids(0, 1, 0, 1),
    cacheRows: ids(0, 1, 10, 11),
    segments: ids(0, 2, 0, 2, 2, 4, 10, 12),
    lastRows: ids(1),
  })
  expect(scheduler.awaiting).toEqual([0])
  scheduler.accept([50])
  expect(scheduler.next()).toEqual({
    ids: ids(50, 5),
    positions: ids(2, 2),
    cacheRows: ids(2, 12),
    segments: ids(0, 1, 0, 3, 1, 2, 10, 13),
    lastRows: ids(0, 1),
  })
  scheduler.accept([99, 60])
  expect(scheduler.finished[0]).toEqual({ tokens: ids(50, 99), finishReason: 'stop' })
  // Prompt 2 takes over slot 0.
  const third = scheduler.next()!
  expect(scheduler.awaiting).toEqual([1, 2])
  expect(third.cacheRows).toEqual(ids(13, 0))
  scheduler.accept([61, 70])
  scheduler.next()
  scheduler.accept([62, 71])
  expect(scheduler.finished[1]).toEqual({ tokens: ids(60, 61, 62), finishReason: 'length' })
  scheduler.next()
  scheduler.accept([99])
  expect(scheduler.finished[2]).toEqual({ tokens: ids(70, 71, 99), finishReason: 'stop' })
  expect(scheduler.next()).toBeUndefined()
  expect(scheduler.finishedCount).toBe(3)
  expect(scheduler.newTokenCount).toBe(8)
})
