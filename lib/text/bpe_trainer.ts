// Trains a byte-level BPE tokenizer. The npm package offers no trainer options, so this is our own: incremental pair
// counts and a heap, with the order of the Hugging Face trainer (highest count, then lowest pair of ids), so that the
// same texts give the same tokenizer in both.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import type { JsonObject } from './json_check.js'
import { wordSplitPattern } from './split_pattern.js'
import { SplitRegExp } from './split_regexp.js'

const DEFAULT_SPLIT = wordSplitPattern(3)
/** Longest work between two turns of the event loop. */
const TURN_MS = 8

export interface BpeTrainingOptions<Texts = Iterable<string>> {
  /** In any order. */
  texts: Texts
  /** Tokens in all: special tokens, the 256 bytes, and as many merges as fit. Fewer when the texts run out of pairs. */
  vocabularySize: number
  /** Tokens with ids 0, 1, ... that text never merges into. Default none. */
  specialTokens?: readonly string[]
  /** How texts are cut into pieces that merges do not cross (Oniguruma syntax). Default: that of Llama 3. */
  splitRegex?: string
  /** Pairs seen less often are not merged. Default 1, which also never stops before the vocabulary is full. */
  minFrequency?: number
}

type MergeOptions = Omit<BpeTrainingOptions, 'texts'>

/** Trains on the calling thread. Returns the contents of a tokenizer.json. Throws ERR_CONFIG on impossible options. */
export function trainBpe({ texts, ...options }: BpeTrainingOptions): JsonObject {
  const pieces = new PieceCounts(options)
  for (const text of texts) pieces.add(text)
  const steps = mergingSteps(options, pieces)
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
  }
}

/**
 * `trainBpe` that gives the event loop a turn every few milliseconds, takes texts as they come, and stops when `signal`
 * fires.
 */
export async function trainBpeAsync({
  texts,
  signal,
  ...options
}: BpeTrainingOptions<Iterable<string> | AsyncIterable<string>> & { signal?: AbortSignal }): Promise<JsonObject> {
  let turnStarted = performance.now()
  const turn = async () => {
    throwIfAborted(signal)
    await new Promise((resolve) => setImmediate(resolve))
    turnStarted = performance.now()
  }
  const pieces = new PieceCounts(options)
  for await (const text of texts) {
    pieces.add(text)
    if (performance.now() - turnStarted >= TURN_MS) await turn()
  }
  const steps = mergingSteps(options, pieces)
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
    if (performance.now() - turnStarted >= TURN_MS) await turn()
  }
}

/**
 * Spelling of every byte in a byte-level vocabulary (GPT-2's `bytes_to_unicode`): printable bytes stand for themselves.
 */
export function byteSpellings(): string[] {
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    return String.fromCharCode(printable ? byte : next++)
  })
}

interface TrainingState {
  /** Token spellings by id. */
  tokens: string[]
  idOf: Map<string, number>
  words: WordList
  pairs: PairTable
  merges: [string, string][]
}

/** How often each piece of the texts comes. */
class PieceCounts {
  readonly counts: number[] = []
  readonly #numbers = new Map<string, number>()
  readonly #splitter: SplitRegExp

  constructor(options: MergeOptions) {
    checkOptions(options)
    this.#splitter = new SplitRegExp(options.splitRegex ?? DEFAULT_SPLIT)
  }

  add(text: string): void {
    for (const piece of this.#splitter.split(text)) {
      const number = this.#numbers.get(piece)
      if (number === undefined) this.#numbers.set(piece, this.counts.push(1) - 1)
      else this.counts[number]!++
    }
  }

