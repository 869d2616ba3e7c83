// Requests on their way into the engine, from a list, an iterable or a stream that another part of the program feeds.
// A list is checked whole before anything runs; from a stream one request at a time is asked for in advance.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import type { GenerateRequest, ResolvedRequest } from './request.js'

export type RequestSource = Iterable<GenerateRequest> | AsyncIterable<GenerateRequest>

type Resolve = (request: GenerateRequest, index: number) => ResolvedRequest
type Result = IteratorResult<GenerateRequest>

export class RequestInbox {
  /** All requests, where they are known beforehand. */
  readonly known: readonly ResolvedRequest[] | undefined
  readonly #iterator: Iterator<ResolvedRequest> | AsyncIterator<GenerateRequest>
  #pending: Promise<void> | undefined
  #arrived: Result | undefined
  #failure: { error: unknown } | undefined
  #ended = false
  #count = 0

  constructor(
    source: RequestSource,
    private readonly resolve: Resolve,
  ) {
    if (Symbol.asyncIterator in source) this.#iterator = source[Symbol.asyncIterator]()
    else {
      this.known = Array.from(source, resolve)
      this.#iterator = this.known[Symbol.iterator]()
    }
  }

  /** No further request will come. */
  get ended(): boolean {
    return this.#ended
  }

  /** The next request, if it is there. */
  take(): ResolvedRequest | undefined {
    if (this.#ended) return undefined
    if (this.known) {
      const { value, done } = (this.#iterator as Iterator<ResolvedRequest>).next()
      if (done) this.#ended = true
      return done ? undefined : value
    }
    this.#ask()
    if (this.#failure) throw this.#failure.error
    const arrived = this.#arrived
    if (!arrived) return undefined
    this.#arrived = undefined
    if (arrived.done) {
      this.#ended = true
      return undefined
    }
    const request = this.resolve(arrived.value, this.#count++)
    this.#ask()
    return request
  }

  /** The next request, or undefined when there is none any more. ERR_ABORTED when `signal` fires before it comes. */
  async wait(signal: AbortSignal | undefined): Promise<ResolvedRequest | undefined> {
    if (this.#ended || this.known) return this.take()
    this.#ask()
    await settledOrAborted(this.#pending!, signal)
    return this.take()
  }

  /** Tells the source that nothing more is wanted. One that is busy is not waited for. */
  async close(): Promise<void> {
    if (this.#ended || this.known) return
    this.#ended = true
    const closing = (this.#iterator as AsyncIterator<GenerateRequest>).return?.()
    if (this.#arrived === undefined && this.#pending) closing?.catch(() => {})
    else await closing
  }

  #ask(): void {
    if (this.#pending || this.#arrived || this.#failure) return
    this.#pending = Promise.resolve((this.#iterator as AsyncIterator<GenerateRequest>).next()).then(
      (result) => {
        this.#arrived = result
        this.#pending = undefined
      },
      (error: unknown) => {
        this.#failure = { error }
        this.#pending = undefined
      },
    )
  }
}

async function settledOrAborted(pending: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  throwIfAborted(signal)
  if (!signal) return pending
  let stop = () => {}
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(new CaravanError('ERR_ABORTED', 'the operation was aborted', { cause: signal.reason }))
    signal.addEventListener('abort', stop, { once: true })
  })
  try {
    await Promise.race([pending, aborted])
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
