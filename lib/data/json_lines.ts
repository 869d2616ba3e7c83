// Streams rows from .jsonl and .json files, plain or gzip (told by its first bytes, not its name). Lines are cut as
// bytes and parsed one by one, so memory is bounded by the longest row, and every fault has file:line:column.
import type { Readable } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { fileError } from './atomic_file.js'
import { JsonScanner } from './json_scanner.js'
import { openRegularFile } from './regular_file.js'

export type JsonObject = Record<string, unknown>

/** A row of a file. `line` counts from 1; `byteOffset` is that of the row in the (decompressed) text. */
export interface JsonRow {
  row: JsonObject
  line: number
  byteOffset: number
}

export interface JsonLinesOptions {
  /** Called with the error of each bad row, which is then left out; without it the first bad row throws. */
  onBadRow?: (error: CaravanError) => void
  /** Longest row accepted, in bytes. Default 64 MiB. */
  maxLineBytes?: number
  signal?: AbortSignal
}

/** The text of one row; undefined where it was longer than the budget. */
interface RawRow {
  bytes: Uint8Array | undefined
  line: number
  /** Column of its first byte, from 1. */
  column: number
  byteOffset: number
}

const DEFAULT_MAX_LINE_BYTES = 64 * 2 ** 20
const NEWLINE = 0x0a
const BOM = [0xef, 0xbb, 0xbf]

/**
 * Reads the objects of a JSON-lines file, or of a `.json` file that holds one array of objects. Blank lines, CRLF and a
 * byte order mark at the very start are accepted. ERR_DATA (file, line, column) for a bad row, ERR_FORMAT (file,
 * offset) for damaged gzip data, ERR_FILE when the file cannot be read.
 */
export async function* readJsonLines(file: string, options: JsonLinesOptions = {}): AsyncGenerator<JsonRow> {
  const { maxLineBytes = DEFAULT_MAX_LINE_BYTES, onBadRow, signal } = options
  const mayBeArray = /\.json(\.gz)?$/.test(file)
  for await (const raw of splitRows(textChunks(file), { file, maxLineBytes, mayBeArray })) {
    throwIfAborted(signal)
    try {
      const row = parseRow(file, raw, maxLineBytes)
      if (row !== undefined) yield { row, line: raw.line, byteOffset: raw.byteOffset }
    } catch (error) {
      if (onBadRow === undefined || !(error instanceof CaravanError) || error.code !== 'ERR_DATA') throw error
      onBadRow(error)
    }
  }
}

/** The decompressed bytes of a file, chunk by chunk. */
async function* textChunks(file: string): AsyncGenerator<Buffer> {
  const { handle } = await openRegularFile(file)
  let consumed = 0
  try {
    const magic = Buffer.alloc(2)
    const { bytesRead } = await handle.read(magic, 0, 2, 0)
    const isGzip = bytesRead === 2 && magic[0] === 0x1f && magic[1] === 0x8b
    const source = handle.createReadStream({ start: 0, autoClose: false, highWaterMark: 2 ** 18 })
    let text: Readable = source
    if (isGzip) {
      const gunzip = createGunzip()
      source.on('data', (chunk) => {
        consumed += chunk.length
      })
      source.on('error', (error) => gunzip.destroy(error))
      text = source.pipe(gunzip)
    }
    try {
      for await (const chunk of text) yield chunk as Buffer
    } finally {
      source.destroy()
    }
  } catch (error) {
    throw isZlibError(error) ? damagedGzip(file, consumed, error) : fileError('read', file, error)
  } finally {
    await handle.close()
  }
}

function isZlibError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && String((error as NodeJS.ErrnoException).code).startsWith('Z_')
}

function damagedGzip(file: string, offset: number, cause: NodeJS.ErrnoException): CaravanError {
  const message = `${file}: byte ${offset}: the gzip data is damaged or cut off before here: ${cause.message}`
  return new CaravanError('ERR_FORMAT', message, {
    details: { file, offset },
    hint: 'the file is incomplete or damaged: copy or download it again',
    cause,
  })
}

interface SplitRules {
  file: string
  maxLineBytes: number
  mayBeArray: boolean
}