  /** In the order of `counts`. */
  get pieces(): readonly string[] {
    return [...this.#numbers.keys()]
  }
}

function* mergingSteps(options: MergeOptions, { pieces, counts }: PieceCounts): Generator<undefined, JsonObject> {
  const { vocabularySize, specialTokens = [], splitRegex = DEFAULT_SPLIT, minFrequency = 1 } = options
  const spellings = byteSpellings()
  const tokens = [...specialTokens, ...spellings.toSorted()]
  const idOf = new Map(tokens.map((token, id) => [token, id]))
  const idOfByte = Int32Array.from(spellings, (spelling) => idOf.get(spelling)!)
  const words = yield* spellWords(pieces, counts, idOfByte)
  const state: TrainingState = { tokens, idOf, words, pairs: new PairTable(), merges: [] }
  yield* countPairs(state)
  while (tokens.length < vocabularySize) {
    const best = state.pairs.takeBest()
    if (best === undefined || best.count < Math.max(1, minFrequency)) break
    yield* mergePair(state, best.left, best.right)
  }
  return tokenizerJson(state, specialTokens, splitRegex)
}

function checkOptions({ vocabularySize, specialTokens = [], minFrequency = 1 }: MergeOptions): void {
  const least = 256 + specialTokens.length
  if (!Number.isInteger(vocabularySize) || vocabularySize < least || vocabularySize > PairTable.maximumId) {
    throw new CaravanError(
      'ERR_CONFIG',
      `trainBpe: vocabularySize must be an integer from ${least} (256 bytes and ${specialTokens.length} special tokens) ` +
        `to ${PairTable.maximumId}; got ${vocabularySize}`,
    )
  }
  if (!(minFrequency >= 0)) {
    throw new CaravanError('ERR_CONFIG', `trainBpe: minFrequency must be a number from 0; got ${minFrequency}`)
  }
  // A one-character special token could be the spelling of a byte, which would then be both.
  const faulty = specialTokens.find((token, i) => token.length < 2 || specialTokens.indexOf(token) !== i)
  if (faulty !== undefined) {
    throw new CaravanError(
      'ERR_CONFIG',
      `trainBpe: special tokens must be distinct and have two characters or more; got ${JSON.stringify(faulty)}`,
    )
  }
}

/** Every distinct piece as a run of token ids in one array; merging shortens runs in place. */
interface WordList {
  symbols: Int32Array
  starts: Int32Array
  lengths: Int32Array
  counts: Float64Array
}

function* spellWords(
  pieces: readonly string[],
  counts: readonly number[],
  idOfByte: Int32Array,
): Generator<undefined, WordList> {
  const encoder = new TextEncoder()
  let units = 0
  for (const piece of pieces) units += piece.length
  let symbols = new Int32Array(units + 1)
  const starts = new Int32Array(pieces.length)
  const lengths = new Int32Array(pieces.length)
  let used = 0
  let word = 0
  for (const piece of pieces) {
    const bytes = encoder.encode(piece)
    if (used + bytes.length > symbols.length) {
      const larger = new Int32Array(2 * (used + bytes.length))
      larger.set(symbols)
      symbols = larger
    }
    for (let i = 0; i < bytes.length; i++) symbols[used + i] = idOfByte[bytes[i]!]!
    starts[word] = used
    lengths[word++] = bytes.length
    used += bytes.length
    if (word % 1024 === 0) yield
  }
  return { symbols, starts, lengths, counts: Float64Array.from(counts) }
}

function* countPairs({ words, pairs }: TrainingState): Generator<undefined, void> {
  for (let word = 0; word < words.counts.length; word++) {
    const start = words.starts[word]!
    for (let i = start + 1; i < start + words.lengths[word]!; i++) {
      pairs.add(words.symbols[i - 1]!, words.symbols[i]!, words.counts[word]!, word)
    }
    if (word % 1024 === 1023) yield
  }
  pairs.offerTouched()
}

function* mergePair(state: TrainingState, left: number, right: number): Generator<undefined, void> {
  const { tokens, idOf, words, pairs } = state
  const spelling = tokens[left]! + tokens[right]!
  state.merges.push([tokens[left]!, tokens[right]!])
  let merged = idOf.get(spelling)
  if (merged === undefined) {
    merged = tokens.length
    tokens.push(spelling)
    idOf.set(spelling, merged)
  }
  let handled = 0
  for (const word of pairs.wordsWith(left, right)) {
    mergeInWord(words, pairs, word, [left, right, merged])
    if (++handled % 1024 === 0) yield
  }
  pairs.remove(left, right)
  pairs.offerTouched()
  yield
}

/** Replaces `left right` by `merged` from left to right in one word and keeps the counts of the pairs around it. */
function mergeInWord(
  words: WordList,
  pairs: PairTable,
  word: number,
  [left, right, merged]: [number, number, number],
): void {
  const { symbols } = words
  const start = words.starts[word]!
  const end = start + words.lengths[word]!
  const count = words.counts[word]!
  let to = start
  for (let from = start; from < end; ) {
    if (from + 1 >= end || symbols[from] !== left || symbols[from + 1] !== right) {
      symbols[to++] = symbols[from++]!
      continue
    }
    if (to > start) {
      pairs.add(symbols[to - 1]!, left, -count, word)
      pairs.add(symbols[to - 1]!, merged, count, word)
    }
    if (from + 2 < end) {
      pairs.add(right, symbols[from + 2]!, -count, word)
      pairs.add(merged, symbols[from + 2]!, count, word)
    }
    symbols[to++] = merged
    from += 2
  }
  words.lengths[word] = to - start
}

interface Pair {
  left: number
  right: number
  count: number
  /** Words that contain it or did; with repetitions. */
  words: number[]
  /** Its count has grown since it was last put on the heap. */
  touched: boolean
}

/** Counts of adjacent pairs, and a heap of them. Heap entries may be out of date: they are compared when taken. */
class PairTable {
  static readonly maximumId = 2 ** 20
  readonly #pairs = new Map<number, Pair>()
  readonly #heap = new PairHeap()
  #touched: Pair[] = []

