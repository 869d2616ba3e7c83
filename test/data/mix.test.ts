import { describe, expect, it } from 'vitest'
import { EncodedBuilder } from '../../lib/data/encoded.js'
import { formatMixTable, type MixAmount, mixEncoded, mixStatistics, planMix } from '../../lib/data/mix.js'

const rowsOf = (amount: MixAmount, rowCount: number, seed = 42) =>
  Array.from(planMix([{ name: 'a', rowCount, amount }], seed).parts[0]!.rows)
const inOrder = (count: number) => Array.from({ length: count }, (_, i) => i)

describe('planMix', () => {
  it('keeps the whole in order at 1.0, and repeats it at 3.0', () => {
    expect(rowsOf('1.0', 5)).toEqual(inOrder(5))
    expect(rowsOf('3.0', 4)).toEqual([...inOrder(4), ...inOrder(4), ...inOrder(4)])
    expect(rowsOf({ fraction: 1 }, 5)).toEqual(inOrder(5))
  })

  it('draws a fraction without replacement, rounded down', () => {
    for (const [amount, count] of [
      ['0.5', 50],
      ['.29', 29],
      ['0.001', 0],
      ['0.', 0],
    ] as const) {
      const rows = rowsOf(amount, 101 - 1)
      expect(rows).toHaveLength(Math.floor(Number(amount) * 100))
      expect(Math.abs(rows.length - count)).toBeLessThanOrEqual(1)
      expect(new Set(rows).size).toBe(rows.length)
    }
    expect(rowsOf('0.5', 100)).not.toEqual(inOrder(50))
  })

  it('gives whole copies and a drawn remainder for counts above the size', () => {
    const rows = rowsOf('25', 10)
    expect(rows.slice(0, 20)).toEqual([...inOrder(10), ...inOrder(10)])
    expect(new Set(rows.slice(20)).size).toBe(5)
    expect(rowsOf('2.5', 10)).toHaveLength(25)
    expect(rowsOf({ rows: 3 }, 10)).toHaveLength(3)
    expect(rowsOf('0', 10)).toEqual([])
  })

  it('depends on the seed alone, and differs between sources', () => {
    expect(rowsOf('0.5', 100, 1)).toEqual(rowsOf('0.5', 100, 1))
    expect(rowsOf('0.5', 100, 1)).not.toEqual(rowsOf('0.5', 100, 2))
    const { parts, totalRows } = planMix(
      [
        { name: 'a', rowCount: 100, amount: '0.5' },
        { name: 'b', rowCount: 100, amount: '50' },
      ],
      1,
    )
    expect(parts[0]!.rows).not.toEqual(parts[1]!.rows)
    expect(totalRows).toBe(100)
  })

  it('warns when a small count meets a large source, and only then', () => {
    const warnings = (amount: MixAmount, rowCount: number) => planMix([{ name: 'a', rowCount, amount }], 1).warnings
    expect(warnings('1', 5000)).toEqual([expect.stringContaining('write "1.0"')])
    for (const [amount, count] of [
      ['1.0', 5000],
      ['11', 5000],
      ['1', 100],
      ['0', 5000],
    ] as const) {
      expect(warnings(amount, count)).toEqual([])
    }
  })

  it.each([
    '-1',
    'x',
    '',
    '1e3',
    '0x10',
    '1.5.2',
    'Infinity',
    { rows: 1.5 },
    { fraction: Number.NaN },
    { fraction: -0.5 },
    { rows: 2 ** 40 },
  ])('refuses the amount %j', (amount) => {
    expect(() => planMix([{ name: 'set', rowCount: 10, amount }], 1)).toThrow(
      /amount of set must be a fraction or a number of rows/,
    )
  })

  it('refuses to draw from nothing', () => {
    expect(() => planMix([{ name: 'none', rowCount: 0, amount: '5' }], 1)).toThrow(
      /none should give 5 rows, but it has none/,
    )
    expect(planMix([{ name: 'none', rowCount: 0, amount: '1.0' }], 1).totalRows).toBe(0)
  })
})

describe('mix statistics', () => {
  function examplesOf(lengths: number[]) {
    const builder = new EncodedBuilder()
    for (const [i, length] of lengths.entries()) {
      builder.append({ ids: new Int32Array(length).fill(i), mask: new Uint8Array(length).fill(1) })
    }
    return builder.finish()
  }
  const encoded = [examplesOf([10, 20]), examplesOf([5, 5, 5])]
  const plan = planMix(
    [
      { name: 'first', rowCount: 2, amount: '2.0' },
      { name: 'second-source', rowCount: 3, amount: '3' },
    ],
    1,
  )

  it('counts rows, tokens and trained tokens', () => {
    expect(mixStatistics(plan, encoded)).toEqual([
      {
        name: 'first',
        initialRows: 2,
        finalRows: 4,
        upsamplingFactor: 2,
        tokens: 60,
        trainableTokens: 56,
        averageTokens: 15,
      },
      {
        name: 'second-source',
        initialRows: 3,
        finalRows: 3,
        upsamplingFactor: 1,
        tokens: 15,
        trainableTokens: 12,
        averageTokens: 5,
      },
    ])
    expect(mixStatistics(plan)[0]).toEqual({ name: 'first', initialRows: 2, finalRows: 4, upsamplingFactor: 2 })
  })

  it('formats an aligned table with totals', () => {
    expect(formatMixTable(mixStatistics(plan, encoded))).toBe(
      [
        'source         rows  used  factor  tokens  trained  tokens/row',
        'first             2     4    2.00      60       56        15.0',
        'second-source     3     3    1.00      15       12         5.0',
        'total             5     7              75       68        10.7',
      ].join('\n'),
    )
    expect(formatMixTable(mixStatistics(plan)).split('\n')[1]).toBe(
      'first             2     4    2.00       -        -           -',
    )
  })

  it('puts the tokenised rows together in the order of the plan', () => {
    const mixed = mixEncoded(plan, encoded)
    expect(Array.from(mixed.lengths())).toEqual([10, 20, 10, 20, 5, 5, 5])
    expect(Array.from(mixed.idsOf(3).slice(0, 2))).toEqual([1, 1])
    expect(() => mixEncoded(plan, [encoded[0]!])).toThrow(/second-source was planned with 3 rows of 1; got nothing/)
  })
})