async function* splitRows(chunks: AsyncIterable<Buffer>, rules: SplitRules): AsyncGenerator<RawRow> {
  let splitter: LineSplitter | ArraySplitter | undefined
  let bomLeft = 0
  for await (let chunk of chunks) {
    if (splitter === undefined) {
      if (BOM.every((byte, i) => chunk[i] === byte)) bomLeft = BOM.length
      chunk = chunk.subarray(bomLeft)
      const first = chunk.find((byte) => !isWhitespace(byte))
      splitter = rules.mayBeArray && first === 0x5b ? new ArraySplitter(rules) : new LineSplitter(rules, bomLeft)
    }
    yield* splitter.push(chunk)
  }
  if (splitter !== undefined) yield* splitter.end()
}

/** Collects the bytes of a row across chunks, and gives up on one that is too long without keeping it. */
class RowBuffer {
  #parts: Uint8Array[] = []
  #length = 0

  constructor(readonly limit: number) {}

  get length(): number {
    return this.#length
  }

  append(bytes: Uint8Array): void {
    this.#length += bytes.length
    if (this.#length <= this.limit) this.#parts.push(bytes)
    else this.#parts = []
  }

  take(): Uint8Array | undefined {
    const bytes =
      this.#length > this.limit ? undefined : this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts)
    this.#parts = []
    this.#length = 0
    return bytes
  }
}

class LineSplitter {
  readonly #row: RowBuffer
  #line = 1

  constructor(
    rules: SplitRules,
    private byteOffset: number,
  ) {
    this.#row = new RowBuffer(rules.maxLineBytes)
  }

  *push(chunk: Buffer): Generator<RawRow> {
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      this.#row.append(chunk.subarray(start, end))
      yield this.#finish()
      start = end + 1
    }
    if (start < chunk.length) this.#row.append(chunk.subarray(start))
  }

  end(): RawRow[] {
    return this.#row.length > 0 ? [this.#finish()] : []
  }

  #finish(): RawRow {
    const { length } = this.#row
    const row = { bytes: this.#row.take(), line: this.#line, column: 1, byteOffset: this.byteOffset }
    this.#line++
    this.byteOffset += length + 1
    return row
  }
}

/**
 * Cuts the elements out of one top-level array, by counting brackets outside strings; each is parsed as a row later.
 */
class ArraySplitter {
  readonly #row: RowBuffer
  #line = 1
  #byteOffset = 0
  #lineOffset = 0
  #rowLine = 1
  #rowColumn = 1
  #rowOffset = 0
  #depth = 0
  #inString = false
  #escaped = false
  #closed = false
  #count = 0
  #sawContent = false

  constructor(private readonly rules: SplitRules) {
    this.#row = new RowBuffer(rules.maxLineBytes)
  }

