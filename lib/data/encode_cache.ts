// Tokenised examples on disk. The name is a hash of everything they depend on, the end of the file a hash of its
// content: a cache that cannot be proved right is as good as none, and is built again.
import { createHash, type Hash } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { fileError, writeFileAtomic } from './atomic_file.js'
import { EncodedExamples } from './encoded.js'
import { openRegularFile, readExactly } from './regular_file.js'

/** What tokenised examples depend on besides the data itself. */
export interface EncodingIdentity {
  /** SHA-256 of the tokenizer's files. */
  tokenizerHash: string
  /** SHA-256 of the chat template. */
  templateHash: string
  maxTokens: number
  /** Mask options and whatever else changes the result; compared as JSON. */
  options?: unknown
}

/** What is stored: the examples and what was counted while they were made. */
export interface CachedEncoding {
  examples: EncodedExamples
  badRows: number
}

const FORMAT_VERSION = 1
const MAGIC = 'CRVNENC1'
const PREFIX_BYTES = 16 // magic, header length, zero
const HASH_BYTES = 32
const MAX_HEADER_BYTES = 4096
const PIECE_BYTES = 2 ** 26

interface CacheHeader {
  key: string
  count: number
  tokens: number
  badRows: number
}

/** SHA-256 (hex) of a file's content. */
export async function hashFile(file: string): Promise<string> {
  const { handle } = await openRegularFile(file)
  try {
    const hash = createHash('sha256')
    for await (const chunk of handle.createReadStream({ autoClose: false, highWaterMark: 2 ** 20 })) hash.update(chunk)
    return hash.digest('hex')
  } catch (error) {
    throw fileError('read', file, error)
  } finally {
    await handle.close()
  }
}

/**
 * The key of the tokenised form of `files`: contents and their order, not paths or times, and everything else given.
 */
export async function encodingKey(
  files: readonly string[],
  identity: EncodingIdentity,
  reading: { fields?: unknown; onError?: string; form: string },
): Promise<string> {
  const contents: { type: string; sha256: string }[] = []
  for (const file of files) {
    const type = basename(file).replace(/^[^.]*/, '') // the endings decide how a file is read
    contents.push({ type, sha256: await hashFile(file) })
  }
  const parts = { version: FORMAT_VERSION, contents, identity, reading }
  return createHash('sha256').update(canonicalJson(parts)).digest('hex')
}

/** Where the cache for `key` lies. */
export function cachePath(directory: string, key: string): string {
  return join(directory, `encoded-${key.slice(0, 32)}.bin`)
}

/** Stores atomically; ERR_FILE when the system refuses. Numbers are little-endian. */
export async function writeCache(directory: string, key: string, content: CachedEncoding): Promise<void> {
  const { examples, badRows } = content
  const header: CacheHeader = { key, count: examples.count, tokens: examples.tokenCount, badRows }
  const json = Buffer.from(JSON.stringify(header))
  const prefix = Buffer.alloc(PREFIX_BYTES)
  prefix.write(MAGIC, 'latin1')
  prefix.writeUInt32LE(json.length, MAGIC.length)
  await makeFolder(directory).catch((error) => {
    throw fileError('create folder', directory, error)
  })
  await writeFileAtomic(cachePath(directory, key), async (append) => {
    const hash = createHash('sha256')
    for (const part of [prefix, json, examples.offsets, examples.ids, examples.mask]) {
      const bytes = new Uint8Array(part.buffer, part.byteOffset, part.byteLength)
      for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
        const piece = bytes.subarray(at, at + PIECE_BYTES)
        hash.update(piece)
        await append(piece)
      }
    }
    await append(hash.digest())
  })
}

/**
 * Reads what was stored under `key`; undefined when there is nothing. ERR_FORMAT (file, offset) when it is damaged: the
 * caller builds it again.
 */
export async function readCache(directory: string, key: string): Promise<CachedEncoding | undefined> {
  const path = cachePath(directory, key)
  let opened: Awaited<ReturnType<typeof openRegularFile>>
  try {
    opened = await openRegularFile(path)
  } catch (error) {
    if (error instanceof CaravanError && error.details.errno === 'ENOENT') return undefined
    throw error
  }
  try {
    return await readOpened(new HashedReader(opened.handle, path), opened.size, key)
  } finally {
    await opened.handle.close()
  }
}

/** Reads forward, keeping the hash of all that was read. */
class HashedReader {
  readonly hash: Hash = createHash('sha256')
  offset = 0

  constructor(
    readonly handle: FileHandle,
    readonly path: string,
  ) {}

  async next(length: number): Promise<Buffer<ArrayBuffer>> {
    const bytes = await readExactly(this.handle, this.path, { at: this.offset, length })
    for (let at = 0; at < length; at += PIECE_BYTES) this.hash.update(bytes.subarray(at, at + PIECE_BYTES))
    this.offset += length
    return bytes
  }

  fault(message: string, offset = this.offset): CaravanError {
    return new CaravanError('ERR_FORMAT', `${this.path}: byte ${offset}: ${message}`, {
      details: { file: this.path, offset },
      hint: 'the cache is built again; nothing needs to be done',
    })
  }
}

async function readOpened(reader: HashedReader, size: number, key: string): Promise<CachedEncoding> {
  const prefix = await reader.next(PREFIX_BYTES)
  const headerBytes = prefix.readUInt32LE(MAGIC.length)
  if (prefix.toString('latin1', 0, MAGIC.length) !== MAGIC || headerBytes > MAX_HEADER_BYTES) {
    throw reader.fault('not a cache of tokenised examples', 0)
  }
  const header = parseHeader(reader, await reader.next(headerBytes))
  if (header.key !== key) throw reader.fault('the cache belongs to other data or options', PREFIX_BYTES)
  const expected = PREFIX_BYTES + headerBytes + (header.count + 1) * 8 + header.tokens * 5 + HASH_BYTES
  if (size !== expected) throw reader.fault(`the file has ${size} bytes; its header says ${expected}`)
  const offsets = new Float64Array((await reader.next((header.count + 1) * 8)).buffer)
  const ids = new Int32Array((await reader.next(header.tokens * 4)).buffer)
  const mask = new Uint8Array((await reader.next(header.tokens)).buffer)
  const stored = await readExactly(reader.handle, reader.path, { at: reader.offset, length: HASH_BYTES })
  if (!reader.hash.digest().equals(stored)) throw reader.fault('the content does not match its SHA-256')
  return { examples: new EncodedExamples(ids, mask, offsets), badRows: header.badRows }
}

function parseHeader(reader: HashedReader, json: Buffer): CacheHeader {
  try {
    const header = JSON.parse(json.toString()) as CacheHeader
    const numbers = [header.count, header.tokens, header.badRows]
    if (numbers.every((value) => Number.isSafeInteger(value) && value >= 0)) return header
  } catch {
    // falls through to the same fault
  }
  throw reader.fault('the header is damaged', PREFIX_BYTES)
}

/** JSON with the keys of every object in order, so that equal values give equal text. */
function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, entry: unknown) => {
    const isPlain = typeof entry === 'object' && entry !== null && !Array.isArray(entry)
    return isPlain ? Object.fromEntries(Object.entries(entry).sort(([a], [b]) => (a < b ? -1 : 1))) : entry
  })
}
