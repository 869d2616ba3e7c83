// Packs examples into rows of at most a token budget, without padding, by the strategies of TRL's `pack_dataset`, row
// for row: `bfd` (best fit decreasing; longer examples are cut), `bfd_split` (longer ones are split into documents),
// `wrapped` (all tokens end to end, cut at the budget; a row is one document) and `none` (one example a row, whatever
// its length).
import { CaravanError } from '../base/errors.js'

export type PackStrategy = 'bfd' | 'bfd_split' | 'wrapped' | 'none'
export const PACK_STRATEGIES: readonly PackStrategy[] = ['bfd', 'bfd_split', 'wrapped', 'none']

/** Target of a position that predicts nothing. */
export const NO_TARGET = -100

/** What packing needs of a set of examples. */
export interface ExampleSource {
  readonly count: number
  idsOf(example: number): Int32Array
  /** `mask[t]` is 1 where token t is to be predicted. */
  maskOf(example: number): Uint8Array
}

/** Row r consists of the pieces `rowOffsets[r] .. rowOffsets[r + 1]`; a piece is a stretch of one example. */
export interface PackPlan {
  rowCount: number
  rowOffsets: Int32Array
  example: Int32Array
  start: Int32Array
  length: Int32Array
  /** True when the pieces of a row form one document (`wrapped`); else each piece is a document of its own. */
  joined: boolean
}

/** A padding-free row of N tokens in S documents. */
export interface PackedBatch {
  /** [N] */
  inputIds: Int32Array
  /** [N], from 0 in each document. */
  positions: Int32Array
  /** [S + 1]: document s is the tokens cuSeqlens[s] .. cuSeqlens[s + 1]. */
  cuSeqlens: Int32Array
  /** [N]: the token that position i must predict (the next one of its document), or -100. */
  labels: Int32Array
  targetCount: number
  maxSeqlen: number
}

/**
 * Decides which example goes into which row of at most `tokens` tokens. Placement is that of TRL 1.13 `pack_dataset`
 * (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). Empty examples are left out. O(n log tokens).
 */
export function planPacking(lengths: ArrayLike<number>, tokens: number, strategy: PackStrategy): PackPlan {
  if (!PACK_STRATEGIES.includes(strategy)) {
    const known = PACK_STRATEGIES.join(', ')
    throw new CaravanError('ERR_CONFIG', `packing must be one of ${known}; got ${JSON.stringify(strategy)}`)
  }
  if (strategy === 'none') return onePerRow(lengths)
  if (!Number.isSafeInteger(tokens) || tokens < 1 || tokens > 2 ** 28) {
    throw new CaravanError('ERR_CONFIG', `the token budget of a row must be an integer in [1, 2^28]; got ${tokens}`)
  }
  if (strategy === 'wrapped') return wrap(lengths, tokens)
  return bestFitDecreasing(cutToBudget(lengths, tokens, strategy === 'bfd_split'), tokens)
}

interface Pieces {
  example: Int32Array
  start: Int32Array
  length: Int32Array
}

function emptyPieces(count: number): Pieces {
  return { example: new Int32Array(count), start: new Int32Array(count), length: new Int32Array(count) }
}

function onePerRow(lengths: ArrayLike<number>): PackPlan {
  const pieces = cutToBudget(lengths, 2 ** 31 - 1, false)
  const rowCount = pieces.example.length
  return { rowCount, rowOffsets: Int32Array.from({ length: rowCount + 1 }, (_, i) => i), ...pieces, joined: false }
}

/** Non-empty examples in order, each cut to the budget, or split into as many pieces as it needs. */
function cutToBudget(lengths: ArrayLike<number>, tokens: number, split: boolean): Pieces {
  const piecesOf = (length: number) => (split ? Math.ceil(length / tokens) : Math.min(length, 1))
  let count = 0
  for (let i = 0; i < lengths.length; i++) count += piecesOf(lengths[i]!)
  const pieces = emptyPieces(count)
  let at = 0
  for (let i = 0; i < lengths.length; i++) {
    const length = lengths[i]!
    for (let k = 0; k < piecesOf(length); k++, at++) {
      pieces.example[at] = i
      pieces.start[at] = k * tokens
      pieces.length[at] = Math.min(tokens, length - k * tokens)
    }
  }
  return pieces
}

function wrap(lengths: ArrayLike<number>, tokens: number): PackPlan {
  const rowOffsets: number[] = [0]
  const example: number[] = []
  const start: number[] = []
  const length: number[] = []
  let room = tokens
  for (let i = 0; i < lengths.length; i++) {
    for (let done = 0; done < lengths[i]!; ) {
      const taken = Math.min(room, lengths[i]! - done)
      example.push(i)
      start.push(done)
      length.push(taken)
      done += taken
      room -= taken
      if (room === 0) {
        rowOffsets.push(example.length)
        room = tokens
      }
    }
  }
  if (room < tokens) rowOffsets.push(example.length)
  return {
    rowCount: rowOffsets.length - 1,
    rowOffsets: Int32Array.from(rowOffsets),
    example: Int32Array.from(example),
    start: Int32Array.from(start),
    length: Int32Array.from(length),
    joined: true,
  }
}

function bestFitDecreasing(pieces: Pieces, tokens: number): PackPlan {
  const { order, rowOf, rowCount } = assignRows(pieces.length, tokens)
  const rowOffsets = new Int32Array(rowCount + 1)
  for (const row of rowOf) rowOffsets[row + 1]! += 1
  for (let row = 0; row < rowCount; row++) rowOffsets[row + 1]! += rowOffsets[row]!
  const next = rowOffsets.slice(0, rowCount)
  const placed = emptyPieces(order.length)
  for (const piece of order) {
    const at = next[rowOf[piece]!]!++
    placed.example[at] = pieces.example[piece]!
    placed.start[at] = pieces.start[piece]!
    placed.length[at] = pieces.length[piece]!
  }
  return { rowCount, rowOffsets, ...placed, joined: false }
}