  add(left: number, right: number, change: number, word: number): void {
    const key = left * PairTable.maximumId + right
    let pair = this.#pairs.get(key)
    if (pair === undefined) {
      if (change < 0) return
      pair = { left, right, count: 0, words: [], touched: false }
      this.#pairs.set(key, pair)
    }
    pair.count += change
    if (change < 0) return
    if (pair.words.at(-1) !== word) pair.words.push(word)
    if (pair.touched) return
    pair.touched = true
    this.#touched.push(pair)
  }

  wordsWith(left: number, right: number): readonly number[] {
    return this.#pairs.get(left * PairTable.maximumId + right)?.words ?? []
  }

  remove(left: number, right: number): void {
    const key = left * PairTable.maximumId + right
    const pair = this.#pairs.get(key)
    if (pair !== undefined) pair.count = 0
    this.#pairs.delete(key)
  }

  /** Puts the pairs whose count has grown on the heap. */
  offerTouched(): void {
    for (const pair of this.#touched) {
      pair.touched = false
      if (pair.count > 0) this.#heap.push(pair.count, pair)
    }
    this.#touched = []
  }

  /** The pair with the highest count, of those the one with the lowest ids. */
  takeBest(): Pair | undefined {
    for (;;) {
      const top = this.#heap.pop()
      if (top === undefined) return undefined
      if (top.count === top.pair.count) return top.pair
      if (top.pair.count > 0) this.#heap.push(top.pair.count, top.pair)
    }
  }
}

/** A binary heap ordered by count (downwards), then left id, then right id. */
class PairHeap {
  readonly #entries: { count: number; pair: Pair }[] = []

  push(count: number, pair: Pair): void {
    const entries = this.#entries
    const entry = { count, pair }
    let at = entries.push(entry) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!comesBefore(entry, entries[parent]!)) break
      entries[at] = entries[parent]!
      at = parent
    }
    entries[at] = entry
  }

  pop(): { count: number; pair: Pair } | undefined {
    const entries = this.#entries
    const top = entries[0]
    const last = entries.pop()
    if (last === undefined || entries.length === 0) return top
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= entries.length) break
      if (child + 1 < entries.length && comesBefore(entries[child + 1]!, entries[child]!)) child++
      if (!comesBefore(entries[child]!, last)) break
      entries[at] = entries[child]!
      at = child
    }
    entries[at] = last
    return top
  }
}

function comesBefore(a: { count: number; pair: Pair }, b: { count: number; pair: Pair }): boolean {
  if (a.count !== b.count) return a.count > b.count
  if (a.pair.left !== b.pair.left) return a.pair.left < b.pair.left
  return a.pair.right < b.pair.right
}

function tokenizerJson(state: TrainingState, specialTokens: readonly string[], splitRegex: string): JsonObject {
  const byteLevel = (useRegex: boolean) => {
    return { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: useRegex }
  }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => {
      return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
    }),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: splitRegex }, behavior: 'Isolated', invert: false },
        byteLevel(false),
      ],
    },
    post_processor: null,
    decoder: byteLevel(true),
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(state.tokens.map((token, id) => [token, id])),
      merges: state.merges,
    },
  }
}
