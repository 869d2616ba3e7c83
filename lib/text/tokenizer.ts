// A tokenizer as a model folder holds it: encoding by the Rust library behind the npm package `tokenizers`, everything
// else (ids, special tokens, files) by this class, which remembers the ids of words. That package ends the process on
// input it does not expect, so the file is validated first (tokenizer_file.ts) and so is every argument.
import { createHash } from 'node:crypto'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type tokenizers from 'tokenizers'
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { offsetsFromLengths, tokenByteLengths } from './byte_offsets.js'
import { joinIds, PieceIds } from './piece_ids.js'
import { parseTokenizerConfig, type TokenizerConfig } from './tokenizer_config.js'
import { MAX_TOKENIZER_BYTES, parseTokenizerFile, type TokenizerFile } from './tokenizer_file.js'

/** The files of a model folder that belong to its tokenizer. Only the first is required. */
export const TOKENIZER_FILES = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
] as const

const require = createRequire(import.meta.url)

// One call of the native encoder: enough texts to use every core, few enough that copying the result takes < 20 ms.
const CHUNK_TEXTS = 256
const CHUNK_UNITS = 16 * 1024
/** Longest work on the calling thread between two turns of the event loop. */
const TURN_MS = 8
const NO_OFFSETS = new Uint32Array(0)

export interface EncodeOptions {
  /** Run the post-processor, which adds beginning and end tokens. Default false: chat templates write their own. */
  addSpecialTokens?: boolean
  /** Also give offsets. Default true. */
  offsets?: boolean
  signal?: AbortSignal
}

/** `ids` [n]; `offsets` [2n]: start and end of each token in UTF-16 units of the text, empty when not asked for. */
export interface Encoded {
  ids: Int32Array
  offsets: Uint32Array
}

/** Encodes and decodes text. All encoding is asynchronous: on threads of the native library, or in small parts. */
export class Tokenizer {
  /** One more than the largest token id, added tokens included. A model's embedding has at least this many rows. */
  readonly vocabularySize: number
  readonly bosToken: string | undefined
  readonly eosToken: string | undefined
  readonly padToken: string | undefined
  readonly bosId: number | undefined
  readonly eosId: number | undefined
  /** The configured padding token's id, never a substitute: undefined when no padding token is configured. */
  readonly padId: number | undefined
  /** True when padding and end of text are one token, so that ends must be told from padding by position, not by id. */
  readonly padIsEos: boolean
  /** The ids that `skipSpecialTokens` leaves out. */
  readonly specialIds: ReadonlySet<number>
  /** The Jinja chat template, if the folder has one. */
  readonly chatTemplate: string | undefined
  /** Longest text that can be encoded, in UTF-16 units: what the split pattern takes without the engine giving up. */
  readonly maximumTextUnits: number
  /** SHA-256 (hex) over names and contents of the files. */
  readonly hash: string
  readonly #native: tokenizers.Tokenizer
  readonly #idOf: ReadonlyMap<string, number>
  readonly #tokenOf: ReadonlyMap<number, string>
  readonly #byteLengths: Uint16Array | undefined
  readonly #pieces: PieceIds | undefined
  readonly #hasPostProcessor: boolean
  /** When encoding last gave the event loop a turn, in whichever call. */
  #turnStarted = 0

  private constructor(
    file: TokenizerFile,
    config: TokenizerConfig,
    /** File contents by name, byte for byte as read, so that a trained model is saved with its tokenizer unchanged. */
    readonly files: ReadonlyMap<string, Buffer>,
    source: string,
  ) {
    this.#native = createNative(file, source)
    this.#idOf = file.idOf
    this.#byteLengths = tokenByteLengths(file.json, file.idOf)
    this.#pieces = PieceIds.of(file.json, file.addedIds)
    this.#hasPostProcessor = (file.json.post_processor ?? null) !== null
    this.#tokenOf = new Map(Array.from(file.idOf, ([token, id]) => [id, token]))
    this.vocabularySize = file.vocabularySize
    this.maximumTextUnits = file.maximumUnits
    this.specialIds = file.specialIds
    this.chatTemplate = config.chatTemplate
    this.bosToken = config.bosToken
    this.eosToken = config.eosToken
    this.padToken = config.padToken
    this.bosId = this.#configuredId('bos_token', config.bosToken, source)
    this.eosId = this.#configuredId('eos_token', config.eosToken, source)
    this.padId = this.#configuredId('pad_token', config.padToken, source)
    this.padIsEos = this.padId !== undefined && this.padId === this.eosId
    this.hash = hashFiles(files)
  }

