// Tokenised examples as a structure of arrays: ids, trained flags and offsets of all examples lie end to end, so that a
// million examples are three typed arrays and no JavaScript objects.
import { CaravanError } from '../base/errors.js'
import type { BatchSource } from './loader.js'
import { type PackedBatch, type PackPlan, packRow, rowTargets } from './pack.js'

/** One tokenised example: `mask[t]` is 1 where token t is to be predicted (never the first in effect). */
export interface Encoded {
  ids: Int32Array
  mask: Uint8Array
}

/** An immutable set of tokenised examples; `offsets` has `count + 1` entries. */
export class EncodedExamples implements BatchSource<PackedBatch> {
  readonly count: number
  readonly whole = false

  constructor(
    readonly ids: Int32Array,
    readonly mask: Uint8Array,
    readonly offsets: Float64Array,
  ) {
    this.count = offsets.length - 1
    let previous = 0
    for (const offset of offsets) {
      if (!(Number.isSafeInteger(offset) && offset >= previous)) throw inconsistent(offsets, ids, mask)
      previous = offset
    }
    if (offsets[0] !== 0 || previous !== ids.length || ids.length !== mask.length)
      throw inconsistent(offsets, ids, mask)
  }

  /** All tokens of all examples. */
  get tokenCount(): number {
    return this.ids.length
  }

  lengthOf(example: number): number {
    return this.offsets[example + 1]! - this.offsets[example]!
  }

  /** A view, not a copy. */
  idsOf(example: number): Int32Array {
    return this.ids.subarray(this.offsets[example], this.offsets[example + 1])
  }

  /** A view, not a copy. */
  maskOf(example: number): Uint8Array {
    return this.mask.subarray(this.offsets[example], this.offsets[example + 1])
  }

  /** How many tokens of the first `limit` of an example are predicted; its first token never is. */
  targetsOf(example: number, limit = Number.POSITIVE_INFINITY): number {
    const start = this.offsets[example]!
    const end = Math.min(this.offsets[example + 1]!, start + limit)
    let targets = 0
    for (let t = start + 1; t < end; t++) targets += this.mask[t]!
    return targets
  }

  /** Mean number of tokens that a token sees, itself included, when each example is cut to `limit`. */
  meanContext(limit = Number.POSITIVE_INFINITY): number {
    let [tokens, seen] = [0, 0]
    for (let i = 0; i < this.count; i++) {
      const length = Math.min(this.lengthOf(i), limit)
      tokens += length
      seen += (length * (length + 1)) / 2
    }
    return tokens === 0 ? 0 : seen / tokens
  }

  pack(plan: PackPlan, row: number): PackedBatch {
    return packRow(plan, row, this)
  }

  targetsIn(plan: PackPlan, row: number): number {
    return rowTargets(plan, row, this)
  }

  lengths(): Int32Array {
    return Int32Array.from({ length: this.count }, (_, i) => this.lengthOf(i))
  }
}

function inconsistent(offsets: Float64Array, ids: Int32Array, mask: Uint8Array): CaravanError {
  const sizes = `${offsets.length} offsets, ${ids.length} ids, ${mask.length} mask values`
  return new CaravanError('ERR_INTERNAL', `encoded examples are inconsistent: ${sizes}`)
}

/** Collects examples into growing arrays (doubled when full). */
export class EncodedBuilder {
  #ids = new Int32Array(1024)
  #mask = new Uint8Array(1024)
  #offsets = new Float64Array(128)
  #count = 0
  #tokens = 0

  get count(): number {
    return this.#count
  }

  get tokenCount(): number {
    return this.#tokens
  }

  append(example: Encoded): void {
    const { ids, mask } = example
    if (ids.length !== mask.length) {
      throw new CaravanError('ERR_INTERNAL', `an encoded example has ${ids.length} ids and ${mask.length} mask values`)
    }
    const end = this.#tokens + ids.length
    this.#reserve(end)
    this.#ids.set(ids, this.#tokens)
    for (let t = 0; t < mask.length; t++) this.#mask[this.#tokens + t] = mask[t] === 0 ? 0 : 1
    this.#tokens = end
    this.#offsets[++this.#count] = end
  }

  /** Appends an example that consists of these parts and is trained as a whole. */
  appendTrained(...parts: readonly ArrayLike<number>[]): void {
    const start = this.#tokens
    let end = start
    for (const part of parts) end += part.length
    this.#reserve(end)
    for (const part of parts) {
      this.#ids.set(part, this.#tokens)
      this.#tokens += part.length
    }
    this.#mask.fill(1, start, end)
    this.#offsets[++this.#count] = end
  }

  /** The examples so far; the builder starts again empty. */
  finish(): EncodedExamples {
    const examples = new EncodedExamples(
      this.#ids.slice(0, this.#tokens),
      this.#mask.slice(0, this.#tokens),
      this.#offsets.slice(0, this.#count + 1),
    )
    this.#ids = new Int32Array(0)
    this.#mask = new Uint8Array(0)
    this.#offsets = new Float64Array(1)
    this.#count = 0
    this.#tokens = 0
    return examples
  }

  #reserve(tokens: number): void {
    if (tokens > this.#ids.length) {
      const capacity = Math.max(tokens, this.#ids.length * 2)
      this.#ids = grown(this.#ids, new Int32Array(capacity))
      this.#mask = grown(this.#mask, new Uint8Array(capacity))
    }
    if (this.#count + 2 > this.#offsets.length) {
      this.#offsets = grown(this.#offsets, new Float64Array(Math.max(128, this.#offsets.length * 2)))
    }
  }
}

function grown<T extends Int32Array | Uint8Array | Float64Array>(from: T, to: T): T {
  to.set(from)
  return to
}