  *push(chunk: Buffer): Generator<RawRow> {
    let start = 0
    for (let i = 0; i < chunk.length; i++, this.#byteOffset++) {
      const byte = chunk[i]!
      if (byte === NEWLINE) {
        this.#line++
        this.#lineOffset = this.#byteOffset + 1
      }
      if (this.#closed) {
        if (!isWhitespace(byte)) throw this.#fault('there is text after the end of the array')
        continue
      }
      const structural = this.#isStructural(byte)
      if (structural && this.#depth === 0) {
        start = i + 1 // the opening bracket of the array itself
        this.#depth = 1
      } else if (structural && this.#depth === 1 && (byte === 0x2c || byte === 0x5d)) {
        this.#row.append(chunk.subarray(start, i))
        yield* this.#finish(byte === 0x5d)
        start = i + 1
      } else if (structural) this.#depth += byte === 0x5b || byte === 0x7b ? 1 : byte === 0x2c ? 0 : -1
      if (!this.#sawContent && this.#depth > 0 && start <= i && !isWhitespace(byte)) this.#mark()
      if (this.#depth < 1 && !this.#closed && !isWhitespace(byte)) throw this.#fault('a bracket closes nothing')
    }
    if (!this.#closed && this.#depth > 0 && start < chunk.length) this.#row.append(chunk.subarray(start))
  }

  end(): RawRow[] {
    if (!this.#closed) throw this.#fault('the file ends inside its array')
    return []
  }

  /** Follows strings; true for a bracket, brace or comma outside of them. */
  #isStructural(byte: number): boolean {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false
      else if (byte === 0x5c) this.#escaped = true
      else if (byte === 0x22) this.#inString = false
      return false
    }
    if (byte === 0x22) this.#inString = true
    return byte === 0x5b || byte === 0x5d || byte === 0x7b || byte === 0x7d || byte === 0x2c
  }

  #mark(): void {
    this.#sawContent = true
    this.#rowLine = this.#line
    this.#rowColumn = this.#byteOffset - this.#lineOffset + 1
    this.#rowOffset = this.#byteOffset
  }

  *#finish(last: boolean): Generator<RawRow> {
    const bytes = this.#row.take()
    const isEmptyArray = last && this.#count === 0 && !this.#sawContent
    this.#closed = last
    this.#count++
    if (isEmptyArray) return
    if (!this.#sawContent) throw this.#fault('an element is missing between commas or brackets')
    this.#sawContent = false
    yield {
      bytes: bytes && trimStart(bytes),
      line: this.#rowLine,
      column: this.#rowColumn,
      byteOffset: this.#rowOffset,
    }
  }

  #fault(message: string): CaravanError {
    const { file } = this.rules
    return new CaravanError('ERR_DATA', `${file}:${this.#line}: ${message}`, {
      details: { file, line: this.#line, offset: this.#byteOffset },
      hint: 'the file must hold one JSON array of objects, or one object per line',
    })
  }
}

function trimStart(bytes: Uint8Array): Uint8Array {
  let start = 0
  while (start < bytes.length && isWhitespace(bytes[start]!)) start++
  return bytes.subarray(start)
}

function isWhitespace(byte: number): boolean {
  return byte === 0x20 || byte === NEWLINE || byte === 0x0d || byte === 0x09
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** The object in a row, or undefined for a blank line. */
function parseRow(file: string, raw: RawRow, maxLineBytes: number): JsonObject | undefined {
  const { bytes, line, column, byteOffset } = raw
  if (bytes === undefined) {
    throw new CaravanError('ERR_DATA', `${file}:${line}:${column}: the row is longer than ${maxLineBytes} bytes`, {
      details: { file, line, column, byteOffset, maxLineBytes },
      hint: 'check that the file has one row per line, or raise the limit (maxLineBytes)',
    })
  }
  let value: unknown
  try {
    const text = decoder.decode(bytes)
    if (text.trim() === '' && !text.includes('\ufeff')) return undefined
    value = JSON.parse(text)
  } catch (error) {
    throw locateFault(file, raw, error)
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as JsonObject
  const got = Array.isArray(value) ? 'an array' : value === null ? 'null' : `a ${typeof value}`
  throw new CaravanError('ERR_DATA', `${file}:${line}:${column}: a row must be a JSON object; got ${got}`, {
    details: { file, line, column, byteOffset },
    hint: Array.isArray(value) ? 'a file that holds one array of rows must be named .json' : undefined,
  })
}

/** Reads the row again with a scanner that knows where it is: JSON.parse does not always say. Columns count bytes. */
function locateFault(file: string, raw: RawRow, cause: unknown): CaravanError {
  const { byteOffset } = raw
  const bytes = raw.bytes!
  const faultAt = (message: string, offset: number) => {
    const before = Buffer.from(bytes.subarray(0, offset))
    const lineStart = before.lastIndexOf(NEWLINE) + 1
    const column = offset - lineStart + (lineStart === 0 ? raw.column : 1)
    const line = raw.line + before.reduce((newlines, byte) => newlines + (byte === NEWLINE ? 1 : 0), 0)
    return new CaravanError('ERR_DATA', `${file}:${line}:${column}: ${message}`, {
      details: { file, line, column, byteOffset: byteOffset + offset },
      hint: hintFor(bytes, offset),
      cause,
    })
  }
  const scanner = new JsonScanner(file, bytes, 0, faultAt)
  try {
    scanner.skipValue()
    scanner.end()
  } catch (error) {
    if (error instanceof CaravanError) return error
  }
  return faultAt(cause instanceof Error ? cause.message : 'not valid JSON', 0)
}

function hintFor(bytes: Uint8Array, offset: number): string {
  if (BOM.every((byte, i) => bytes[offset + i] === byte)) {
    return 'a byte order mark inside the file: were several files joined? Remove it'
  }
  if (bytes.includes(0)) return 'the row holds NUL bytes: the file is damaged, or not UTF-8'
  if (offset >= bytes.length) return 'the row is cut off: the file is incomplete, or a row is spread over several lines'
  return 'each line must be one complete JSON object in UTF-8'
}
