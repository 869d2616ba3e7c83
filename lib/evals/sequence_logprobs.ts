// Log-probabilities of the ends of many sequences. Sequences lie end to end in one pass, and each reuses the rows of
// the tokens with which it begins like the one before it: the examples of a task and the question of a choice are
// computed once a pass. Queries see the same keys in the same order as alone, so no bit depends on the neighbours.
import { throwIfAborted } from '../base/errors.js'
import { NO_TARGET } from '../data/pack.js'
import { type CausalLm, type PackedRows, readRows } from '../models/index.js'
import { linearLogprob, targetsOn } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { scope, Tensor, withoutTape } from '../tensor/index.js'

export interface ScoredSequence {
  ids: Int32Array
  /** First token that is scored, at least 1: the first token of a sequence has no log-probability. */
  from: number
}

export interface LogprobOptions {
  /** Rows that go through the model at once, unless one sequence has more. */
  tokens: number
  signal?: AbortSignal
}

/** Keys that segments may speak of, for each row of a pass: bounds the copies that shared beginnings cost. */
const KEYS_PER_ROW = 16

/** For each sequence the sum of the log-probabilities of its tokens from `from` on, in nats. */
export async function sequenceLogprobs(
  model: CausalLm,
  sequences: readonly ScoredSequence[],
  { tokens, signal }: LogprobOptions,
): Promise<Float64Array> {
  const sums = new Float64Array(sequences.length)
  let next = 0
  while (next < sequences.length) {
    throwIfAborted(signal)
    const first = next
    const layout = new SharedLayout(tokens)
    while (next < sequences.length && layout.add(sequences[next]!)) next++
    using logp = withoutTape(() =>
      scope(() => {
        const hidden = model.hidden(layout.rows(model.device))
        return linearLogprob(hidden, model.head, targetsOn(model.device, layout.labels)).logp
      }),
    )
    const values = await logp.read()
    for (const [i, { begin, end }] of layout.spans.entries()) {
      for (let row = begin; row < end; row++) sums[first + i]! += values[row]!
    }
  }
  return sums
}

/** Lays out sequences one after the other, without the tokens that each has in common with the one before. */
class SharedLayout {
  /** Rows whose targets are the scored tokens of each sequence. */
  readonly spans: { begin: number; end: number }[] = []
  readonly #ids: number[] = []
  readonly #positions: number[] = []
  readonly #labels: number[] = []
  readonly #segments: number[] = []
  readonly #keyRows: number[] = []
  #shares = false
  /** Inputs of the last sequence, and the row of each. */
  #last: { inputs: Int32Array; rows: number[] } = { inputs: new Int32Array(0), rows: [] }

  constructor(private readonly tokens: number) {}

  /** False when there is no room for it; the first one always fits. */
  add({ ids, from }: ScoredSequence): boolean {
    // The last token is only predicted. Row from - 1 predicts a token of its own, so it is never shared.
    const inputs = ids.subarray(0, -1)
    const shared = commonLength(this.#last.inputs, inputs.subarray(0, from - 1))
    const begin = this.#ids.length
    const end = begin + inputs.length - shared
    const keyEnd = this.#keyRows.length + inputs.length
    if (begin > 0 && (end > this.tokens || keyEnd > KEYS_PER_ROW * this.tokens)) return false
    const rows = this.#last.rows.slice(0, shared)
    for (let t = shared; t < inputs.length; t++) {
      rows.push(begin + t - shared)
      this.#ids.push(inputs[t]!)
      this.#positions.push(t)
      this.#labels.push(t >= from - 1 ? ids[t + 1]! : NO_TARGET)
    }
    this.#segments.push(begin, end, this.#keyRows.length, keyEnd)
    for (const row of rows) this.#keyRows.push(row)
    this.spans.push({ begin: begin + from - 1 - shared, end })
    this.#shares ||= shared > 0
    this.#last = { inputs, rows }
    return true
  }

  rows(device: Device): PackedRows {
    const segments = Int32Array.from(this.#segments)
    return {
      ids: vector(device, this.#ids),
      positions: vector(device, this.#positions),
      segments: Tensor.from(device, segments, [this.spans.length, 4]),
      keyRows: this.#shares ? vector(device, this.#keyRows) : undefined,
      read: readRows(device, segments, (row) => this.#labels[row] !== NO_TARGET),
    }
  }

  get labels(): Int32Array {
    return Int32Array.from(this.#labels)
  }
}

function vector(device: Device, values: readonly number[]): Tensor {
  return Tensor.from(device, Int32Array.from(values), [values.length])
}

function commonLength(a: Int32Array, b: Int32Array): number {
  const most = Math.min(a.length, b.length)
  let length = 0
  while (length < most && a[length] === b[length]) length++
  return length
}
