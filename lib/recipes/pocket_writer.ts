// Writes the base corpus of the pocket run in a thread of its own, while the caller trains a tokenizer on its beginning
// and tokenises what is there: both take about as long.
import type { Worker } from 'node:worker_threads'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'

/** Texts of one answer. */
const CHUNK_TEXTS = 256
/** Answers that may wait for the caller: what is written while a tokenizer is trained on the first, and little more. */
const AHEAD = 80

export interface PocketWriterData {
  seed: number
  chunkTexts: number
}

/** What the thread is told: how many more chunks to write. */
export type PocketWriterRequest = number

interface Waiting {
  resolve: (texts: string[]) => void
  reject: (error: CaravanError) => void
}

/** The endless documents of `pocketData(seed).baseDocuments()`, a chunk at a time. */
export class PocketWriter {
  readonly #worker: Worker
  readonly #written: string[][] = []
  #waiting: Waiting | undefined
  #failure: CaravanError | undefined

  constructor(seed: number, ahead = AHEAD) {
    const { Worker } = process.getBuiltinModule('node:worker_threads') // Loaded when it is needed: it takes long.
    const workerData: PocketWriterData = { seed, chunkTexts: CHUNK_TEXTS }
    this.#worker = new Worker(workerUrl(import.meta.url, './pocket_writer_worker.js'), { workerData })
    this.#worker.on('message', (texts: string[]) => {
      this.#written.push(texts)
      this.#answer()
    })
    this.#worker.on('error', (error) => this.#fail(`the thread that writes the corpus failed: ${error.message}`, error))
    this.#worker.on('exit', (code) => this.#fail(`the thread that writes the corpus ended with code ${code}`))
    this.#worker.postMessage(ahead satisfies PocketWriterRequest)
  }

  /** The next documents, in order. One call at a time. */
  next(): Promise<string[]> {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject }
      this.#answer()
    })
  }

  /** Ends the thread. */
  async close(): Promise<void> {
    await this.#worker.terminate()
  }

  #answer(): void {
    if (this.#waiting === undefined) return
    const texts = this.#written.shift()
    if (texts !== undefined) {
      this.#worker.postMessage(1 satisfies PocketWriterRequest)
      this.#waiting.resolve(texts)
    } else if (this.#failure !== undefined) this.#waiting.reject(this.#failure)
    else return
    this.#waiting = undefined
  }

  #fail(message: string, cause?: unknown): void {
    this.#failure ??= new CaravanError('ERR_INTERNAL', message, { cause })
    this.#answer()
  }
}
