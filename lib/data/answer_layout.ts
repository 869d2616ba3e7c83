// Answers and their prompts laid end to end in one padding-free row. A prompt that several answers follow can be laid
// down once; the later answers then read the keys and values of its rows through an index, and no token is computed
// twice.
import { NO_TARGET } from './pack.js'

/** N tokens that hold S answers. */
export interface AnswerRows {
  /** [N] */
  inputIds: Int32Array
  /** [N], from 0 in each answer's chat. */
  positions: Int32Array
  /** [S,4]: q_begin, q_end, k_begin, k_end of each stretch of queries (lib/ops/attention). */
  segments: Int32Array
  /** Rows whose keys and values the segments speak of; undefined: the rows themselves. */
  keyRows: Int32Array | undefined
  /** [N]: the token that position i must predict, or -100. */
  labels: Int32Array
  /** [S,3]: first row, last row + 1 and predicted tokens of each answer, in the order in which they were added. */
  spans: Int32Array
}

/** Lays prompts and their answers end to end: [prompt][answer][answer][prompt][answer]... */
export class AnswerLayout {
  readonly #rows: Omit<AnswerRows, 'keyRows'>
  readonly #keyRows: number[] = []
  #at = 0
  #answer = 0
  #prompt = { begin: 0, length: 0 }
  #indexed = false

  constructor({ tokens, answers }: { tokens: number; answers: number }) {
    this.#rows = {
      inputIds: new Int32Array(tokens),
      positions: new Int32Array(tokens),
      segments: new Int32Array(4 * answers),
      labels: new Int32Array(tokens).fill(NO_TARGET),
      spans: new Int32Array(3 * answers),
    }
  }

  /** Tokens that all of the following answers begin with. */
  addPrompt(ids: Int32Array): void {
    this.#prompt = { begin: this.#at, length: ids.length }
    this.#append(ids, 0)
  }

  /** What comes after the prompt; `mask[t]` is 1 where token t is to be predicted, which its first token never is. */
  addAnswer(ids: Int32Array, mask: Uint8Array): void {
    const { begin: promptBegin, length: promptLength } = this.#prompt
    // The queries of the prompt belong to the answer that comes first.
    const opens = this.#at === promptBegin + promptLength
    const queryBegin = opens ? promptBegin : this.#at
    const keyBegin = this.#keyRows.length
    for (let i = 0; i < promptLength; i++) this.#keyRows.push(promptBegin + i)
    const begin = this.#at
    this.#append(ids, promptLength)
    for (let row = begin; row < this.#at; row++) this.#keyRows.push(row)
    this.#indexed ||= !opens && promptLength > 0
    const { segments, spans, labels } = this.#rows
    segments.set([queryBegin, this.#at, keyBegin, this.#keyRows.length], 4 * this.#answer)
    let tokens = 0
    for (let t = 1; t < ids.length; t++) {
      if (mask[t] === 0) continue
      labels[begin + t - 1] = ids[t]!
      tokens++
    }
    spans.set([begin, this.#at, tokens], 3 * this.#answer)
    this.#answer++
  }

  finish(): AnswerRows {
    return { ...this.#rows, keyRows: this.#indexed ? Int32Array.from(this.#keyRows) : undefined }
  }

  #append(ids: Int32Array, firstPosition: number): void {
    const { inputIds, positions } = this.#rows
    inputIds.set(ids, this.#at)
    for (let i = 0; i < ids.length; i++) positions[this.#at + i] = firstPosition + i
    this.#at += ids.length
  }
}
