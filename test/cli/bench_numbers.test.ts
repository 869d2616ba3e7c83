// The arithmetic of the benchmark: floors, spreads, verdicts, growth. Expected values are worked out by hand.
import { describe, expect, it } from 'vitest'
import { compareKernels, machineDifferences, verdictOf } from '../../lib/cli/bench_compare.js'
import type { BenchMachine, KernelResult } from '../../lib/cli/bench_file.js'
import { attentionFlops, floorOf, type Roofs, speedAt } from '../../lib/cli/bench_floor.js'
import { measureSeries } from '../../lib/cli/bench_growth.js'
import { growthOrder } from '../../lib/cli/bench_growth_order.js'
import { kernelResult } from '../../lib/cli/bench_kernels.js'
import { relativeSpread, type Spread, spreadOf } from '../../lib/cli/bench_spread.js'

const roofs: Roofs = {
  gflops: 100,
  gbps: 10,
  levels: [
    { bytes: 1000, copyGbps: 40, readGbps: 100 },
    { bytes: 100_000, copyGbps: 80, readGbps: 100 },
    { bytes: 10_000_000, copyGbps: 20, readGbps: 60 },
    { bytes: 100_000_000, copyGbps: 10, readGbps: 20 },
  ],
}

function spread(medianSeconds: number, half = 0.01): Spread {
  const [lowSeconds, highSeconds] = [medianSeconds * (1 - half), medianSeconds * (1 + half)]
  return { medianSeconds, bestSeconds: lowSeconds, lowSeconds, highSeconds, measurements: 9 }
}

function kernel(op: string, times: Spread, sample = 'N=1'): KernelResult {
  const measured = { spread: times, rivals: {}, bytes: 100, written: 0, flops: undefined }
  return { ...kernelResult({ op, sample: {}, dtype: 'fp32' }, measured, roofs), sample }
}

describe('spread', () => {
  it('has the quartiles of numpy.quantile', () => {
    // numpy.quantile([1, 2, 3, 4, 10], [.25, .5, .75]) = 2, 3, 4; of [1, 2, 3, 4]: 1.75, 2.5, 3.25.
    expect(spreadOf([10, 1, 4, 2, 3])).toEqual({
      medianSeconds: 3,
      bestSeconds: 1,
      lowSeconds: 2,
      highSeconds: 4,
      measurements: 5,
    })
    expect(spreadOf([4, 3, 2, 1])).toMatchObject({ medianSeconds: 2.5, lowSeconds: 1.75, highSeconds: 3.25 })
    expect(relativeSpread(spreadOf([10, 1, 4, 2, 3]))).toBeCloseTo(1 / 3, 12)
  })

  it('is nothing for one measurement', () => {
    expect(relativeSpread(spreadOf([7]))).toBe(0)
  })
})

describe('floor', () => {
  it('reads the speed of memory at the size of the call', () => {
    // The copy of 1000 bytes was measured slower than that of 100,000, which cannot be: it counts as fast as that.
    expect(speedAt(roofs, 10)).toMatchObject({ copyGbps: 80, readGbps: 100 })
    expect(speedAt(roofs, 1000)).toMatchObject({ copyGbps: 80, readGbps: 100 })
    expect(speedAt(roofs, 100_000)).toMatchObject({ copyGbps: 80, readGbps: 100 })
    // Half way in logarithms between 1e5 and 1e7.
    expect(speedAt(roofs, 1_000_000).copyGbps).toBeCloseTo(50, 9)
    expect(speedAt(roofs, 1_000_000).readGbps).toBeCloseTo(80, 9)
    expect(speedAt(roofs, 1e12)).toMatchObject({ copyGbps: 10, readGbps: 20 })
  })

  it('is the longer of moving and computing', () => {
    // A copy, half of it written; then nothing but reads; then a third written: 2/3 at 1/20 ns, 1/3 at 2/10 - 1/20 ns.
    expect(floorOf({ bytes: 1e9, written: 5e8 }, roofs)).toEqual({ seconds: 0.1, bound: 'memory' })
    expect(floorOf({ bytes: 1e9, written: 0 }, roofs)).toEqual({ seconds: 0.05, bound: 'memory' })
    expect(floorOf({ bytes: 3e9, written: 1e9 }, roofs).seconds).toBeCloseTo(0.1 + 0.15, 12)
    expect(floorOf({ bytes: 1e9, written: 5e8, flops: 5e9 }, roofs)).toEqual({ seconds: 0.1, bound: 'memory' })
    expect(floorOf({ bytes: 1e9, written: 5e8, flops: 2e10 }, roofs)).toEqual({ seconds: 0.2, bound: 'compute' })
    // Reading measured slower than copying counts as fast as that: a byte written is never cheaper than one read.
    const odd = { ...roofs, levels: [{ bytes: 1, copyGbps: 10, readGbps: 5 }] }
    expect(floorOf({ bytes: 1e9, written: 1e9 }, odd).seconds).toBeCloseTo(0.1, 12)
  })

  it('counts what attention sees', () => {
    const sizes = { H: 2, C: 8, window: 0 }
    // One sequence of 3: 1 + 2 + 3 pairs; two products of 8 channels, 2 operations each, in 2 heads.
    expect(attentionFlops('attention', { ...sizes, queries: [3], keys: [3] })).toBe(6 * 2 * 2 * 8 * 2)
    expect(attentionFlops('attention_backward', { ...sizes, queries: [3], keys: [3] })).toBe(6 * 5 * 2 * 8 * 2)
    // One query that continues 9 keys, and a sequence of 3 with a window of 2: 10 + (1 + 2 + 2).
    expect(attentionFlops('attention_paged', { ...sizes, queries: [1], keys: [10] })).toBe(10 * 64)
    expect(attentionFlops('attention', { ...sizes, window: 2, queries: [3, 1], keys: [3, 10] })).toBe(7 * 64)
    expect(attentionFlops('linear', sizes)).toBeUndefined()
  })

  it('relates a measurement to it', () => {
    const measured = { spread: spread(0.4), rivals: {}, bytes: 1e9, written: 0, flops: 2e10 }
    const result = kernelResult({ op: 'linear', sample: { N: 3 }, dtype: 'fp32' }, measured, roofs)
    expect(result).toMatchObject({ op: 'linear', sample: 'N=3', gbps: 2.5, gflops: 50, floorSeconds: 0.2 })
    expect(result).toMatchObject({ bound: 'compute', shareOfFloor: 0.5, shareOfPeak: 0.5 })
  })
})

