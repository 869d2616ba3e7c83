// What this layer knows of tokenising: a function from rows to tokens. The module that makes it (lib/text) is named by
// URL and imported at run time, in this thread or in workers, so that data stays free of any tokenizer.
import { CaravanError } from '../base/errors.js'
import type { Encoded } from './encoded.js'
import { NO_TARGET } from './pack.js'
import type { Row } from './rows.js'

/**
 * Tokenises rows: one result per row, in order; empty where a row gives no tokens. An error may say which row by
 * `details.row`, its index in the list.
 */
export type RowEncoder = (rows: Row[]) => Promise<Encoded[]>

/** A module that exports `createEncoder(options): Promise<RowEncoder>`; `options` must survive structured cloning. */
export interface EncoderModule {
  module: URL
  options: unknown
}

/** Tokenised rows end to end, as they travel between threads. */
export interface EncodedChunk {
  lengths: Int32Array
  ids: Int32Array
  mask: Uint8Array
}

/** Imports the module and makes its encoder; ERR_CONFIG when it exports none. */
export async function loadEncoder(source: EncoderModule): Promise<RowEncoder> {
  const exported: { createEncoder?: unknown } = await import(source.module.href)
  if (typeof exported.createEncoder !== 'function') {
    throw new CaravanError('ERR_CONFIG', `the encoder module ${source.module.href} does not export createEncoder`, {
      details: { module: source.module.href },
    })
  }
  return (await exported.createEncoder(source.options)) as RowEncoder
}

/** Encodes a list of rows; those that hold ids already do not reach the encoder. */
export async function encodeChunk(encoder: RowEncoder, rows: Row[]): Promise<EncodedChunk> {
  const results = new Array<Encoded>(rows.length)
  const forEncoder: number[] = []
  for (const [i, row] of rows.entries()) {
    if (row.kind === 'ids') {
      results[i] = { ids: row.inputIds, mask: Uint8Array.from(row.labels, (label) => (label === NO_TARGET ? 0 : 1)) }
    } else forEncoder.push(i)
  }
  if (forEncoder.length > 0) {
    const encoded = await encodeSome(encoder, rows, forEncoder)
    for (const [k, i] of forEncoder.entries()) results[i] = encoded[k]!
  }
  return joinResults(results)
}

async function encodeSome(encoder: RowEncoder, rows: Row[], indices: number[]): Promise<Encoded[]> {
  let encoded: Encoded[]
  try {
    encoded = await encoder(indices.map((i) => rows[i]!))
  } catch (error) {
    if (!(error instanceof CaravanError) || typeof error.details.row !== 'number') throw error
    const { code, message, hint, cause } = error
    throw new CaravanError(code, message, {
      details: { ...error.details, row: indices[error.details.row] },
      hint,
      cause,
    })
  }
  if (encoded.length === indices.length) return encoded
  throw new CaravanError('ERR_INTERNAL', `the encoder returned ${encoded.length} results for ${indices.length} rows`)
}

function joinResults(results: Encoded[]): EncodedChunk {
  const lengths = Int32Array.from(results, ({ ids }) => ids.length)
  const total = lengths.reduce((sum, length) => sum + length, 0)
  const chunk: EncodedChunk = { lengths, ids: new Int32Array(total), mask: new Uint8Array(total) }
  let at = 0
  for (const { ids, mask } of results) {
    if (mask.length !== ids.length) {
      throw new CaravanError('ERR_INTERNAL', `the encoder returned ${ids.length} ids with ${mask.length} mask values`)
    }
    chunk.ids.set(ids, at)
    chunk.mask.set(mask, at)
    at += ids.length
  }
  return chunk
}
