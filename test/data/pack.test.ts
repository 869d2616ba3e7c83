import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { EncodedBuilder, type EncodedExamples } from '../../lib/data/encoded.js'
import { NO_TARGET, type PackPlan, packRow, planPacking, rowTargets, rowTokens } from '../../lib/data/pack.js'

interface Golden {
  cases: {
    lengths: number[]
    seq_length: number
    results: Record<
      'bfd' | 'bfd_split' | 'wrapped',
      { n_rows: number; input_ids: number[][]; completion_mask: number[][]; seq_lengths?: number[][] }
    >
  }[]
  collator: {
    name: string
    input: { input_ids: number[]; seq_lengths: number[]; labels: number[] }[]
    output: { input_ids: number[][]; labels: number[][]; position_ids: number[][] }
  }[]
}

const golden: Golden = JSON.parse(readFileSync(new URL('../golden/packing/packing.json', import.meta.url), 'utf8'))

function build(examples: { ids: number[]; mask: number[] }[]): EncodedExamples {
  const builder = new EncodedBuilder()
  for (const { ids, mask } of examples) builder.append({ ids: Int32Array.from(ids), mask: Uint8Array.from(mask) })
  return builder.finish()
}

/** The examples behind a golden case: token value = example * 1000 + offset. */
function numbered(lengths: number[]): EncodedExamples {
  const ids = lengths.map((length, i) => Array.from({ length }, (_, t) => i * 1000 + t))
  return build(ids.map((row) => ({ ids: row, mask: row.map(() => 1) })))
}

function allRows(plan: PackPlan, examples: EncodedExamples) {
  return Array.from({ length: plan.rowCount }, (_, row) => packRow(plan, row, examples))
}

describe('planPacking', () => {
  for (const [i, { lengths, seq_length, results }] of golden.cases.entries()) {
    for (const strategy of ['bfd', 'bfd_split', 'wrapped'] as const) {
      it(`places case ${i} by ${strategy} as TRL does`, () => {
        const examples = numbered(lengths)
        const plan = planPacking(lengths, seq_length, strategy)
        const rows = allRows(plan, examples)
        const expected = results[strategy]
        expect(rows.map((row) => Array.from(row.inputIds))).toEqual(expected.input_ids)
        if (expected.seq_lengths !== undefined) {
          const seqLengths = rows.map((row) => Array.from(row.cuSeqlens.slice(1), (end, s) => end - row.cuSeqlens[s]!))
          expect(seqLengths).toEqual(expected.seq_lengths)
        } else for (const row of rows) expect(Array.from(row.cuSeqlens)).toEqual([0, row.inputIds.length])
      })
    }
  }

  it('puts one example in a row with `none`, whatever its length', () => {
    const plan = planPacking([3, 0, 9], 4, 'none')
    expect(plan.rowCount).toBe(2)
    expect(Array.from(plan.example)).toEqual([0, 2])
    expect(Array.from(plan.length)).toEqual([3, 9])
  })

  it.each(['bfd', 'bfd_split', 'wrapped', 'none'] as const)('gives no rows for no examples (%s)', (strategy) => {
    expect(planPacking([], 8, strategy).rowCount).toBe(0)
    expect(planPacking([0, 0], 8, strategy).rowCount).toBe(0)
  })

  it('refuses an impossible budget and an unknown strategy', () => {
    expect(() => planPacking([1], 0, 'bfd')).toThrow(/token budget.*got 0/)
    expect(() => planPacking([1], 1.5, 'wrapped')).toThrow(/got 1.5/)
    // @ts-expect-error not a strategy
    expect(() => planPacking([1], 4, 'ffd')).toThrow(/packing must be one of/)
  })

  it('keeps every token exactly once and every row within budget, on random lengths', () => {
    const random = new Random(7)
    for (let trial = 0; trial < 200; trial++) {
      const lengths = Array.from({ length: random.integer(0, 40) }, () => random.integer(0, 50))
      const budget = random.integer(1, 40)
      const plan = planPacking(lengths, budget, 'bfd_split')
      const seen = lengths.map((length) => new Uint8Array(length))
      for (let piece = 0; piece < plan.example.length; piece++) {
        for (let t = 0; t < plan.length[piece]!; t++) seen[plan.example[piece]!]![plan.start[piece]! + t]! += 1
      }
      expect(seen.every((counts) => counts.every((count) => count === 1))).toBe(true)
      for (let row = 0; row < plan.rowCount; row++) expect(rowTokens(plan, row)).toBeLessThanOrEqual(budget)
    }
  })

  it('packs a million examples without quadratic work, and fills the rows', () => {
    const random = new Random(1)
    const lengths = Int32Array.from({ length: 1_000_000 }, () => random.integer(16, 2048))
    const started = performance.now()
    const plan = planPacking(lengths, 4096, 'bfd')
    expect(performance.now() - started).toBeLessThan(20_000)
    const tokens = lengths.reduce((sum, length) => sum + length, 0)
    expect(tokens / (plan.rowCount * 4096)).toBeGreaterThan(0.99)
  })
})

