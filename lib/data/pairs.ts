// Tokenised preference pairs as batches: both answers of a pair lie in one row, so that their loss needs no other. The
// prompt that they have in common can be laid down once; the rejected answer then reads the keys and values of those
// rows through an index, and no token is computed twice.
import type { EncodedExamples } from './encoded.js'
import type { BatchSource } from './loader.js'
import { NO_TARGET, type PackPlan } from './pack.js'

/** A padding-free row of N tokens that holds P pairs. */
export interface PairBatch {
  /** [N] */
  inputIds: Int32Array
  /** [N], from 0 in each answer's chat. */
  positions: Int32Array
  /** [S,4]: q_begin, q_end, k_begin, k_end of each stretch of queries (lib/ops/attention), S = 2P. */
  segments: Int32Array
  /** Rows whose keys and values the segments speak of; undefined: the rows themselves. */
  keyRows: Int32Array | undefined
  /** [N]: the token that position i must predict, or -100. */
  labels: Int32Array
  /** [P,2,3]: first row, last row + 1 and tokens of the chosen and the rejected answer. */
  spans: Int32Array
  /** [P]: which pairs these are. */
  pairs: Int32Array
}

/** Pair i is example 2i (chosen) and 2i+1 (rejected) of `sides`. With `sharePrompt` the tokens that both sides begin
 *  with, up to the last one before an answer, are laid down once. */
export class EncodedPairs implements BatchSource<PairBatch> {
  readonly count: number
  readonly whole = true

  constructor(
    readonly sides: EncodedExamples,
    private readonly sharePrompt: boolean,
  ) {
    this.count = sides.count / 2
  }

  /** Tokens that go through the model for a pair. */
  lengthOf(pair: number): number {
    return this.sides.lengthOf(2 * pair) + this.sides.lengthOf(2 * pair + 1) - this.sharedOf(pair)
  }

  /** 0 where a side has no token to be predicted. */
  targetsOf(pair: number): number {
    const [chosen, rejected] = [this.sides.targetsOf(2 * pair), this.sides.targetsOf(2 * pair + 1)]
    return chosen > 0 && rejected > 0 ? chosen + rejected : 0
  }

  /** Tokens of the prompt that are computed once instead of twice. */
  sharedOf(pair: number): number {
    if (!this.sharePrompt) return 0
    const [chosen, rejected] = [this.sides.idsOf(2 * pair), this.sides.idsOf(2 * pair + 1)]
    // The token before an answer predicts something else on each side, so it stays with its side.
    const most = Math.min(firstTarget(this.sides.maskOf(2 * pair)), firstTarget(this.sides.maskOf(2 * pair + 1))) - 1
    let shared = 0
    while (shared < most && chosen[shared] === rejected[shared]) shared++
    return shared
  }

  pack(plan: PackPlan, row: number): PairBatch {
    const pairs = plan.example.slice(plan.rowOffsets[row], plan.rowOffsets[row + 1])
    const tokens = pairs.reduce((sum, pair) => sum + this.lengthOf(pair), 0)
    const layout = new PairLayout(tokens, pairs)
    for (const pair of pairs) {
      const shared = this.sharedOf(pair)
      layout.addPrompt(this.sides.idsOf(2 * pair).subarray(0, shared))
      for (const side of [2 * pair, 2 * pair + 1]) {
        layout.addSide(this.sides.idsOf(side).subarray(shared), this.sides.maskOf(side).subarray(shared))
      }
    }
    return layout.finish()
  }

  targetsIn(plan: PackPlan, row: number): number {
    const pairs = plan.example.subarray(plan.rowOffsets[row], plan.rowOffsets[row + 1])
    return pairs.reduce((sum, pair) => sum + this.targetsOf(pair), 0)
  }
}

/** Position of the first predicted token; the length where there is none. A first token never is. */
function firstTarget(mask: Uint8Array): number {
  const first = mask.indexOf(1, 1)
  return first < 0 ? mask.length : first
}

/** Lays pairs end to end: [prompt][chosen][rejected][prompt][chosen]... */
class PairLayout {
  readonly #batch: Omit<PairBatch, 'keyRows'>
  readonly #keyRows: number[] = []
  #at = 0
  #side = 0
  #prompt = { begin: 0, length: 0 }
  #indexed = false

  constructor(tokens: number, pairs: Int32Array) {
    this.#batch = {
      inputIds: new Int32Array(tokens),
      positions: new Int32Array(tokens),
      segments: new Int32Array(8 * pairs.length),
      labels: new Int32Array(tokens).fill(NO_TARGET),
      spans: new Int32Array(6 * pairs.length),
      pairs,
    }
  }

  /** Tokens that both of the following sides begin with. */
  addPrompt(ids: Int32Array): void {
    this.#prompt = { begin: this.#at, length: ids.length }
    this.#append(ids, 0)
  }

  addSide(ids: Int32Array, mask: Uint8Array): void {
    const { begin: promptBegin, length: promptLength } = this.#prompt
    // The queries of the prompt belong to the side that comes first.
    const opens = this.#at === promptBegin + promptLength
    const queryBegin = opens ? promptBegin : this.#at
    const keyBegin = this.#keyRows.length
    for (let i = 0; i < promptLength; i++) this.#keyRows.push(promptBegin + i)
    const begin = this.#at
    this.#append(ids, promptLength)
    for (let row = begin; row < this.#at; row++) this.#keyRows.push(row)
    this.#indexed ||= !opens && promptLength > 0
    const { segments, spans, labels } = this.#batch
    segments.set([queryBegin, this.#at, keyBegin, this.#keyRows.length], 4 * this.#side)
    let tokens = 0
    for (let t = 1; t < ids.length; t++) {
      if (mask[t] === 0) continue
      labels[begin + t - 1] = ids[t]!
      tokens++
    }
    spans.set([begin, this.#at, tokens], 3 * this.#side)
    this.#side++
  }

  finish(): PairBatch {
    return { ...this.#batch, keyRows: this.#indexed ? Int32Array.from(this.#keyRows) : undefined }
  }

  #append(ids: Int32Array, firstPosition: number): void {
    const { inputIds, positions } = this.#batch
    inputIds.set(ids, this.#at)
    for (let i = 0; i < ids.length; i++) positions[this.#at + i] = firstPosition + i
    this.#at += ids.length
  }
}
