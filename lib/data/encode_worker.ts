// Entry of a tokenising worker thread: makes its encoder once, then answers chunks of rows one by one.
import { parentPort, workerData } from 'node:worker_threads'
import { CaravanError, type ErrorCode } from '../base/errors.js'
import { type EncodedChunk, encodeChunk, loadEncoder } from './encoder.js'
import type { Row } from './rows.js'

export interface EncodeWorkerData {
  /** href of the encoder module. */
  module: string
  options: unknown
}

export interface EncodeRequest {
  id: number
  rows: Row[]
}

/** An error without its class, which structured cloning loses. */
export interface PlainError {
  code: ErrorCode
  message: string
  details: Record<string, unknown>
  hint?: string
}

export type EncodeReply = { id: number; chunk: EncodedChunk } | { id: number; error: PlainError }

const port = parentPort!
const { module, options } = workerData as EncodeWorkerData
const encoder = loadEncoder({ module: new URL(module), options })
encoder.catch(() => {}) // reported with the first chunk, which awaits it

port.on('message', async ({ id, rows }: EncodeRequest) => {
  try {
    const chunk = await encodeChunk(await encoder, rows)
    port.postMessage({ id, chunk } satisfies EncodeReply, [
      chunk.lengths.buffer as ArrayBuffer,
      chunk.ids.buffer as ArrayBuffer,
      chunk.mask.buffer as ArrayBuffer,
    ])
  } catch (error) {
    port.postMessage({ id, error: plain(error) } satisfies EncodeReply)
  }
})

function plain(error: unknown): PlainError {
  if (error instanceof CaravanError) {
    // Details are data by contract; going through JSON guarantees that they can be posted.
    const details = JSON.parse(JSON.stringify(error.details)) as Record<string, unknown>
    return { code: error.code, message: error.message, details, hint: error.hint }
  }
  const message = error instanceof Error ? error.message : String(error)
  return { code: 'ERR_INTERNAL', message: `the encoder failed: ${message}`, details: {} }
}
