// Reads parquet rows through a child process with limits on memory and time, so that no file, whatever its pages claim,
// can crash, hang or bloat the program that reads it. Rows come row group by row group, on demand.
import { type ChildProcess, fork } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'
import type { JsonObject } from './json_lines.js'
import type { ParquetReply, ParquetRequest } from './parquet_process.js'

export interface ParquetOptions {
  /** Limit of the decoder's resident memory and heap, in MiB. Default 2048. */
  maxMemoryMiB?: number
  /** Limit of the decompressed size of one row group. Default 1 GiB. */
  maxGroupBytes?: number
  /** Time for one answer of the decoder (at most one row group). Default 120 s. */
  timeoutMs?: number
  signal?: AbortSignal
  /** A decoder to use and keep, for reading many files; without one, each call starts and ends its own. */
  decoder?: ParquetDecoder
}

/** A row of a file; `line` is its number from 1. */
export interface ParquetRow {
  row: JsonObject
  line: number
  rowGroup: number
}

const MAX_BATCH_ROWS = 512
const MEMORY_CHECK_MS = 200
const PAGE_BYTES = 4096

/**
 * Reads all rows of a parquet file. ERR_FORMAT (file, row group) for a damaged file and for one that exceeds the
 * limits of memory or time, ERR_FILE when it cannot be read.
 */
export async function* readParquet(file: string, options: ParquetOptions = {}): AsyncGenerator<ParquetRow> {
  const { maxGroupBytes = 2 ** 30, signal } = options
  const decoder = options.decoder ?? new ParquetDecoder(options)
  try {
    throwIfAborted(signal)
    await decoder.ask(file, { kind: 'open', file, maxGroupBytes, maxBatchRows: MAX_BATCH_ROWS })
    for (;;) {
      throwIfAborted(signal)
      const reply = await decoder.ask(file, { kind: 'rows' })
      if (reply.kind !== 'rows') return
      const { rowGroup, firstRow } = reply
      for (const [i, row] of reply.rows.entries()) yield { row, line: firstRow + i + 1, rowGroup }
    }
  } finally {
    if (options.decoder === undefined) decoder.close()
  }
}

/** A decoder process, started on first use and again after a crash. One file at a time; call `close` at the end. */
export class ParquetDecoder {
  readonly #maxMemoryMiB: number
  readonly #timeoutMs: number
  #child: ChildProcess | undefined
  #rowGroup: number | undefined

  constructor(options: Pick<ParquetOptions, 'maxMemoryMiB' | 'timeoutMs'> = {}) {
    this.#maxMemoryMiB = options.maxMemoryMiB ?? 2048
    this.#timeoutMs = options.timeoutMs ?? 120_000
  }

  /** Sends one request and waits for its answer; an error of the child, or its end, is thrown. */
  async ask(file: string, request: ParquetRequest): Promise<ParquetReply> {
    if (request.kind === 'open') this.#rowGroup = undefined
    const reply = await this.#exchange(file, request)
    if (reply.kind === 'rows') this.#rowGroup = reply.rowGroup
    if (reply.kind !== 'error') return reply
    throw new CaravanError(reply.code, reply.message, { details: reply.details, hint: reply.hint })
  }

  close(): void {
    this.#child?.kill('SIGKILL')
    this.#child = undefined
  }

  #start(): ChildProcess {
    const entry = fileURLToPath(workerUrl(import.meta.url, './parquet_process.js'))
    if (!existsSync(entry)) {
      throw new CaravanError('ERR_INTERNAL', `the parquet decoder is not built: ${entry} is missing`, {
        details: { file: entry },
        hint: 'run `npm run build`',
      })
    }
    const child = fork(entry, {
      serialization: 'advanced',
      execArgv: [`--max-old-space-size=${this.#maxMemoryMiB}`],
      env: {},
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    })
    // The process that reads must be able to end while a decoder sits idle.
    child.unref()
    child.channel?.unref()
    return child
  }

  async #exchange(file: string, request: ParquetRequest): Promise<ParquetReply> {
    this.#child ??= this.#start()
    const child = this.#child
    child.channel?.ref()
    let verdict: string | undefined
    const stop = (reason: string) => {
      verdict ??= reason
      child.kill('SIGKILL')
    }
    const timer = setTimeout(() => stop(`took longer than ${this.#timeoutMs} ms`), this.#timeoutMs)
    const watch = setInterval(() => {
      if (residentMiB(child.pid) > this.#maxMemoryMiB) stop(`needs more than ${this.#maxMemoryMiB} MiB`)
    }, MEMORY_CHECK_MS)
    try {
      return await new Promise<ParquetReply>((resolve, reject) => {
        const onEnd = (reason: string) => {
          child.removeAllListeners()
          if (this.#child === child) this.#child = undefined
          reject(this.#decoderEnded(file, verdict ?? reason))
        }
        child.once('message', (reply: ParquetReply) => {
          child.removeAllListeners()
          resolve(reply)
        })
        child.once('exit', (code, signal) => onEnd(describeExit(code, signal, this.#maxMemoryMiB)))
        child.once('error', (error) => onEnd(`could not be decoded: ${error.message}`))
        child.send(request, (error) => error && onEnd(`could not be decoded: ${error.message}`))
      })
    } finally {
      clearTimeout(timer)
      clearInterval(watch)
      child.channel?.unref()
    }
  }

  #decoderEnded(file: string, reason: string): CaravanError {
    const rowGroup = this.#rowGroup
    const where = rowGroup === undefined ? 'footer or row group 0' : `row group ${rowGroup} or ${rowGroup + 1}`
    return new CaravanError('ERR_FORMAT', `${file}: ${where}: decoding ${reason}`, {
      details: { file, rowGroup, part: where },
      hint: 'the file is damaged or hostile; if you trust it, write it with smaller row groups or raise the limits',
    })
  }
}

function describeExit(code: number | null, signal: string | null, maxMemoryMiB: number): string {
  // 134 and SIGABRT are how V8 ends when its heap is exhausted; SIGTRAP and 133 when one object is too large.
  const outOfMemory = signal === 'SIGABRT' || signal === 'SIGTRAP' || code === 134 || code === 133
  if (outOfMemory) return `needs more than ${maxMemoryMiB} MiB`
  return `ended with ${signal ?? `code ${code}`}`
}

/** Resident memory of a process, where the system tells (Linux); else 0, and the heap limit and time limit remain. */
function residentMiB(pid: number | undefined): number {
  if (pid === undefined || process.platform !== 'linux') return 0
  try {
    return (Number(readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ')[1]) * PAGE_BYTES) / 2 ** 20
  } catch {
    return 0 // it has just ended
  }
}
