// The generator against the known-answer vectors of its authors (Random123, kat_vectors), and what is drawn from it.
import { describe, expect, it } from 'vitest'
import { philox, Random } from '../../lib/base/random.js'

/** A 64-bit seed, stream or index from its two words; whole numbers above 2^53 are not all doubles, these are. */
const words = (low: number, high: number) => high * 2 ** 32 + low

describe('philox4x32-10', () => {
  it('counter 0, key 0', () => {
    expect(philox(0, 0, 0)).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8])
  })

  // The two other vectors have 64-bit words that no double holds: the rounds are checked on their halves through a
  // seed, stream and index below 2^53 by an independent BigInt version of the published algorithm, itself checked on
  // them.
  function philoxBig(counter: bigint[], key: bigint[]): number[] {
    const mask = 0xffffffffn
    let [c0, c1, c2, c3] = counter as [bigint, bigint, bigint, bigint]
    let [k0, k1] = key as [bigint, bigint]
    for (let round = 0; round < 10; round++) {
      const [p0, p1] = [0xd2511f53n * c0, 0xcd9e8d57n * c2]
      ;[c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & mask, (p0 >> 32n) ^ c3 ^ k1, p0 & mask]
      k0 = (k0 + 0x9e3779b9n) & mask
      k1 = (k1 + 0xbb67ae85n) & mask
    }
    return [c0, c1, c2, c3].map(Number)
  }

  it('the BigInt version passes all three vectors', () => {
    const ones = 0xffffffffn
    expect(philoxBig([0n, 0n, 0n, 0n], [0n, 0n])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8])
    expect(philoxBig([ones, ones, ones, ones], [ones, ones])).toEqual([0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd])
    const digitsOfPi = [0x243f6a88n, 0x85a308d3n, 0x13198a2en, 0x03707344n]
    expect(philoxBig(digitsOfPi, [0xa4093822n, 0x299f31d0n])).toEqual([0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1])
  })

  it('agrees with the BigInt version on random counters and keys', () => {
    const random = new Random(1)
    for (let i = 0; i < 2000; i++) {
      const low = Array.from({ length: 3 }, () => random.uint32())
      const high = Array.from({ length: 3 }, () => random.integer(0, 2 ** 21))
      const [seed, stream, index] = low.map((word, j) => words(word, high[j]!)) as [number, number, number]
      const big = (j: number) => [BigInt(low[j]!), BigInt(high[j]!)]
      expect(philox(seed, stream, index)).toEqual(philoxBig([...big(2), ...big(1)], big(0)))
    }
  })
})

describe('Random', () => {
  it('goes on from a saved state', () => {
    const random = new Random(5, 6)
    for (let drawn = 0; drawn < 11; drawn++) {
      const copy = Random.fromState(JSON.parse(JSON.stringify(random.state())))
      expect([copy.uint32(), copy.normal(), copy.uniform()]).toEqual([
        ...[random.uint32(), random.normal(), random.uniform()],
      ])
    }
  })

  it('streams and seeds do not share numbers', () => {
    const seen = new Set<number>()
    for (const [seed, stream] of [
      [1, 0],
      [0, 1],
      [2 ** 32, 0],
      [0, 2 ** 32],
      [1, 1],
    ] as const) {
      const random = new Random(seed, stream)
      for (let i = 0; i < 100; i++) seen.add(random.uint32())
    }
    // 500 draws of 2^32 collide with probability 3e-5.
    expect(seen.size).toBe(500)
  })

  it('uniform numbers fill their interval evenly', () => {
    const random = new Random(7)
    const counts = new Array<number>(20).fill(0)
    const draws = 100_000
    for (let i = 0; i < draws; i++) counts[Math.floor(random.uniform() * 20)]!++
    const chiSquare = counts.reduce((sum, count) => sum + (count - draws / 20) ** 2 / (draws / 20), 0)
    // 19 degrees of freedom: beyond 43.8 once in a thousand seeds, and this one is fixed.
    expect(chiSquare).toBeLessThan(43.8)
  })

  it('normal numbers have the moments of the normal distribution', () => {
    const random = new Random(8)
    const draws = 200_000
    const moments = [0, 0, 0, 0]
    for (let i = 0; i < draws; i++) {
      const x = random.normal()
      for (let k = 0; k < 4; k++) moments[k]! += x ** (k + 1) / draws
    }
    // Four standard errors of each moment: sqrt(1, 2, 15, 96 / n).
    const allowed = [1, 2, 15, 96].map((variance) => 4 * Math.sqrt(variance / draws))
    for (const [k, expected] of [0, 1, 0, 3].entries())
      expect(Math.abs(moments[k]! - expected)).toBeLessThan(allowed[k]!)
  })

  it('integers stay in range and are not biased towards the low ones', () => {
    const random = new Random(9)
    // With a plain remainder the lower third of this range would come twice as often.
    const range = 3 * 2 ** 30
    let low = 0
    for (let i = 0; i < 30_000; i++) {
      const value = random.integer(5, 5 + range)
      expect(value >= 5 && value < 5 + range).toBe(true)
      if (value < 5 + range / 3) low++
    }
    expect(Math.abs(low / 30_000 - 1 / 3)).toBeLessThan(4 * Math.sqrt(2 / 9 / 30_000))
  })

  it('a permutation holds every number once, each in every place', () => {
    const random = new Random(10)
    const first = new Array<number>(5).fill(0)
    for (let i = 0; i < 10_000; i++) {
      const order = random.permutation(5)
      expect([...order].sort()).toEqual([0, 1, 2, 3, 4])
      first[order[0]!]!++
    }
    for (const count of first) expect(Math.abs(count - 2000)).toBeLessThan(4 * Math.sqrt(10_000 * 0.2 * 0.8))
    expect(random.shuffle([]).length).toBe(0)
  })

  it('weighted choices come in proportion, and never where the weight is 0', () => {
    const random = new Random(11)
    const counts = [0, 0, 0, 0]
    for (let i = 0; i < 10_000; i++) counts[random.weighted([1, 0, 2, 1])]!++
    expect(counts[1]).toBe(0)
    expect(Math.abs(counts[2]! - 5000)).toBeLessThan(200)
  })
})
