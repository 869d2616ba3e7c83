// Tokenises a dataset, in worker threads or in the calling one, in order, with a cache on disk. The cache is an aid
// only: when it is damaged or cannot be written, the result is the same and the problem is reported beside it.
import { availableParallelism } from 'node:os'
import { CaravanError, throwIfAborted } from '../base/errors.js'
import type { Dataset, DatasetRow } from './dataset.js'
import { type EncodingIdentity, encodingKey, readCache, writeCache } from './encode_cache.js'
import { type ChunkEncoder, EncodePool, LocalEncoder } from './encode_pool.js'
import { EncodedBuilder, type EncodedExamples } from './encoded.js'
import type { EncodedChunk, EncoderModule, RowEncoder } from './encoder.js'
import { singleRows } from './rows.js'

export interface EncodeProgress {
  rows: number
  /** Where it was given. */
  total?: number
  tokens: number
}

export interface EncodeOptions {
  /** A function works in the calling thread; a module can be loaded by worker threads. */
  encoder: RowEncoder | EncoderModule
  /** Worker threads for an encoder module; 0 loads it in the calling thread. Default: one per core. */
  workers?: number
  /** Rows per chunk. Default 256. */
  chunkRows?: number
  /** How many rows there are, where that is known, for progress. */
  total?: number
  onProgress?: (progress: EncodeProgress) => void
  signal?: AbortSignal
  cache?: { directory: string; identity: EncodingIdentity }
}

export interface EncodeResult {
  /** One per converted row of the dataset, in order. */
  examples: EncodedExamples
  /** Rows left out because they were bad (`onError: 'skip-and-count'`). */
  badRows: number
  cacheUse: 'off' | 'hit' | 'written' | 'not-written'
  /** Why the cache was not usable, or could not be written. */
  cacheProblem?: CaravanError
}

/**
 * Tokenises all rows of a dataset. Errors of the data and of the encoder are thrown with their code and details, with
 * file and line where the encoder says which row failed; ERR_ABORTED when the signal fires.
 */
export async function encodeDataset(dataset: Dataset, options: EncodeOptions): Promise<EncodeResult> {
  const { cache } = options
  if (cache === undefined) {
    const examples = await encodeRows(dataset.rows(), options)
    return { examples, badRows: dataset.counts.badRows, cacheUse: 'off' }
  }
  const { fields, onError, form = singleRows } = dataset.options
  const key = await encodingKey(dataset.files, cache.identity, { fields, onError, form: form.name })
  let cacheProblem: CaravanError | undefined
  try {
    const stored = await readCache(cache.directory, key)
    if (stored !== undefined) return { ...stored, cacheUse: 'hit' }
  } catch (error) {
    cacheProblem = asCacheProblem(error)
  }
  const examples = await encodeRows(dataset.rows(), options)
  const { badRows } = dataset.counts
  try {
    await writeCache(cache.directory, key, { examples, badRows })
    return { examples, badRows, cacheUse: 'written', cacheProblem }
  } catch (error) {
    return { examples, badRows, cacheUse: 'not-written', cacheProblem: asCacheProblem(error) }
  }
}

/** Tokenises a stream of rows in chunks; results keep the order of the rows. */
export async function encodeRows(rows: AsyncIterable<DatasetRow>, options: EncodeOptions): Promise<EncodedExamples> {
  const { chunkRows = 256, signal, total, onProgress } = options
  requireWhole('chunkRows', chunkRows, 1)
  throwIfAborted(signal)
  const encoder = startEncoder(options)
  const builder = new EncodedBuilder()
  const running: { rows: DatasetRow[]; result: Promise<EncodedChunk> }[] = []
  const abort = abortPromise(signal)
  const takeFirst = async () => {
    const { rows: chunkOf, result } = running.shift()!
    const chunk = await Promise.race([result, abort.promise]).catch((error) => {
      throw withPlace(error, chunkOf)
    })
    appendChunk(builder, chunk)
    onProgress?.({ rows: builder.count, total, tokens: builder.tokenCount })
  }
  try {
    for await (const chunk of chunksOf(rows, chunkRows)) {
      throwIfAborted(signal)
      const result = encoder.encode(chunk.map(({ row }) => row))
      result.catch(() => {}) // awaited in order; until then a failure must not count as unhandled
      running.push({ rows: chunk, result })
      if (running.length >= encoder.concurrency) await takeFirst()
    }
    while (running.length > 0) await takeFirst()
    return builder.finish()
  } finally {
    abort.release()
    await encoder.close()
  }
}

function startEncoder(options: EncodeOptions): ChunkEncoder {
  const { encoder, workers = availableParallelism() } = options
  requireWhole('workers', workers, 0)
  return typeof encoder === 'function' || workers === 0 ? new LocalEncoder(encoder) : new EncodePool(encoder, workers)
}

async function* chunksOf(rows: AsyncIterable<DatasetRow>, size: number): AsyncGenerator<DatasetRow[]> {
  let chunk: DatasetRow[] = []
  for await (const row of rows) {
    chunk.push(row)
    if (chunk.length < size) continue
    yield chunk
    chunk = []
  }
  if (chunk.length > 0) yield chunk
}

function appendChunk(builder: EncodedBuilder, chunk: EncodedChunk): void {
  let at = 0
  for (const length of chunk.lengths) {
    const end = at + length
    builder.append({ ids: chunk.ids.subarray(at, end), mask: chunk.mask.subarray(at, end) })
    at = end
  }
}

/** Rejects with ERR_ABORTED when the signal fires, so that waiting for a worker ends at once. */
function abortPromise(signal: AbortSignal | undefined): { promise: Promise<never>; release: () => void } {
  let onAbort = () => {}
  const promise = new Promise<never>((_, reject) => {
    onAbort = () => reject(new CaravanError('ERR_ABORTED', 'tokenising was aborted', { cause: signal?.reason }))
    signal?.addEventListener('abort', onAbort)
  })
  promise.catch(() => {})
  return { promise, release: () => signal?.removeEventListener('abort', onAbort) }
}

/** Adds where the failing row stands in its file, when the encoder says which row of the chunk it was. */
function withPlace(error: unknown, rows: DatasetRow[]): unknown {
  if (!(error instanceof CaravanError) || error.code === 'ERR_ABORTED' || error.details.file !== undefined) return error
  const index = error.details.row
  const exact = typeof index === 'number' ? rows[index] : undefined
  const first = rows[0]!
  const { file, line } = exact ?? first
  const others = exact === undefined ? rows.length - 1 : 0
  const doubt = others === 0 ? '' : others === 1 ? ' or the next row' : ` or one of the next ${others} rows`
  const place = `${file}:${line}${doubt}`
  return new CaravanError(error.code, `${place}: ${error.message}`, {
    details: { ...error.details, file, line },
    hint: error.hint,
    cause: error,
  })
}

function asCacheProblem(error: unknown): CaravanError {
  if (error instanceof CaravanError) return error
  const reason = error instanceof Error ? error.message : String(error)
  return new CaravanError('ERR_FORMAT', `the cache of tokenised examples could not be used: ${reason}`, {
    cause: error,
  })
}

function requireWhole(name: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return
  throw new CaravanError('ERR_CONFIG', `${name} must be an integer >= ${least}; got ${value}`, {
    details: { name, value },
  })
}