describe('packRow', () => {
  it('agrees with the padding-free collator of TRL once its labels are shifted', () => {
    const { input, output } = golden.collator.find((entry) => entry.name === 'padding_free_packed')!
    const examples: { ids: number[]; mask: number[] }[] = []
    for (const row of input) {
      let at = 0
      for (const length of row.seq_lengths) {
        const labels = row.labels.slice(at, at + length)
        examples.push({
          ids: row.input_ids.slice(at, at + length),
          mask: labels.map((label) => (label === NO_TARGET ? 0 : 1)),
        })
        at += length
      }
    }
    // One row with all documents, in order: the collator concatenates what it is given.
    const plan: PackPlan = {
      rowCount: 1,
      rowOffsets: Int32Array.of(0, examples.length),
      example: Int32Array.from(examples, (_, i) => i),
      start: new Int32Array(examples.length),
      length: Int32Array.from(examples, (example) => example.ids.length),
      joined: false,
    }
    const batch = packRow(plan, 0, build(examples))
    expect(Array.from(batch.inputIds)).toEqual(output.input_ids[0])
    expect(Array.from(batch.positions)).toEqual(output.position_ids[0])
    const unshifted = [NO_TARGET, ...batch.labels.slice(0, -1)]
    expect(unshifted).toEqual(output.labels[0])
    expect(batch.labels.at(-1)).toBe(NO_TARGET)
    expect(batch.targetCount).toBe(output.labels[0]!.filter((label) => label !== NO_TARGET).length)
    expect(batch.targetCount).toBe(rowTargets(plan, 0, build(examples)))
    expect(batch.maxSeqlen).toBe(12)
  })

  it('never gives the last token of a document a target, and never reaches into the next document', () => {
    const examples = build([
      { ids: [1, 2, 3], mask: [1, 1, 1] },
      { ids: [4, 5], mask: [1, 0] },
      { ids: [6], mask: [1] },
    ])
    const batch = packRow(planPacking([3, 2, 1], 6, 'bfd'), 0, examples)
    expect(Array.from(batch.inputIds)).toEqual([1, 2, 3, 4, 5, 6])
    expect(Array.from(batch.positions)).toEqual([0, 1, 2, 0, 1, 0])
    expect(Array.from(batch.cuSeqlens)).toEqual([0, 3, 5, 6])
    expect(Array.from(batch.labels)).toEqual([2, 3, -100, -100, -100, -100])
    expect(batch.targetCount).toBe(2)
  })

  it('treats a wrapped row as one document: targets cross the seams inside it', () => {
    const examples = numbered([2, 3])
    const plan = planPacking([2, 3], 4, 'wrapped')
    const [first, second] = allRows(plan, examples)
    expect(Array.from(first!.labels)).toEqual([1, 1000, 1001, -100])
    expect(Array.from(first!.positions)).toEqual([0, 1, 2, 3])
    expect(Array.from(second!.labels)).toEqual([-100])
    expect(rowTargets(plan, 0, examples)).toBe(3)
    expect(rowTargets(plan, 1, examples)).toBe(0)
  })
})
