import { describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { EncodedBuilder, type EncodedExamples } from '../../lib/data/encoded.js'
import { type GlobalBatch, Loader, type LoaderOptions } from '../../lib/data/loader.js'
import { NO_TARGET } from '../../lib/data/pack.js'

/** Examples whose ids all equal their number, so that a batch shows what is in it; the first third is not trained. */
function makeExamples(count: number, seed = 3): EncodedExamples {
  const random = new Random(seed)
  const builder = new EncodedBuilder()
  for (let i = 0; i < count; i++) {
    const length = random.integer(3, 60)
    const mask = Uint8Array.from({ length }, (_, t) => (t >= length / 3 ? 1 : 0))
    builder.append({ ids: new Int32Array(length).fill(i), mask })
  }
  return builder.finish()
}

/** Everything that a training step would see of a batch. */
function content(batch: GlobalBatch) {
  return {
    place: batch.place,
    examples: Array.from(batch.examples),
    targets: batch.targetCount,
    rows: [...batch.microBatches()].map((row) =>
      [row.inputIds, row.labels, row.cuSeqlens].map((part) => Array.from(part)),
    ),
  }
}

const base: LoaderOptions = { batch: { sequences: 8 }, microBatchTokens: 128, seed: 5, epochs: 3 }
const examples = makeExamples(50)

describe('Loader', () => {
  it('gives every example once an epoch, in another order each time, and the incomplete batch last', () => {
    const batches = [...new Loader(examples, base)]
    expect(batches).toHaveLength(3 * 7)
    const orders = [0, 1, 2].map((epoch) =>
      batches.filter(({ place }) => place.epoch === epoch).flatMap((batch) => Array.from(batch.examples)),
    )
    const all = Array.from({ length: 50 }, (_, i) => i)
    for (const order of orders) expect([...order].sort((a, b) => a - b)).toEqual(all)
    expect(orders[0]).not.toEqual(orders[1])
    expect(orders[1]).not.toEqual(orders[2])
    expect(orders[0]).not.toEqual(all)
    expect(batches.map((batch) => batch.examples.length)).toEqual([
      8, 8, 8, 8, 8, 8, 2, 8, 8, 8, 8, 8, 8, 2, 8, 8, 8, 8, 8, 8, 2,
    ])
    expect(batches.map(({ place }) => place.batch)).toEqual(batches.map((_, i) => i))
  })

  it('keeps the order of the data without shuffling, and drops the incomplete batch when told', () => {
    const batches = [...new Loader(examples, { ...base, shuffle: false, last: 'drop', epochs: 1 })]
    expect(batches.flatMap((batch) => Array.from(batch.examples))).toEqual(Array.from({ length: 48 }, (_, i) => i))
  })

  it('gives equal batches for equal seeds and other batches for other seeds', () => {
    const contents = (seed: number) => [...new Loader(examples, { ...base, seed })].map(content)
    expect(contents(5)).toEqual(contents(5))
    expect(contents(5)).not.toEqual(contents(6))
  })

  it.each([
    { name: 'by sequences', batch: { sequences: 8 } },
    { name: 'by tokens', batch: { tokens: 300 } },
  ])('restored at any batch ($name), gives the very batches that would have followed', ({ batch }) => {
    for (const last of ['keep', 'drop'] as const) {
      const options = { ...base, batch, last }
      const whole = [...new Loader(examples, options)].map(content)
      const running = new Loader(examples, options)
      for (let done = 0; done <= whole.length; done++) {
        const saved = JSON.parse(JSON.stringify(running.state()))
        const resumed = new Loader(examples, options)
        resumed.restore(saved)
        expect([...resumed].map(content)).toEqual(whole.slice(done))
        running.next()
      }
    }
  })

  it('fills batches by tokens up to the limit, and lets a single longer example through', () => {
    const loader = new Loader(examples, { ...base, batch: { tokens: 100 }, epochs: 1 })
    const batches = [...loader]
    const order = batches.flatMap((batch) => Array.from(batch.examples))
    let at = 0
    for (const batch of batches) {
      expect(batch.tokenCount).toBeLessThanOrEqual(100)
      at += batch.examples.length
      const next = order[at]
      if (next !== undefined) expect(batch.tokenCount + examples.lengthOf(next)).toBeGreaterThan(100)
    }
    const tiny = [...new Loader(examples, { ...base, batch: { tokens: 1 }, epochs: 1 })]
    expect(tiny.every((batch) => batch.examples.length === 1)).toBe(true)
    expect(tiny).toHaveLength(50)
  })

  it.each([{ sequences: 7 }, { sequences: 50 }, { sequences: 64 }, { tokens: 210 }])(
    'foretells how many batches come: %j',
    (batch) => {
      for (const last of ['keep', 'drop'] as const) {
        const loader = new Loader(examples, { ...base, batch, last })
        expect([...loader]).toHaveLength(loader.totalBatches())
      }
      expect(new Loader(examples, { ...base, batch, epochs: Number.POSITIVE_INFINITY }).totalBatches()).toBe(
        Number.POSITIVE_INFINITY,
      )
    },
  )

  it('goes on for ever with infinitely many epochs', () => {
    const loader = new Loader(examples, { ...base, epochs: Number.POSITIVE_INFINITY })
    for (let i = 0; i < 100; i++) expect(loader.next()!.place.epoch).toBe(Math.floor(i / 7))
  })

  it('counts targets over all micro-batches, and keeps micro-batches within their budget', () => {
    for (const packing of ['bfd', 'bfd_split', 'wrapped', 'none'] as const) {
      for (const batch of new Loader(examples, { ...base, packing, microBatchTokens: 64 })) {
        const rows = [...batch.microBatches()]
        expect(rows).toHaveLength(batch.microBatchCount)
        const targets = rows.reduce((sum, row) => sum + row.labels.filter((label) => label !== NO_TARGET).length, 0)
        expect(batch.targetCount).toBe(targets)
        expect(rows.reduce((sum, row) => sum + row.inputIds.length, 0)).toBe(batch.tokenCount)
        expect(rows.every((row) => row.inputIds.length <= 64)).toBe(true)
        if (packing === 'none') expect(rows).toHaveLength(batch.examples.length)
      }
    }
  })

  it('has the same targets in a global batch whatever the division into micro-batches', () => {
    const targets = (microBatchTokens: number) =>
      [...new Loader(examples, { ...base, microBatchTokens })].map((batch) => batch.targetCount)
    expect(targets(60)).toEqual(targets(1000))
  })

  it('leaves out examples without targets, says how many, and reports what packing cuts', () => {
    const builder = new EncodedBuilder()
    builder.append({ ids: Int32Array.of(1, 2, 3), mask: Uint8Array.of(0, 0, 0) })
    builder.append({ ids: Int32Array.of(4, 5), mask: Uint8Array.of(1, 0) }) // only its first token: no target
    builder.append({ ids: Int32Array.of(), mask: Uint8Array.of() })
    builder.append({ ids: new Int32Array(10).fill(7), mask: new Uint8Array(10).fill(1) })
    builder.append({ ids: new Int32Array(10).fill(8), mask: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 1) }) // cut off
    const loader = new Loader(builder.finish(), { ...base, microBatchTokens: 8, epochs: 1 })
    expect(loader).toMatchObject({ withoutTarget: 4, exampleCount: 1, cut: { examples: 1, tokens: 2 } })
    const batches = [...loader]
    expect(batches).toHaveLength(1)
    expect(batches[0]).toMatchObject({ targetCount: 7, tokenCount: 8 })
  })

  it('refuses data without any target, and impossible options', () => {
    const builder = new EncodedBuilder()
    builder.append({ ids: Int32Array.of(1), mask: Uint8Array.of(1) })
    expect(() => new Loader(builder.finish(), base)).toThrow(/none of the 1 examples has a token to be trained on/)
    expect(() => new Loader(examples, { ...base, batch: { sequences: 0 } })).toThrow(
      /batch.sequences must be an integer >= 1; got 0/,
    )
    expect(() => new Loader(examples, { ...base, batch: { tokens: 1.5 } })).toThrow(/batch.tokens/)
    expect(() => new Loader(examples, { ...base, epochs: 0 })).toThrow(/epochs/)
    expect(() => new Loader(examples, { ...base, seed: -1 })).toThrow(/seed/)
    expect(() => new Loader(examples, { ...base, microBatchTokens: 0 })).toThrow(/microBatchTokens/)
  })

  it('refuses a state of other data or another order, and says what differs', () => {
    const state = new Loader(examples, base).state()
    const errorOf = (loader: Loader, saved = state): CaravanError => {
      try {
        loader.restore(saved)
      } catch (error) {
        return error as CaravanError
      }
      throw new Error('was restored')
    }
    const shorter = errorOf(new Loader(makeExamples(49), base))
    expect(shorter).toMatchObject({ code: 'ERR_CONFIG', details: { key: 'examples', saved: 50, current: 49 } })
    expect(errorOf(new Loader(makeExamples(50, 4), base)).details.key).toBe('tokens')
    expect(errorOf(new Loader(examples, { ...base, seed: 6 })).details.key).toBe('seed')
    expect(errorOf(new Loader(examples, { ...base, batch: { tokens: 8 } })).details.key).toBe('batch')
    expect(errorOf(new Loader(examples, base), { ...state, version: 2 as never }).message).toContain('version')
    expect(errorOf(new Loader(examples, base), { ...state, position: 51 }).message).toContain('impossible')
    expect(errorOf(new Loader(examples, base), { ...state, epoch: -1 }).message).toContain('impossible')
    new Loader(examples, { ...base, microBatchTokens: 999, packing: 'none' }).restore(state)
  })
})

