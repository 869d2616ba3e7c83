// Pairs laid end to end: what a row holds, what sharing a prompt leaves out, and that no pair is cut.
import { describe, expect, it } from 'vitest'
import { EncodedBuilder } from '../../lib/data/encoded.js'
import { Loader } from '../../lib/data/loader.js'
import { planPacking } from '../../lib/data/pack.js'
import { EncodedPairs } from '../../lib/data/pairs.js'

/** Pairs from [prompt, chosen answer, rejected answer]; the answers are trained. */
function pairsOf(rows: [number[], number[], number[]][], sharePrompt: boolean): EncodedPairs {
  const builder = new EncodedBuilder()
  for (const [prompt, chosen, rejected] of rows) {
    for (const answer of [chosen, rejected]) {
      const ids = Int32Array.from([...prompt, ...answer])
      builder.append({ ids, mask: Uint8Array.from(ids, (_, t) => Number(t >= prompt.length)) })
    }
  }
  return new EncodedPairs(builder.finish(), sharePrompt)
}

const rows: [number[], number[], number[]][] = [
  [[1, 2, 3], [10, 11], [12]],
  [[4, 5], [20], [21, 22, 23]],
]
const oneRow = (pairs: EncodedPairs) => pairs.pack(planPacking([9, 9], 100, 'bfd'), 0)
const numbers = (values: Int32Array | undefined) => values && Array.from(values)

describe('a row of pairs', () => {
  it('holds chosen and rejected one after the other', () => {
    const batch = oneRow(pairsOf(rows, false))
    expect(numbers(batch.inputIds)).toEqual([1, 2, 3, 10, 11, 1, 2, 3, 12, 4, 5, 20, 4, 5, 21, 22, 23])
    expect(numbers(batch.positions)).toEqual([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4])
    expect(numbers(batch.labels)).toEqual(
      [-100, -100, 10, 11, -100, -100, -100, 12, -100].concat([-100, 20, -100, -100, 21, 22, 23, -100]),
    )
    expect(numbers(batch.segments)).toEqual([0, 5, 0, 5, 5, 9, 5, 9, 9, 12, 9, 12, 12, 17, 12, 17])
    expect(numbers(batch.spans)).toEqual([0, 5, 2, 5, 9, 1, 9, 12, 1, 12, 17, 3])
    expect(batch.keyRows).toBeUndefined()
  })

  it('computes a shared prompt once, save its last token', () => {
    const pairs = pairsOf(rows, true)
    expect([0, 1].map((pair) => pairs.sharedOf(pair))).toEqual([2, 1])
    expect([0, 1].map((pair) => pairs.lengthOf(pair))).toEqual([7, 7])
    const batch = oneRow(pairs)
    expect(numbers(batch.inputIds)).toEqual([1, 2, 3, 10, 11, 3, 12, 4, 5, 20, 5, 21, 22, 23])
    expect(numbers(batch.positions)).toEqual([0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 1, 2, 3, 4])
    expect(numbers(batch.labels)).toEqual([-100, -100, 10, 11, -100, 12, -100, -100, 20, -100, 21, 22, 23, -100])
    // The rejected answer reads the prompt's keys again: rows 0, 1 and then its own.
    expect(numbers(batch.keyRows)).toEqual([0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9, 7, 10, 11, 12, 13])
    expect(numbers(batch.segments)).toEqual([0, 5, 0, 5, 5, 7, 5, 9, 7, 10, 9, 12, 10, 14, 12, 17])
    expect(numbers(batch.spans)).toEqual([2, 5, 2, 5, 7, 1, 8, 10, 1, 10, 14, 3])
  })

  it('shares nothing that differs, and nothing where the first token is trained', () => {
    const builder = new EncodedBuilder()
    const add = (ids: number[], mask: number[]) =>
      builder.append({ ids: Int32Array.from(ids), mask: Uint8Array.from(mask) })
    add([1, 2, 3, 9], [0, 0, 0, 1])
    add([7, 2, 3, 8], [0, 0, 0, 1])
    add([1, 2, 3], [0, 1, 1])
    add([1, 2, 4], [0, 1, 1])
    const pairs = new EncodedPairs(builder.finish(), true)
    expect([0, 1].map((pair) => pairs.sharedOf(pair))).toEqual([0, 0])
  })
})

describe('a loader of pairs', () => {
  const many = Array.from({ length: 23 }, (_, i): [number[], number[], number[]] => [
    Array.from({ length: 1 + (i % 5) }, () => i),
    Array.from({ length: 1 + (i % 7) }, () => 100 + i),
    Array.from({ length: 1 + (i % 3) }, () => 200 + i),
  ])

  it('keeps every pair whole, whatever the micro-batch', () => {
    for (const microBatchTokens of [1, 8, 20, 1000]) {
      const pairs = pairsOf(many, false)
      const loader = new Loader(pairs, { batch: { sequences: 5 }, microBatchTokens, seed: 3 })
      const seen: number[] = []
      for (const batch of loader) {
        const micros = [...batch.microBatches()]
        const tokens = micros.reduce((sum, { inputIds }) => sum + inputIds.length, 0)
        expect(batch.tokenCount).toBe(tokens)
        expect(batch.targetCount).toBe(
          micros.reduce((sum, { labels }) => sum + labels.filter((label) => label !== -100).length, 0),
        )
        for (const { pairs: inside, inputIds } of micros) {
          seen.push(...inside)
          expect(inputIds.length <= microBatchTokens || inside.length === 1).toBe(true)
        }
      }
      expect(seen.sort((a, b) => a - b)).toEqual(many.map((_, i) => i))
      expect(loader.cut).toEqual({ examples: 0, tokens: 0 })
    }
  })

  it('leaves out a pair with a side that has no target', () => {
    const builder = new EncodedBuilder()
    for (const mask of [
      [0, 1],
      [0, 1],
      [0, 1],
      [0, 0],
    ]) {
      builder.append({ ids: Int32Array.of(1, 2), mask: Uint8Array.from(mask) })
    }
    const loader = new Loader(new EncodedPairs(builder.finish(), false), {
      batch: { sequences: 4 },
      microBatchTokens: 100,
      seed: 1,
    })
    expect(loader.withoutTarget).toBe(1)
    expect([...loader].map(({ examples }) => [...examples])).toEqual([[0]])
  })
})