  /** Reads `tokenizer.json` and its companions from `directory`. Throws ERR_TOKENIZER, or ERR_FILE if unreadable. */
  static async load(directory: string): Promise<Tokenizer> {
    const files = new Map<string, Buffer>()
    for (const name of TOKENIZER_FILES) {
      const bytes = await readBounded(join(directory, name))
      if (bytes !== undefined) files.set(name, bytes)
    }
    if (!files.has('tokenizer.json')) {
      throw new CaravanError('ERR_TOKENIZER', `${directory}: tokenizer.json is missing`, {
        details: { file: join(directory, 'tokenizer.json') },
        hint: 'Slow tokenizers (tokenizer.model, vocab.json + merges.txt) have to be saved as tokenizer.json first.',
      })
    }
    return Tokenizer.#fromFiles(files, directory)
  }

  /** Builds a tokenizer from the contents of tokenizer.json and tokenizer_config.json, as text or as parsed objects. */
  static fromJson(json: string | object, config: string | object = {}): Tokenizer {
    const files = new Map([
      ['tokenizer.json', jsonBytes(json, 'tokenizer.json')],
      ['tokenizer_config.json', jsonBytes(config, 'tokenizer_config.json')],
    ])
    return Tokenizer.#fromFiles(files, undefined)
  }