describe('EncodedBuilder', () => {
  it('joins the parts of an example that is trained as a whole', () => {
    const [joined, whole] = [new EncodedBuilder(), new EncodedBuilder()]
    // Of many lengths, so that the arrays grow within parts and between them.
    for (let length = 0; length < 150; length++) {
      const ids = Int32Array.from({ length }, (_, i) => 3 + i)
      joined.appendTrained([1], ids, [2])
      whole.append({ ids: Int32Array.of(1, ...ids, 2), mask: new Uint8Array(length + 2).fill(1) })
    }
    expect([joined.count, joined.tokenCount]).toEqual([150, whole.tokenCount])
    expect(joined.finish()).toEqual(whole.finish())
  })

  it('holds many examples in three arrays and gives them back', () => {
    const random = new Random(9)
    const rows = Array.from({ length: 3000 }, () =>
      Array.from({ length: random.integer(0, 30) }, () => random.integer(0, 2 ** 31)),
    )
    const builder = new EncodedBuilder()
    for (const row of rows) builder.append({ ids: Int32Array.from(row), mask: Uint8Array.from(row, (id) => id % 2) })
    const all = builder.finish()
    expect(all.count).toBe(3000)
    expect(Array.from({ length: 3000 }, (_, i) => Array.from(all.idsOf(i)))).toEqual(rows)
    expect(Array.from(all.maskOf(2999))).toEqual(rows[2999]!.map((id) => id % 2))
    expect(builder.count).toBe(0)
    builder.append({ ids: Int32Array.of(1, 2), mask: Uint8Array.of(0, 255) })
    expect(Array.from(builder.finish().mask)).toEqual([0, 1])
  })
})
