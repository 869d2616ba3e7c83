// Mixes data sources by fractions or counts, as open-instruct's dataset mixer: whole copies in order, and a remainder
// drawn without replacement. A plan is made of row numbers alone, so that it can be shown before anything is tokenised.
import { CaravanError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { EncodedBuilder, type EncodedExamples } from './encoded.js'

/**
 * How much of a source: text as in a recipe or on a command line, where a point makes it a fraction ("0.5", "1.0",
 * "3.0") and no point a number of rows ("5000"); or said outright.
 */
export type MixAmount = string | { fraction: number } | { rows: number }

export interface MixSource {
  name: string
  rowCount: number
  amount: MixAmount
}

/** A part of a mix: which rows of the source, in order; a number may occur several times. */
export interface MixPart {
  name: string
  rowCount: number
  rows: Uint32Array
}

export interface MixPlan {
  parts: MixPart[]
  totalRows: number
  /** Likely mistakes, such as "1" (one row) where "1.0" (all rows) was meant. */
  warnings: string[]
}

/** Statistics of one source in a mix; the token fields are there once the rows are tokenised. */
export interface MixStatistics {
  name: string
  initialRows: number
  finalRows: number
  /** finalRows / initialRows. */
  upsamplingFactor: number
  tokens?: number
  trainableTokens?: number
  averageTokens?: number
}

/** Keeps the mixer's random streams apart from everyone else's under the same seed; each source has its own. */
const MIX_STREAM = 0x313c * 2 ** 32
const SUSPICIOUS_ROWS = 10
const LARGE_SOURCE_ROWS = 100

/**
 * Decides the rows of each source: target = floor(fraction * rows) or the count; floor(target / rows) whole copies in
 * order, then the rest drawn without replacement (open-instruct, `DatasetConfig.select_samples`). ERR_CONFIG for an
 * impossible amount, ERR_DATA for an empty source that should give rows.
 */
export function planMix(sources: readonly MixSource[], seed: number): MixPlan {
  const warnings: string[] = []
  const parts = sources.map(({ name, rowCount, amount }, i) => {
    const target = targetRows(name, rowCount, amount)
    if (!isFraction(amount) && target > 0 && target <= SUSPICIOUS_ROWS && rowCount > LARGE_SOURCE_ROWS) {
      warnings.push(
        `${name}: "${target}" means ${target} of ${rowCount} rows; for ${target} times the whole, write "${target}.0"`,
      )
    }
    const random = new Random(seed, MIX_STREAM + i)
    return { name, rowCount, rows: selectRows(rowCount, target, random) }
  })
  return { parts, totalRows: parts.reduce((sum, part) => sum + part.rows.length, 0), warnings }
}

/** Puts tokenised sources together as the plan says (`encoded` in the order of the plan's parts). */
export function mixEncoded(plan: MixPlan, encoded: readonly EncodedExamples[], perRow = 1): EncodedExamples {
  const builder = new EncodedBuilder()
  for (const [i, { name, rowCount, rows }] of plan.parts.entries()) {
    const examples = encoded[i]
    if (examples?.count !== rowCount * perRow) {
      const got = examples === undefined ? 'nothing' : `${examples.count} examples`
      throw new CaravanError(
        'ERR_INTERNAL',
        `mix: source ${name} was planned with ${rowCount} rows of ${perRow}; got ${got}`,
      )
    }
    for (const row of rows) {
      for (let i = row * perRow; i < (row + 1) * perRow; i++) {
        builder.append({ ids: examples.idsOf(i), mask: examples.maskOf(i) })
      }
    }
  }
  return builder.finish()
}

/** Counts per source, with tokens where `encoded` (in the order of the parts) is given. */
export function mixStatistics(plan: MixPlan, encoded?: readonly EncodedExamples[], perRow = 1): MixStatistics[] {
  return plan.parts.map(({ name, rowCount, rows }, i) => {
    const statistics: MixStatistics = {
      name,
      initialRows: rowCount,
      finalRows: rows.length,
      upsamplingFactor: rowCount === 0 ? 0 : rows.length / rowCount,
    }
    const examples = encoded?.[i]
    if (examples === undefined) return statistics
    let tokens = 0
    let trainableTokens = 0
    for (const row of rows) {
      for (let i = row * perRow; i < (row + 1) * perRow; i++) {
        tokens += examples.lengthOf(i)
        trainableTokens += examples.targetsOf(i)
      }
    }
    return { ...statistics, tokens, trainableTokens, averageTokens: rows.length === 0 ? 0 : tokens / rows.length }
  })
}

/** The statistics as an aligned text table with a line of totals. */
export function formatMixTable(statistics: readonly MixStatistics[]): string {
  const sum = (field: (entry: MixStatistics) => number | undefined) =>
    statistics.reduce((total, entry) => total + (field(entry) ?? 0), 0)
  const finalRows = sum((entry) => entry.finalRows)
  const total: MixStatistics = {
    name: 'total',
    initialRows: sum((entry) => entry.initialRows),
    finalRows,
    upsamplingFactor: 0,
  }
  if (statistics.some((entry) => entry.tokens !== undefined)) {
    total.tokens = sum((entry) => entry.tokens)
    total.trainableTokens = sum((entry) => entry.trainableTokens)
    total.averageTokens = finalRows === 0 ? 0 : total.tokens / finalRows
  }
  const header = ['source', 'rows', 'used', 'factor', 'tokens', 'trained', 'tokens/row']
  const lines = [...statistics, total].map((entry, i) => [
    entry.name,
    count(entry.initialRows),
    count(entry.finalRows),
    i === statistics.length ? '' : entry.upsamplingFactor.toFixed(2),
    count(entry.tokens),
    count(entry.trainableTokens),
    entry.averageTokens === undefined ? '-' : entry.averageTokens.toFixed(1),
  ])
  const widths = header.map((title, c) => Math.max(title.length, ...lines.map((line) => line[c]!.length)))
  const align = (cells: string[]) =>
    cells.map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join('  ')
  return [header, ...lines].map((cells) => align(cells).trimEnd()).join('\n')
}

function count(value: number | undefined): string {
  return value === undefined ? '-' : value.toLocaleString('en-US')
}

function isFraction(amount: MixAmount): boolean {
  return typeof amount === 'string' ? amount.includes('.') : 'fraction' in amount
}

function targetRows(name: string, rowCount: number, amount: MixAmount): number {
  const given = typeof amount === 'string' ? amount : 'fraction' in amount ? amount.fraction : amount.rows
  const isPlain = typeof given === 'number' || /^(?:\d+\.?\d*|\.\d+)$/.test(given)
  const value = Number(given)
  const target = isFraction(amount) ? Math.floor(value * rowCount) : value
  if (!isPlain || !Number.isFinite(value) || value < 0 || !Number.isSafeInteger(target) || target > 2 ** 31) {
    throw new CaravanError(
      'ERR_CONFIG',
      `mix: the amount of ${name} must be a fraction or a number of rows; got ${given}`,
      {
        details: { source: name, amount },
        hint: 'a fraction has a point ("0.5", "3.0"), a number of rows has none ("5000")',
      },
    )
  }
  if (target > 0 && rowCount === 0) {
    throw new CaravanError('ERR_DATA', `mix: ${name} should give ${target} rows, but it has none`, {
      details: { source: name, file: name },
    })
  }
  return target
}

function selectRows(rowCount: number, target: number, random: Random): Uint32Array {
  const rows = new Uint32Array(target)
  const copies = rowCount === 0 ? 0 : Math.floor(target / rowCount)
  for (let i = 0; i < copies * rowCount; i++) rows[i] = i % rowCount
  const rest = target - copies * rowCount
  if (rest > 0) rows.set(random.permutation(rowCount).subarray(0, rest), copies * rowCount)
  return rows
}