describe('verdict', () => {
  it('tells a difference from noise', () => {
    expect(verdictOf(spread(1), spread(1.2))).toBe('slower')
    expect(verdictOf(spread(1.2), spread(1))).toBe('faster')
    // 20 % more, but the quartiles overlap.
    expect(verdictOf(spread(1, 0.15), spread(1.2, 0.15))).toBe('same')
    // Quartiles apart, but by too little to matter.
    expect(verdictOf(spread(1, 0.001), spread(1.015, 0.001))).toBe('same')
    expect(verdictOf(spread(1), spread(1))).toBe('same')
  })

  it('pairs kernels by op, sizes and type', () => {
    const before = [kernel('a', spread(1)), kernel('b', spread(1)), kernel('b', spread(1), 'N=2')]
    const after = [kernel('b', spread(2), 'N=2'), kernel('a', spread(0.5)), kernel('c', spread(1))]
    const { kernels, onlyBefore, onlyAfter, meanRatio } = compareKernels(before, after)
    expect(kernels.map(({ op, sample, ratio, verdict }) => [op, sample, ratio, verdict])).toEqual([
      ['b', 'N=2', 2, 'slower'],
      ['a', 'N=1', 0.5, 'faster'],
    ])
    expect([onlyBefore, onlyAfter]).toEqual([['b N=1 fp32'], ['c N=1 fp32']])
    expect(meanRatio).toBeCloseTo(1, 12)
  })

  it('names in what machines differ', () => {
    const machine: BenchMachine = {
      processor: 'P',
      cores: 2,
      memoryBytes: 100,
      node: 'v20',
      isa: 'avx2',
      threads: 2,
      load: { before: [0, 0, 0], after: [0, 0, 0] },
    }
    const busy = { ...machine, node: 'v22', load: { before: [9, 9, 9], after: [9, 9, 9] } }
    expect(machineDifferences({ machine }, { machine: busy })).toEqual([])
    expect(machineDifferences({ machine }, { machine: { ...machine, threads: 1, isa: 'portable' } })).toEqual([
      'isa avx2 and portable',
      'threads 2 and 1',
    ])
  })
})

describe('growth', () => {
  it('has the exponent of a power over the larger half', () => {
    const cubes = [1, 2, 4, 8].map((x) => ({ x, y: 5 * x ** 3 }))
    expect(growthOrder(cubes)).toBeCloseTo(3, 12)
    // Constant at first, quadratic in the larger half.
    const late = [
      { x: 1, y: 100 },
      { x: 2, y: 100 },
      { x: 4, y: 160 },
      { x: 8, y: 640 },
    ]
    expect(growthOrder(late)).toBeCloseTo(2, 12)
    expect(growthOrder([{ x: 1, y: 1 }])).toBeNaN()
  })

  it('leaves out sizes that would not fit its time, never the first two', async () => {
    const series = async (seconds: number) => {
      let clock = 0
      const plan = {
        what: 'w',
        variable: 'T',
        sizes: '',
        values: [1, 2, 4, 8],
        order: 2,
        // A point takes 8 calls of x^2 seconds, as the expectation has it.
        measure: async (x: number) => {
          clock += 8 * x * x
          return { ...spread(x * x), peakBytes: x, rivals: {} }
        },
      }
      const { points, left } = await measureSeries(plan, seconds, () => clock)
      return [points.map(({ x }) => x), left]
    }
    // Cost of the points: 8, 32, 128, 512.
    expect(await series(1)).toEqual([
      [1, 2],
      [4, 8],
    ])
    expect(await series(167)).toEqual([
      [1, 2],
      [4, 8],
    ])
    expect(await series(168)).toEqual([[1, 2, 4], [8]])
    expect(await series(680)).toEqual([[1, 2, 4, 8], []])
  })

  it('foresees the cost of the rivals, too', async () => {
    const plan = {
      what: 'w',
      variable: 'T',
      sizes: '',
      values: [1, 2, 4],
      order: 1,
      measure: async (x: number) => ({ ...spread(x / 100), peakBytes: x, rivals: { slow: spread(10 * x) } }),
    }
    // The clock stands still, so that only the expectation can end it: 8 calls of 20 s more.
    expect((await measureSeries(plan, 100, () => 0)).left).toEqual([4])
    expect((await measureSeries({ ...plan, order: 0 }, 100, () => 0)).left).toEqual([])
  })
})
