// Counts over all rows of `caravan inspect`, and the verdict on them.
import { CaravanError } from '../base/errors.js'
import { grouped, percentText } from './format.js'
import type { InspectedRow } from './inspect.js'
import { tableLines } from './table.js'
import type { Terminal } from './terminal.js'

export interface Inspection {
  rows: number
  tokens: number
  trainedTokens: number
  trainedShare: number
  truncatedRows: number
  untrainedRows: { [reason: string]: number }
  /** Chat rows whose last trained token does not end a turn. */
  rowsWithoutTrainedEnd: number
  chatRows: number
  /** Length of a row in tokens. */
  lengths: { min: number; p50: number; p90: number; p99: number; max: number }
}

const MAX_NAMED = 5

const reasons: { [reason: string]: string } = {
  no_assistant_turn: 'no assistant turn',
  cut_off: 'cut off before the first trained token',
  spans_unknown: 'it cannot be told what the assistant wrote',
  no_label: 'no label other than -100',
}

export class InspectStatistics {
  readonly #lengths: number[] = []
  #trained = 0
  #truncated = 0
  #chats = 0
  #trainedChats = 0
  readonly #untrained = new Map<string, string[]>()
  readonly #withoutEnd: string[] = []
  #withoutEndCount = 0
  readonly #untrainedCount: { [reason: string]: number } = {}

  add(row: InspectedRow): void {
    const place = `${row.file}:${row.line}`
    this.#lengths.push(row.ids.length)
    for (const flag of row.mask) this.#trained += flag
    if (row.truncated) this.#truncated++
    const { untrainedReason, endsTurn } = row
    if (untrainedReason !== undefined) {
      this.#untrainedCount[untrainedReason] = (this.#untrainedCount[untrainedReason] ?? 0) + 1
      const named = this.#untrained.get(untrainedReason) ?? []
      if (named.length < MAX_NAMED) named.push(place)
      this.#untrained.set(untrainedReason, named)
    }
    if (endsTurn === undefined) return
    this.#chats++
    if (untrainedReason !== undefined) return
    this.#trainedChats++
    if (endsTurn) return
    this.#withoutEndCount++
    if (this.#withoutEnd.length < MAX_NAMED) this.#withoutEnd.push(place)
  }

  summary(): Inspection {
    const sorted = Float64Array.from(this.#lengths).sort()
    const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0
    const tokens = sorted.reduce((sum, length) => sum + length, 0)
    return {
      rows: sorted.length,
      tokens,
      trainedTokens: this.#trained,
      trainedShare: tokens === 0 ? 0 : this.#trained / tokens,
      truncatedRows: this.#truncated,
      untrainedRows: { ...this.#untrainedCount },
      rowsWithoutTrainedEnd: this.#withoutEndCount,
      chatRows: this.#chats,
      lengths: { min: sorted[0] ?? 0, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: sorted.at(-1) ?? 0 },
    }
  }

  lines(terminal: Terminal): string[] {
    const { bold, yellow } = terminal.color
    const all = this.summary()
    const { min, p50, p90, p99, max } = all.lengths
    const rows = [
      ['rows', grouped(all.rows)],
      ['tokens', grouped(all.tokens)],
      ['trained', `${grouped(all.trainedTokens)} (${percentText(all.trainedShare)})`],
      ['row length', `min ${min}, median ${p50}, 90 % ${p90}, 99 % ${p99}, max ${max}`],
      ['cut off', grouped(all.truncatedRows)],
    ]
    for (const [reason, named] of this.#untrained) {
      const count = grouped(this.#untrainedCount[reason]!)
      rows.push([
        yellow('not trained'),
        `${count}, ${reasons[reason] ?? reason}: ${listed(named, this.#untrainedCount[reason]!)}`,
      ])
    }
    if (this.#withoutEndCount > 0) {
      const where = listed(this.#withoutEnd, this.#withoutEndCount)
      rows.push([yellow('no end'), `${grouped(this.#withoutEndCount)} rows whose end of turn is not trained: ${where}`])
    }
    return [bold('all rows'), ...tableLines(rows, { indent: '  ' })]
  }

  /** ERR_DATA when there is nothing to train on, or no end of turn is trained in any chat row. */
  check(files: readonly string[]): void {
    const { rows, trainedTokens } = this.summary()
    const named = files.join(', ')
    if (rows === 0) throw new CaravanError('ERR_DATA', `${named}: there are no rows`)
    if (trainedTokens === 0) {
      throw new CaravanError('ERR_DATA', `${named}: no token of the ${grouped(rows)} rows is trained`, {
        details: { rows, reasons: this.#untrainedCount },
        hint: 'check that the rows have assistant messages, that --fields fits, and that the rows are not cut off',
      })
    }
    if (this.#trainedChats === 0 || this.#withoutEndCount < this.#trainedChats) return
    const where = listed(this.#withoutEnd, this.#withoutEndCount)
    throw new CaravanError('ERR_DATA', `no row trains an end of turn: ${where}`, {
      details: { rows: this.#withoutEnd, count: this.#withoutEndCount },
      hint: 'a model trained on this never stops: use a template that ends turns with the end token, or longer rows',
    })
  }
}

function listed(named: readonly string[], count: number): string {
  const more = count - named.length
  return `${named.join(', ')}${more > 0 ? `, and ${grouped(more)} more` : ''}`
}
