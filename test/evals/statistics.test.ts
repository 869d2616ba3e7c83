// The statistics of evaluations against values worked out by hand or by counting.
import { describe, expect, it } from 'vitest'
import {
  macroEstimate,
  meanEstimate,
  passAtK,
  powersOfTwo,
  ratioEstimate,
  wilsonInterval,
} from '../../lib/evals/statistics.js'

describe("Wilson's interval", () => {
  // Its bounds are the shares from which the observed one is just z standard errors away.
  it.each([
    [0.5, 10],
    [0.1, 50],
    [0.937, 1319],
    [0.25, 6.4],
  ])('of %d with n = %d ends where the observed share is z standard errors away', (p, n) => {
    const bounds = wilsonInterval(p, n)
    for (const bound of bounds) {
      expect(Math.abs(p - bound) / Math.sqrt((bound * (1 - bound)) / n)).toBeCloseTo(1.959963984540054, 9)
    }
    expect(bounds[0]).toBeLessThan(p)
    expect(bounds[1]).toBeGreaterThan(p)
  })

  it('of none and of all is z^2 / (n + z^2) wide', () => {
    // z^2 = 3.8414588: 3.8414588 / 13.8414588
    expect(wilsonInterval(0, 10)[0]).toBe(0)
    expect(wilsonInterval(0, 10)[1]).toBeCloseTo(0.2775328, 6)
    expect(wilsonInterval(1, 10)[1]).toBe(1)
    expect(wilsonInterval(1, 10)[0]).toBeCloseTo(1 - 0.2775328, 6)
  })
})

describe('the mean over prompts', () => {
  it('has the standard error s / sqrt(n)', () => {
    // Mean 3/4; squares 3 * 1/16 + 9/16 = 3/4; s^2 = 1/4; s.e. = sqrt(1/16).
    const { value, standardError, interval, count } = meanEstimate([1, 1, 0, 1])
    expect([value, standardError, count]).toEqual([0.75, 0.25, 4])
    expect(interval).toEqual(wilsonInterval(0.75, 4))
  })

  it('takes the samples of a prompt together', () => {
    // Prompts 1, 1/2, 0: mean 1/2, s^2 = 1/4, s.e. = sqrt(1/12): as much as three independent answers.
    const { value, standardError, interval } = meanEstimate([1, 0.5, 0])
    expect(value).toBe(0.5)
    expect(standardError).toBeCloseTo(Math.sqrt(1 / 12), 12)
    expect(interval[0]).toBeCloseTo(wilsonInterval(0.5, 3)[0], 12)
  })

  it('of one prompt has no standard error', () => {
    expect(meanEstimate([1])).toEqual({ value: 1, standardError: null, interval: wilsonInterval(1, 1), count: 1 })
  })
})

describe('the share of right parts', () => {
  it('has a standard error with prompts as clusters', () => {
    // 4 of 6 right; residuals 1 - 2/3, 2 - 4/3, 1 - 2 = 1/3, 2/3, -1; squares 14/9; s.e. = sqrt(3/2 * 14/9) / 6.
    const { value, standardError, count } = ratioEstimate([1, 2, 1], [1, 2, 3])
    expect(value).toBeCloseTo(2 / 3, 12)
    expect(standardError).toBeCloseTo(Math.sqrt(7 / 3) / 6, 12)
    expect(count).toBe(3)
  })

  it('is the mean where every prompt has one part', () => {
    const [mean, ratio] = [meanEstimate([1, 0, 1]), ratioEstimate([1, 0, 1], [1, 1, 1])]
    expect(ratio.standardError).toBeCloseTo(mean.standardError!, 12)
    expect(ratio.value).toBe(mean.value)
  })
})

it('the macro average weighs groups equally', () => {
  // Shares 1/2 (s.e. sqrt(1/12), n = 4) and 1 (s.e. 0, n = 2).
  const { value, standardError, count } = macroEstimate([meanEstimate([1, 0, 0, 1]), meanEstimate([1, 1])])
  expect(value).toBe(0.75)
  expect(standardError).toBeCloseTo(Math.sqrt(1 / 12) / 2, 12)
  expect(count).toBe(6)
})

describe('pass@k', () => {
  /** By its meaning: the share of all k-subsets of n samples with one of the first c in them. */
  function counted(n: number, c: number, k: number): number {
    let [hits, all] = [0, 0]
    for (let subset = 0; subset < 2 ** n; subset++) {
      const members = Array.from({ length: n }, (_, i) => (subset >> i) & 1)
      if (members.reduce((sum, one) => sum + one, 0) !== k) continue
      all++
      if (members.slice(0, c).includes(1)) hits++
    }
    return hits / all
  }

  it('is the share of subsets with a right answer', () => {
    for (const n of [1, 4, 7]) {
      for (let c = 0; c <= n; c++) {
        for (let k = 1; k <= n; k++) expect(passAtK(n, c, k), `${n} ${c} ${k}`).toBeCloseTo(counted(n, c, k), 12)
      }
    }
  })

  it('of many samples does not overflow', () => {
    // 1 - C(990, 100) / C(1000, 100): ten factors (900 - i) / (1000 - i).
    const wrong = Array.from({ length: 10 }, (_, i) => (900 - i) / (1000 - i)).reduce((a, b) => a * b)
    expect(passAtK(1000, 10, 100)).toBeCloseTo(1 - wrong, 12)
  })

  it('is given for powers of two', () => {
    expect([powersOfTwo(1), powersOfTwo(6), powersOfTwo(8)]).toEqual([[1], [1, 2, 4], [1, 2, 4, 8]])
  })
})
