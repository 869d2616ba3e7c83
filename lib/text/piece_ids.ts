// Ids of the pieces that a split pattern cuts texts into, remembered: most of a text is words that came before. Only
// where a piece has the same ids wherever it stands: byte-level BPE behind one split pattern, and ASCII text, since in
// the rest of Unicode the engines may differ by their version. The ids themselves are the native library's.
import { CaravanError } from '../base/errors.js'
import type { JsonObject } from './json_check.js'
import { SplitRegExp } from './split_regexp.js'

/** How many pieces, of how many UTF-16 units in all, are remembered; what passes either has everything forgotten. */
const LIMITS = { pieces: 2 ** 16, units: 2 ** 20 }
/** Longer texts are left to the threads of the native library. */
const MAX_TEXT_UNITS = 16 * 1024

/** Pieces by number; the ids of a piece are undefined until the native library has been asked. */
interface PieceTable {
  numbers: Map<string, number>
  ids: (readonly number[] | undefined)[]
  units: number
}

/** Texts cut into pieces that are known or asked for. */
export interface CutTexts {
  table: PieceTable
  /** The pieces of all texts, by number. */
  numbers: Int32Array
  /** Where the pieces of each text end; -1 for a text that only the native library can encode, and whole. */
  ends: Int32Array
  /** Pieces whose ids are to be asked for and given to `learn`. */
  unknown: Map<string, number>
}

export class PieceIds {
  #table: PieceTable | undefined

  private constructor(
    private readonly splitter: SplitRegExp,
    private readonly addedIds: ReadonlyMap<string, number>,
    private readonly limits: typeof LIMITS,
    private readonly addedTokens = anyOf([...addedIds.keys()]),
  ) {}

  /** For the tokenizer of a checked file; undefined where pieces have no ids of their own. */
  static of(json: JsonObject, addedIds: ReadonlyMap<string, number>, limits = LIMITS): PieceIds | undefined {
    const pattern = splitPattern(json)
    if (pattern === undefined || !areTakenLiterally(json.added_tokens as JsonObject[])) return undefined
    try {
      return new PieceIds(new SplitRegExp(pattern), addedIds, limits)
    } catch (error) {
      if (error instanceof CaravanError) return undefined // A pattern that a RegExp might read otherwise.
      throw error
    }
  }

  cut(texts: readonly string[]): CutTexts {
    const { pieces, units: mostUnits } = this.limits
    if (this.#table === undefined || this.#table.ids.length > pieces || this.#table.units > mostUnits) {
      // A new one, since texts that are being encoded go by the old.
      const ids = Array.from(this.addedIds.values(), (id) => [id])
      const numbers = new Map([...this.addedIds.keys()].map((token, number) => [token, number]))
      this.#table = { numbers, ids, units: 0 }
    }
    const areWhole = texts.map((text) => text.length > MAX_TEXT_UNITS || Buffer.byteLength(text) !== text.length)
    const units = texts.reduce((sum, text, i) => sum + (areWhole[i] ? 0 : text.length), 0)
    const cut: CutTexts = {
      table: this.#table,
      numbers: new Int32Array(units),
      ends: new Int32Array(texts.length),
      unknown: new Map(),
    }
    let at = 0
    for (const [i, text] of texts.entries()) {
      const end = areWhole[i] ? undefined : this.#cutText(text, cut, at)
      cut.ends[i] = end ?? -1
      at = end ?? at
    }
    return cut
  }

  /** Takes the ids of the unknown pieces, in their order. */
  learn({ table, unknown }: CutTexts, ids: readonly (readonly number[])[]): void {
    let next = 0
    for (const number of unknown.values()) table.ids[number] = ids[next++]!
  }

  /** Writes the pieces of `text` from `start` on and gives their end. */
  #cutText(text: string, cut: CutTexts, start: number): number | undefined {
    const { table, numbers, unknown } = cut
    const parts = this.addedTokens === undefined ? [text] : text.split(this.addedTokens)
    let at = start
    for (let i = 0; i < parts.length; i++) {
      // Every other part is an added token.
      const pieces = i % 2 === 1 ? [parts[i]!] : this.splitter.split(parts[i]!)
      for (const piece of pieces) {
        const number = table.numbers.get(piece) ?? this.#add(piece, table)
        if (number === undefined) return undefined
        if (table.ids[number] === undefined) unknown.set(piece, number)
        numbers[at++] = number
      }
    }
    return at
  }

  /** What the pattern would cut otherwise without its neighbours is not encoded by itself. */
  #add(piece: string, table: PieceTable): number | undefined {
    if (this.splitter.split(piece).length !== 1) return undefined
    const number = table.ids.push(undefined) - 1
    table.units += piece.length
    // A copy, since a piece may be a view that keeps its text in memory.
    table.numbers.set(Buffer.from(piece, 'latin1').toString('latin1'), number)
    return number
  }
}

/** The ids of every text whose pieces are known; undefined for the others. */
export function joinIds({ table, numbers, ends }: CutTexts): (Int32Array | undefined)[] {
  const last = Math.max(0, ...ends)
  let count = 0
  for (let i = 0; i < last; i++) count += table.ids[numbers[i]!]!.length
  const joined = new Int32Array(count)
  let [piece, at] = [0, 0]
  return Array.from(ends, (end) => {
    if (end < 0) return undefined
    const start = at
    for (; piece < end; piece++) {
      const ids = table.ids[numbers[piece]!]!
      for (let i = 0; i < ids.length; i++) joined[at++] = ids[i]!
    }
    return joined.subarray(start, at)
  })
}

/** What these change is not ASCII. */
const UNICODE_FORMS = ['NFC', 'NFD', 'NFKC', 'NFKD']

/** The pattern of a tokenizer that leaves ASCII as it is, cuts it by one pattern, and encodes each piece's bytes. */
function splitPattern({ normalizer, pre_tokenizer, model }: JsonObject): string | undefined {
  const normalizes = normalizer !== undefined && normalizer !== null
  if (normalizes && !UNICODE_FORMS.includes((normalizer as JsonObject).type as string)) return undefined
  if ((model as JsonObject).type !== 'BPE') return undefined
  const { type, pretokenizers } = (pre_tokenizer ?? {}) as { type?: string; pretokenizers?: JsonObject[] }
  if (type !== 'Sequence' || pretokenizers?.length !== 2) return undefined
  const [split, bytes] = pretokenizers as [JsonObject, JsonObject]
  const cuts = split.type === 'Split' && split.behavior === 'Isolated' && split.invert === false
  const spells = bytes.type === 'ByteLevel' && bytes.add_prefix_space === false && bytes.use_regex === false
  return cuts && spells ? ((split.pattern as JsonObject).Regex as string | undefined) : undefined
}

/** Whether added tokens are found wherever they stand, take nothing around them, and are looked for all at once. */
function areTakenLiterally(tokens: readonly JsonObject[]): boolean {
  return tokens.every(({ single_word, lstrip, rstrip, normalized }) => {
    return !single_word && !lstrip && !rstrip && normalized === tokens[0]!.normalized
  })
}

/** Finds the longest of `tokens` that starts first, as the library does; captured, so that splitting keeps it. */
function anyOf(tokens: readonly string[]): RegExp | undefined {
  if (tokens.length === 0) return undefined
  const longestFirst = tokens.toSorted((a, b) => b.length - a.length)
  const escaped = longestFirst.map((token) => token.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&'))
  return new RegExp(`(${escaped.join('|')})`)
}
