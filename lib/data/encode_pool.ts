// The threads that tokenise. A pool of our own: it keeps order elsewhere, needs no queue library, and must pass typed
// errors on and stop at once when asked to.
import type { Worker } from 'node:worker_threads'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'
import type { EncodeReply, EncodeRequest, EncodeWorkerData } from './encode_worker.js'
import { type EncodedChunk, type EncoderModule, encodeChunk, loadEncoder, type RowEncoder } from './encoder.js'
import type { Row } from './rows.js'

/** Something that encodes chunks, `concurrency` of them at a time with profit. */
export interface ChunkEncoder {
  readonly concurrency: number
  encode(rows: Row[]): Promise<EncodedChunk>
  close(): Promise<void>
}

/** Encodes in the calling thread. */
export class LocalEncoder implements ChunkEncoder {
  readonly concurrency = 1
  readonly #encoder: Promise<RowEncoder>

  constructor(encoder: RowEncoder | EncoderModule) {
    this.#encoder = typeof encoder === 'function' ? Promise.resolve(encoder) : loadEncoder(encoder)
    this.#encoder.catch(() => {}) // reported with the first chunk, which awaits it
  }

  async encode(rows: Row[]): Promise<EncodedChunk> {
    return await encodeChunk(await this.#encoder, rows)
  }

  async close(): Promise<void> {}
}

interface Pending {
  resolve: (chunk: EncodedChunk) => void
  reject: (error: CaravanError) => void
}

interface Member {
  worker: Worker
  pending: Map<number, Pending>
}

/** Encodes in up to `count` worker threads: one is started when a chunk comes and all others have work. */
export class EncodePool implements ChunkEncoder {
  readonly concurrency: number
  readonly #workerData: EncodeWorkerData
  readonly #count: number
  readonly #members: Member[] = []
  #nextId = 0
  #failure: CaravanError | undefined

  constructor(encoder: EncoderModule, count: number) {
    this.concurrency = 2 * count // one in work and one waiting, for each thread
    this.#workerData = { module: encoder.module.href, options: encoder.options }
    this.#count = count
  }

  encode(rows: Row[]): Promise<EncodedChunk> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    const member = this.#leastBusy()
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      member.pending.set(id, { resolve, reject })
      member.worker.postMessage({ id, rows } satisfies EncodeRequest)
    })
  }

  #leastBusy(): Member {
    const [first, ...others] = this.#members
    if (first === undefined) return this.#start()
    const best = others.reduce((least, other) => (other.pending.size < least.pending.size ? other : least), first)
    return best.pending.size > 0 && this.#members.length < this.#count ? this.#start() : best
  }

  #start(): Member {
    const { Worker } = process.getBuiltinModule('node:worker_threads') // Loaded when it is needed: it takes long.
    const worker = new Worker(workerUrl(import.meta.url, './encode_worker.js'), { workerData: this.#workerData })
    const pending = new Map<number, Pending>()
    worker.on('message', (reply: EncodeReply) => settle(pending, reply))
    worker.on('error', (error) => this.#fail(pending, `a tokenising worker failed: ${error.message}`, error))
    worker.on('exit', (code) => this.#fail(pending, `a tokenising worker ended with code ${code}`))
    const member = { worker, pending }
    this.#members.push(member)
    return member
  }

  /** Ends the threads; chunks still in work are rejected. */
  async close(): Promise<void> {
    await Promise.all(this.#members.map(({ worker }) => worker.terminate()))
  }

  #fail(pending: Map<number, Pending>, message: string, cause?: unknown): void {
    this.#failure ??= new CaravanError('ERR_INTERNAL', message, { cause })
    for (const { reject } of pending.values()) reject(this.#failure)
    pending.clear()
  }
}

function settle(pending: Map<number, Pending>, reply: EncodeReply): void {
  const waiting = pending.get(reply.id)
  pending.delete(reply.id)
  if ('chunk' in reply) waiting?.resolve(reply.chunk)
  else waiting?.reject(new CaravanError(reply.error.code, reply.error.message, reply.error))
}