  static #fromFiles(files: ReadonlyMap<string, Buffer>, directory: string | undefined): Tokenizer {
    const path = (name: string) => (directory === undefined ? name : join(directory, name))
    const file = parseTokenizerFile(files.get('tokenizer.json')!, path('tokenizer.json'))
    const config = parseTokenizerConfig(files, path)
    return new Tokenizer(file, config, files, path('tokenizer.json'))
  }

  /** Token ids of one text. Throws ERR_DATA when it is longer than `maximumTextUnits`. */
  async encode(text: string, options: EncodeOptions = {}): Promise<Encoded> {
    this.#checkText(text, undefined)
    const encoding = await this.#native.encode(text, null, { addSpecialTokens: options.addSpecialTokens ?? false })
    return this.#toTyped(encoding, text, options)
  }

  /**
   * `encode` for many texts: by the ids of words that are known, where that gives the same, else on every core, in
   * chunks small enough to leave the event loop free between them.
   */
  async encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Promise<Encoded[]> {
    for (const [i, text] of texts.entries()) this.#checkText(text, i)
    const byPieces = await this.#encodePieces(texts, options)
    const others = texts.filter((_, i) => byPieces[i] === undefined)
    const encoded = await this.#encodeWhole(others, options)
    let next = 0
    return texts.map((_, i) => byPieces[i] ?? encoded[next++]!)
  }

  /** By pieces; undefined for texts that have to be encoded whole. */
  async #encodePieces(texts: readonly string[], options: EncodeOptions): Promise<(Encoded | undefined)[]> {
    const results: (Encoded | undefined)[] = []
    const pieces = this.#pieces
    const offsetsFollow = options.offsets === false || this.#byteLengths !== undefined
    const areAll = offsetsFollow && !(options.addSpecialTokens && this.#hasPostProcessor)
    if (pieces === undefined || !areAll) return results
    while (results.length < texts.length) {
      const chunk = texts.slice(results.length, chunkEnd(texts, results.length))
      const cut = pieces.cut(chunk)
      if (cut.unknown.size > 0) {
        const encodings = await this.#native.encodeBatch([...cut.unknown.keys()], { addSpecialTokens: false })
        pieces.learn(
          cut,
          encodings.map((encoding) => encoding.getIds()),
        )
      }
      for (const [i, ids] of joinIds(cut).entries()) results.push(ids && this.#withOffsets(ids, chunk[i]!, options))
      throwIfAborted(options.signal)
      if (performance.now() - this.#turnStarted < TURN_MS) continue
      await new Promise((resolve) => setImmediate(resolve))
      this.#turnStarted = performance.now()
    }
    return results
  }

  /** On every core: while one chunk's results are copied, the next one is encoded. */
  async #encodeWhole(texts: readonly string[], options: EncodeOptions): Promise<Encoded[]> {
    const results: Encoded[] = []
    const native = { addSpecialTokens: options.addSpecialTokens ?? false }
    const start = (from: number) => {
      const chunk = texts.slice(from, chunkEnd(texts, from))
      return { chunk, encodings: this.#native.encodeBatch(chunk, native) }
    }
    let running = texts.length === 0 ? undefined : start(0)
    for (let from = 0; running !== undefined; ) {
      const { chunk, encodings }: ReturnType<typeof start> = running
      const finished = await encodings
      throwIfAborted(options.signal)
      from += chunk.length
      running = from < texts.length ? start(from) : undefined
      for (const [i, encoding] of finished.entries()) {
        results.push(this.#toTyped(encoding, chunk[i]!, options))
      }
    }
    return results
  }

  /** The text of `ids`. Bytes that are not UTF-8 come out as U+FFFD. Throws ERR_TOKENIZER for ids out of range. */
  async decode(ids: ArrayLike<number>, options: { skipSpecialTokens?: boolean } = {}): Promise<string> {
    const [text] = await this.decodeBatch([ids], options)
    return text!
  }

  /** `decode` for many sequences. */
  async decodeBatch(
    sequences: readonly ArrayLike<number>[],
    options: { skipSpecialTokens?: boolean } = {},
  ): Promise<string[]> {
    return this.#native.decodeBatch(
      sequences.map((ids) => this.#checkedIds(ids)),
      options.skipSpecialTokens ?? false,
    )
  }

  tokenToId(token: string): number | undefined {
    return this.#idOf.get(token)
  }

  /** The token as the vocabulary spells it (byte-level spelling, `Ġ` for a space), not as text. */
  idToToken(id: number): string | undefined {
    return this.#tokenOf.get(id)
  }

  /** Writes the files into `directory` (created if missing) as they were read. Throws ERR_FILE. */
  async save(directory: string): Promise<void> {
    try {
      await makeFolder(directory)
      for (const [name, bytes] of this.files) await writeFile(join(directory, name), bytes)
    } catch (cause) {
      throw new CaravanError('ERR_FILE', `${directory}: the tokenizer cannot be written: ${(cause as Error).message}`, {
        details: { directory },
        cause,
      })
    }
  }

  #toTyped(encoding: tokenizers.Encoding, text: string, options: EncodeOptions): Encoded {
    const ids = Int32Array.from(encoding.getIds())
    const areOfText = options.offsets === false || !options.addSpecialTokens
    const known = areOfText ? this.#withOffsets(ids, text, options) : undefined
    return known ?? { ids, offsets: nativeOffsets(encoding, text) }
  }

  /** Offsets that follow from the ids; undefined where they are wanted and do not. */
  #withOffsets(ids: Int32Array, text: string, options: EncodeOptions): Encoded | undefined {
    if (options.offsets === false) return { ids, offsets: NO_OFFSETS }
    const offsets = this.#byteLengths && offsetsFromLengths(ids, text, this.#byteLengths)
    return offsets && { ids, offsets }
  }

  #checkText(text: string, index: number | undefined): void {
    const where = index === undefined ? 'the text' : `text ${index}`
    if (typeof text !== 'string') {
      throw new CaravanError('ERR_DATA', `encode: ${where} must be a string; got ${typeof text}`, {
        details: { index },
      })
    }
    const limit = this.maximumTextUnits
    if (text.length <= limit) return
    throw new CaravanError('ERR_DATA', `encode: ${where} has ${text.length} characters; the limit is ${limit}`, {
      details: { index, length: text.length, limit },
      hint: 'Split the text into documents before encoding it.',
    })
  }

  #checkedIds(ids: ArrayLike<number>): number[] {
    return Array.from(ids, (id, position) => {
      if (Number.isInteger(id) && id >= 0 && id < this.vocabularySize) return id
      throw new CaravanError(
        'ERR_TOKENIZER',
        `decode: ids must be integers in [0, ${this.vocabularySize}); got ${id} at position ${position}`,
        { details: { id, position }, hint: 'A model with a larger vocabulary than its tokenizer can sample such ids.' },
      )
    })
  }

  #configuredId(field: string, token: string | undefined, source: string): number | undefined {
    if (token === undefined) return undefined
    const id = this.#idOf.get(token)
    if (id !== undefined) return id
    throw new CaravanError('ERR_TOKENIZER', `${source}: ${field} is ${JSON.stringify(token)}, which is not a token`, {
      details: { file: source, field, token },
      hint: 'tokenizer_config.json and tokenizer.json do not belong together, or the token was never added.',
    })
  }
}