/** Longest piece first, each into the fullest row that still has room; among equals, the row that got there first. */
function assignRows(lengths: Int32Array, tokens: number): { order: Int32Array; rowOf: Int32Array; rowCount: number } {
  const order = longestFirst(lengths, tokens)
  const rowOf = new Int32Array(lengths.length)
  const spaces = new SpaceTree(tokens)
  // Queues of rows by free space: first and last row of each, and the row after each row.
  const first = new Int32Array(tokens + 1).fill(-1)
  const last = new Int32Array(tokens + 1).fill(-1)
  const after = new Int32Array(lengths.length).fill(-1)
  let rowCount = 0
  for (const piece of order) {
    const length = lengths[piece]!
    const space = spaces.smallestAtLeast(length)
    let row: number
    let left: number
    if (space === 0) {
      row = rowCount++
      left = tokens - length
    } else {
      row = first[space]!
      first[space] = after[row]!
      after[row] = -1
      if (first[space] === -1) spaces.remove(space)
      left = space - length
    }
    rowOf[piece] = row
    if (left === 0) continue
    if (first[left] === -1) {
      first[left] = row
      spaces.add(left)
    } else after[last[left]!] = row
    last[left] = row
  }
  return { order, rowOf, rowCount }
}

/** Counting sort, stable: pieces of equal length keep their order. */
function longestFirst(lengths: Int32Array, tokens: number): Int32Array {
  const begin = new Int32Array(tokens + 2)
  for (const length of lengths) begin[tokens - length + 1]! += 1
  for (let i = 1; i < begin.length; i++) begin[i]! += begin[i - 1]!
  const order = new Int32Array(lengths.length)
  for (let i = 0; i < lengths.length; i++) order[begin[tokens - lengths[i]!]!++] = i
  return order
}

/** A set of integers in 1 .. limit that finds its smallest member >= x in log(limit) steps. */
class SpaceTree {
  readonly #leaves: number
  readonly #largest: Int32Array

  constructor(limit: number) {
    this.#leaves = 2 ** Math.ceil(Math.log2(limit + 1))
    this.#largest = new Int32Array(2 * this.#leaves)
  }

  add(value: number): void {
    this.#set(value, value)
  }

  remove(value: number): void {
    this.#set(value, 0)
  }

  /** 0 when there is none. */
  smallestAtLeast(value: number): number {
    const tree = this.#largest
    if (tree[1]! < value) return 0
    let node = 1
    while (node < this.#leaves) node = tree[2 * node]! >= value ? 2 * node : 2 * node + 1
    return tree[node]!
  }

  #set(value: number, stored: number): void {
    const tree = this.#largest
    let node = this.#leaves + value
    tree[node] = stored
    for (node >>= 1; node >= 1; node >>= 1) tree[node] = Math.max(tree[2 * node]!, tree[2 * node + 1]!)
  }
}

/** Tokens in a row of the plan. */
export function rowTokens(plan: PackPlan, row: number): number {
  let tokens = 0
  for (let piece = plan.rowOffsets[row]!; piece < plan.rowOffsets[row + 1]!; piece++) tokens += plan.length[piece]!
  return tokens
}

/** Predicted tokens in a row: flagged by the mask, and not the first of their document. */
export function rowTargets(plan: PackPlan, row: number, examples: ExampleSource): number {
  let targets = 0
  const firstPiece = plan.rowOffsets[row]!
  for (let piece = firstPiece; piece < plan.rowOffsets[row + 1]!; piece++) {
    const mask = examples.maskOf(plan.example[piece]!)
    const start = plan.start[piece]!
    const opensDocument = piece === firstPiece || !plan.joined
    for (let t = opensDocument ? 1 : 0; t < plan.length[piece]!; t++) targets += mask[start + t]!
  }
  return targets
}

/** Builds a row of the plan: ids, positions and targets, with `plan.example` as indices into `examples`. */
export function packRow(plan: PackPlan, row: number, examples: ExampleSource): PackedBatch {
  const firstPiece = plan.rowOffsets[row]!
  const endPiece = plan.rowOffsets[row + 1]!
  const tokens = rowTokens(plan, row)
  const inputIds = new Int32Array(tokens)
  const positions = new Int32Array(tokens)
  const labels = new Int32Array(tokens).fill(NO_TARGET)
  const bounds = [0]
  let at = 0
  let documentStart = 0
  let targetCount = 0
  for (let piece = firstPiece; piece < endPiece; piece++) {
    if (piece > firstPiece && !plan.joined) {
      bounds.push(at)
      documentStart = at
    }
    const ids = examples.idsOf(plan.example[piece]!)
    const mask = examples.maskOf(plan.example[piece]!)
    const start = plan.start[piece]!
    for (let t = 0; t < plan.length[piece]!; t++, at++) {
      inputIds[at] = ids[start + t]!
      positions[at] = at - documentStart
      if (at > documentStart && mask[start + t] !== 0) {
        labels[at - 1] = ids[start + t]!
        targetCount++
      }
    }
  }
  bounds.push(at)
  const cuSeqlens = Int32Array.from(bounds)
  return { inputIds, positions, cuSeqlens, labels, targetCount, maxSeqlen: longestDocument(cuSeqlens) }
}

function longestDocument(cuSeqlens: Int32Array): number {
  let longest = 0
  for (let s = 1; s < cuSeqlens.length; s++) longest = Math.max(longest, cuSeqlens[s]! - cuSeqlens[s - 1]!)
  return longest
}