function jsonBytes(value: string | object, name: string): Buffer {
  try {
    return Buffer.from(typeof value === 'string' ? value : JSON.stringify(value, null, 2))
  } catch (cause) {
    throw new CaravanError('ERR_TOKENIZER', `${name}: the object has no JSON form: ${(cause as Error).message}`, {
      details: { file: name },
      cause,
    })
  }
}

function createNative(file: TokenizerFile, source: string): tokenizers.Tokenizer {
  try {
    // Loaded with the first tokenizer: 10 MiB and 40 ms that a program without one need not pay.
    const library = require('tokenizers') as typeof tokenizers
    const native = library.Tokenizer.fromString(JSON.stringify(file.json))
    for (const [token, id] of file.addedIds) {
      if (native.tokenToId(token) === id) continue
      throw new Error(
        `added token ${JSON.stringify(token)} has id ${id}, but the library gives it ${native.tokenToId(token)}`,
      )
    }
    return native
  } catch (cause) {
    throw new CaravanError('ERR_TOKENIZER', `${source}: ${(cause as Error).message}`, {
      details: { file: source },
      hint: 'Save the tokenizer again with the tokenizers library, version 0.20 or later.',
      cause,
    })
  }
}

function chunkEnd(texts: readonly string[], from: number): number {
  let to = from
  let units = 0
  while (to < texts.length && to - from < CHUNK_TEXTS && (to === from || units + texts[to]!.length <= CHUNK_UNITS)) {
    units += texts[to]!.length
    to++
  }
  return to
}

function nativeOffsets(encoding: tokenizers.Encoding, text: string): Uint32Array {
  const pairs = encoding.getOffsets()
  const offsets = new Uint32Array(2 * pairs.length)
  const unitOf = codePointStarts(text)
  const last = unitOf === undefined ? text.length : unitOf.length - 1
  for (let i = 0; i < offsets.length; i++) {
    // Post-processors that stand after another one can shift offsets past the end.
    const position = Math.min(pairs[i >> 1]![i & 1]!, last)
    offsets[i] = unitOf === undefined ? position : unitOf[position]!
  }
  return offsets
}

/** UTF-16 position of every code point and of the end, or undefined when both count alike. */
function codePointStarts(text: string): Uint32Array | undefined {
  if (!/[\ud800-\udbff][\udc00-\udfff]/.test(text)) return undefined
  const starts = new Uint32Array(text.length + 1)
  let count = 0
  for (let unit = 0; unit < text.length; unit += text.codePointAt(unit)! > 0xffff ? 2 : 1) starts[count++] = unit
  starts[count++] = text.length
  return starts.subarray(0, count)
}

async function readBounded(path: string): Promise<Buffer | undefined> {
  try {
    const { size } = await stat(path)
    if (size <= MAX_TOKENIZER_BYTES) return await readFile(path)
    throw new CaravanError('ERR_TOKENIZER', `${path}: ${size} bytes; the limit is ${MAX_TOKENIZER_BYTES}`, {
      details: { file: path, size, limit: MAX_TOKENIZER_BYTES },
    })
  } catch (cause) {
    if (cause instanceof CaravanError) throw cause
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new CaravanError('ERR_FILE', `${path}: ${(cause as Error).message}`, { details: { file: path }, cause })
  }
}

function hashFiles(files: ReadonlyMap<string, Buffer>): string {
  const hash = createHash('sha256')
  for (const name of [...files.keys()].sort()) {
    const bytes = files.get(name)!
    hash.update(`${name}\0${bytes.length}\0`).update(bytes)
  }
  return hash.digest('hex')
}
