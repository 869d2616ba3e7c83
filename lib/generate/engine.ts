// Generation: the scheduler says which rows go next, the model runs them against the cache, one small read a step
// brings the drawn tokens back, while the step behind it runs. Rows are computed by the very kernels of training and on
// its own weights, so log-probabilities are those of training, bit for bit.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { type CausalLm, readRows } from '../models/index.js'
import { embedding, PAGE_KEYS, sample } from '../ops/index.js'
import { readTogether, scope, Tensor, withoutTape } from '../tensor/index.js'
import { DecodePlans, type DrawnTensors } from './decode_plan.js'
import { cacheBytes, KeyValueCache, pagesFor } from './kv_cache.js'
import { checkOptions, type ResolvedRequest, resolveRequest } from './request.js'
import { RequestInbox, type RequestSource } from './request_inbox.js'
import {
  type Accepted,
  type FinishReason,
  pagesOf,
  type RowCopies,
  Scheduler,
  type Sequence,
  type Step,
} from './scheduler.js'
import { type DecodeTokens, TextStream } from './text_stream.js'

export interface GenerateOptions {
  /** Turns tokens into text, for streamed text and stop texts: (sequences) => tokenizer.decodeBatch(sequences). */
  decode?: DecodeTokens
  /** Seed of the requests that name none; default 0. */
  seed?: number
  /** Sequences in work at the same time; default 64. No result depends on it. */
  slots?: number
  /** Most rows of one forward pass, at least `slots`; default 2048. Bounds memory; no result depends on it. */
  stepRows?: number
  /** Tokens whose keys and values are kept, for all sequences in work; default: what the requests need, at most a
   *  quarter of the device's free memory. Further requests wait. No result depends on it. */
  cacheTokens?: number
  /** Ends the call with ERR_ABORTED. */
  signal?: AbortSignal
}

/** A new token of a sequence. */
export interface TokenEvent {
  type: 'token'
  /** Number of the request, and of the sample within it, from 0. */
  request: number
  sample: number
  token: number
  /** Natural logarithm of its probability under the model: what training computes for this token. NaN for a token that
   *  was not drawn but put there by the request's steering. */
  logprob: number
  /** Natural logarithm of the probability with which it was drawn, after temperature and filters. */
  drawnLogprob: number
  /** With `decode`: text that has become final with this token. All of them together are the text of the result. */
  text?: string
}

/** A whole sequence. */
export interface Generated {
  request: number
  sample: number
  /** New tokens, a stop token included. */
  tokens: Int32Array
  logprobs: Float32Array
  drawnLogprobs: Float32Array
  /** stop: a stop id or text. length: maxTokens or the end of the context. aborted: the request's signal. */
  finishReason: FinishReason
  /** With `decode`: the text, without the stop text. */
  text?: string
  stopText?: string
}

export type GenerateEvent = TokenEvent | ({ type: 'finished' } & Generated)

/** Rows of a step: enough for full-speed matrix products, small enough that a decoding step is not held up by prompts.
 *  */
const STEP_ROWS = 2048
const SLOTS = 64

/**
 * Generates for every request, as many at a time as fit, and yields tokens as they come and each sequence when it ends.
 * Requests from an async iterable are taken as they arrive, so that a service runs one call for ever. Tokens and bits
 * of a request depend on it and its seed alone. ERR_CONFIG names what is wrong with a request, ERR_OOM one that can
 * never fit, ERR_MODEL a model whose logits are not finite, ERR_ABORTED `signal`.
 */
export async function* generate(
  model: CausalLm,
  requests: RequestSource,
  options: GenerateOptions = {},
): AsyncGenerator<GenerateEvent, void, undefined> {
  for await (const events of new Session(model, requests, options).run()) yield* events
}

/** As `generate`, for all that is in `requests`: the sequences of each, in order. */
export async function generateAll(
  model: CausalLm,
  requests: Parameters<typeof generate>[1],
  options: GenerateOptions & { onProgress?: (progress: GenerateProgress) => void } = {},
): Promise<Generated[][]> {
  const results: Generated[][] = []
  const progress: GenerateProgress = { done: 0, tokens: 0 }
  for await (const events of new Session(model, requests, options).run()) {
    for (const event of events) {
      if (event.type === 'token') progress.tokens++
      else {
        const { type: _, ...result } = event
        results[result.request] ??= []
        results[result.request]![result.sample] = result
        progress.done++
      }
    }
    options.onProgress?.({ ...progress })
  }
  return results
}

export interface GenerateProgress {
  /** Finished sequences. */
  done: number
  /** New tokens so far. */
  tokens: number
}

/** What is kept of a sequence while it grows. */
interface Growing {
  tokens: number[]
  logprobs: number[]
  drawnLogprobs: number[]
  text: TextStream | undefined
}

/** What one step did to a sequence. */
interface Drawn {
  sequence: Sequence
  growing: Growing
  /** Its first new token. */
  from: number
  finishReason: 'stop' | 'length' | undefined
  /** With `decode`: text that has become final. */
  text: string | undefined
}

const listsOf = ({ tokens, logprobs, drawnLogprobs }: Growing) => [tokens, logprobs, drawnLogprobs]

function grow(
  { tokens, logprobs, drawnLogprobs }: Growing,
  one: { token: number; logprob: number; drawnLogprob: number },
): void {
  tokens.push(one.token)
  logprobs.push(one.logprob)
  drawnLogprobs.push(one.drawnLogprob)
}

/** What a step has drawn. */
interface Chosen {
  tokens: ArrayLike<number>
  logprobs: ArrayLike<number>
  drawnLogprobs: ArrayLike<number>
}

/** A step that has been given to the device. */
interface StepUnderWay {
  chosen: Promise<Chosen>
  /** Whether its tokens stay on the device for a step behind it. */
  chains: boolean
}

/** One call of `generate`. */
class Session {
  readonly #inbox: RequestInbox
  readonly #growing = new Map<Sequence, Growing>()
  /** Sequences still to come, by request. */
  readonly #unfinished = new Map<ResolvedRequest, number>()
  readonly #slots: number
  #scheduler: Scheduler | undefined
  #cache: KeyValueCache | undefined
  #plans: DecodePlans | undefined

  constructor(
    private readonly model: CausalLm,
    requests: RequestSource,
    private readonly options: GenerateOptions,
  ) {
    const { slots, stepRows, cacheTokens, seed = 0, signal, decode } = options
    checkOptions({ slots, stepRows, cacheTokens, seed }, signal)
    this.#slots = slots ?? SLOTS
    const limits = { config: model.config, decodes: decode !== undefined, seed }
    this.#inbox = new RequestInbox(requests, (request, index) => resolveRequest(request, index, limits))
  }

  /** The events of each step. The step behind it is under way before its tokens are read, where it can be: nothing
   *  depends on that, and the device need not wait for the host. */
  async *run(): AsyncGenerator<GenerateEvent[], void, undefined> {
    const { signal } = this.options
    let ahead: StepUnderWay | undefined
    try {
      for (;;) {
        throwIfAborted(signal)
        await this.#takeRequests()
        const aborted = this.#abortRequests()
        if (aborted.length > 0) yield aborted
        const underWay: StepUnderWay | undefined = ahead ?? this.#begin(this.#scheduler?.next())
        ahead = undefined
        if (underWay) {
          if (underWay.chains) ahead = this.#begin(this.#scheduler!.ahead())
          yield await this.#advance(this.#scheduler!, await underWay.chosen)
        } else if (this.#inbox.ended && (this.#scheduler?.idle ?? true)) return
      }
    } finally {
      await ahead?.chosen.catch(() => {})
      this.#plans?.dispose()
      this.#cache?.dispose()
      await this.#inbox.close()
    }
  }

  /** Queues what has arrived; waits for a request only when there is nothing else to do. */
  async #takeRequests(): Promise<void> {
    for (;;) {
      if ((this.#scheduler?.waitingCount ?? 0) >= this.#slots) return
      const idle = this.#scheduler?.idle ?? true
      const request = this.#inbox.take() ?? (idle ? await this.#inbox.wait(this.options.signal) : undefined)
      if (!request) return
      this.#scheduler ??= this.#open(request)
      this.#scheduler.add(request)
      this.#unfinished.set(request, request.samples)
    }
  }

  /** Makes the cache when the first request is there. */
  #open(first: ResolvedRequest): Scheduler {
    const { model, options } = this
    const { device, config } = model
    const dtype = model.dtype === 'bf16' ? 'bf16' : 'f32'
    const pages = options.cacheTokens ? pagesFor(options.cacheTokens) : this.#defaultPages(first)
    this.#cache = new KeyValueCache(device, config, { pages, dtype })
    this.#plans = new DecodePlans(model, this.#cache, this.#slots)
    const stepRows = Math.max(options.stepRows ?? STEP_ROWS, this.#slots)
    return new Scheduler({ pages, slots: this.#slots, stepRows })
  }

  #defaultPages(first: ResolvedRequest): number {
    const { device, config, dtype } = this.model
    const { budgetBytes, liveBytes } = device.stats()
    const pageBytes = cacheBytes(config, 1, dtype === 'bf16' ? 2 : 4)
    const affordable = Math.floor((budgetBytes - liveBytes) / 4 / pageBytes)
    const needs = this.#inbox.known?.map(pagesOf).map(({ each, common }, i) => ({
      each,
      all: common + this.#inbox.known![i]!.samples * (each - common),
    }))
    const longest = needs ? Math.max(...needs.map(({ each }) => each)) : pagesFor(config.contextTokens)
    const all = needs ? needs.reduce((sum, need) => sum + need.all, 0) : Infinity
    return Math.max(pagesOf(first).each, Math.min(affordable, all, this.#slots * longest))
  }

  #abortRequests(): GenerateEvent[] {
    const events: GenerateEvent[] = []
    for (const request of this.#unfinished.keys()) {
      if (!request.signal?.aborted) continue
      for (const sequence of this.#scheduler!.cancel(request)) events.push(this.#finished(sequence, 'aborted'))
    }
    return events
  }

  async #advance(scheduler: Scheduler, chosen: Chosen): Promise<GenerateEvent[]> {
    const drawn: Drawn[] = []
    for (const accepted of scheduler.accept(chosen.tokens)) {
      const { place } = accepted
      const [logprob, drawnLogprob] = [chosen.logprobs[place]!, chosen.drawnLogprobs[place]!]
      if (!Number.isFinite(logprob)) throw notFinite(accepted.sequence)
      const growing = this.#growingOf(accepted.sequence)
      grow(growing, { token: accepted.token, logprob, drawnLogprob })
      // A stop token is not text.
      if (accepted.finishReason !== 'stop') growing.text?.push(accepted.token)
      drawn.push(await this.#steered(scheduler, accepted, growing))
    }
    if (this.options.decode) await this.#decode(drawn, this.options.decode)
    return drawn.flatMap((one) => this.#events(scheduler, one))
  }

  /** Asks the request whether a sequence that has ended goes on. */
  async #steered(scheduler: Scheduler, { sequence, finishReason }: Accepted, growing: Growing): Promise<Drawn> {
    const from = growing.tokens.length - 1
    const { steering } = sequence.request
    if (!finishReason || !steering) return { sequence, growing, from, finishReason, text: undefined }
    const tokens = finishReason === 'stop' ? growing.tokens.slice(0, -1) : growing.tokens
    const next = await steering.next({ sample: sequence.sample, tokens, finishReason })
    if (!next || !scheduler.resume(sequence, next, finishReason)) {
      return { sequence, growing, from, finishReason, text: undefined }
    }
    if (finishReason === 'stop') for (const list of listsOf(growing)) list.pop()
    for (const token of next.append) {
      grow(growing, { token, logprob: Number.NaN, drawnLogprob: Number.NaN })
      growing.text?.push(token)
    }
    return { sequence, growing, from, finishReason: undefined, text: undefined }
  }

  #events(scheduler: Scheduler, { sequence, growing, from, finishReason, text }: Drawn): GenerateEvent[] {
    const { tokens, logprobs, drawnLogprobs } = growing
    const events = tokens.slice(from).map((token, i): GenerateEvent => {
      const [logprob, drawnLogprob] = [logprobs[from + i]!, drawnLogprobs[from + i]!]
      const piece = text === undefined ? {} : { text: i === 0 ? text : '' }
      return {
        type: 'token',
        request: sequence.request.index,
        sample: sequence.sample,
        token,
        logprob,
        drawnLogprob,
        ...piece,
      }
    })
    const reason = growing.text?.stopText === undefined ? finishReason : 'stop'
    if (!reason) return events
    scheduler.finish(sequence)
    return [...events, this.#finished(sequence, reason)]
  }

  /** Gives a step to the device. */
  #begin(step: Step | undefined): StepUnderWay | undefined {
    if (!step) return undefined
    this.#copyRows(this.#scheduler!.takeCopies())
    const planned = this.#plans!.run(step)
    const chosen = planned ? chosenOf(planned) : this.#runRows(step)
    chosen.catch(() => {}) // awaited later
    return { chosen, chains: planned !== undefined }
  }

  /** Runs a step that is none for a plan. */
  async #runRows(step: Step): Promise<Chosen> {
    const made = withoutTape(() =>
      scope(() => {
        const last = this.#lastHidden(step)
        return last && sample(last, this.model.head, step.draws)
      }),
    )
    if (!made) {
      await this.model.device.idle()
      return { tokens: [], logprobs: [], drawnLogprobs: [] }
    }
    try {
      return await chosenOf({ ...made })
    } finally {
      for (const tensor of Object.values(made)) tensor.dispose()
    }
  }

  #copyRows({ from, to }: RowCopies): void {
    if (from.length > 0) withoutTape(() => scope(() => this.#cache!.copy(this.#vector(from), this.#vector(to))))
  }

  #vector(data: Int32Array | number[]): Tensor {
    return Tensor.from(this.model.device, Int32Array.from(data), [data.length])
  }

  /** Runs the rows of `step` and returns the hidden rows from which tokens are to be drawn; none while prompts still go
   *  in. */
  #lastHidden({ ids, positions, cacheRows, segments, pages, lastRows }: Step): Tensor | undefined {
    const { model } = this
    this.#cache!.place({ rows: this.#vector(cacheRows), pages: this.#vector(pages) })
    const last = new Set(lastRows)
    const rows = {
      ids: this.#vector(ids),
      positions: this.#vector(positions),
      segments: Tensor.from(model.device, segments, [segments.length / 4, 4]),
      // Of prompts the last block needs keys and values alone.
      read: readRows(model.device, segments, (row) => last.has(row)),
    }
    const hidden = model.hidden(rows, { store: this.#cache! })
    if (lastRows.length === 0) return undefined
    const everyRow = lastRows.length === ids.length && lastRows.every((row, i) => row === i)
    // Picking rows of a table by index is what the embedding op does.
    return everyRow ? hidden : embedding(this.#vector(lastRows), hidden)
  }

  /** Works out the text that each sequence has gained. */
  async #decode(drawn: readonly Drawn[], decode: DecodeTokens): Promise<void> {
    const decoded = await decode(drawn.map(({ growing }) => growing.text!.window))
    for (const [i, one] of drawn.entries()) {
      one.text = one.growing.text!.take(decoded[i]!, one.finishReason !== undefined)
    }
    const long = drawn.map(({ growing }) => growing.text!).filter((text) => text.shorten())
    if (long.length === 0) return
    const bases = await decode(long.map(({ window }) => window))
    for (const [i, text] of long.entries()) text.rebase(bases[i]!)
  }

  #growingOf(sequence: Sequence): Growing {
    let one = this.#growing.get(sequence)
    if (!one) {
      const text = this.options.decode && new TextStream(sequence.request.stopTexts)
      one = { tokens: [], logprobs: [], drawnLogprobs: [], text }
      this.#growing.set(sequence, one)
    }
    return one
  }

  #finished(sequence: Sequence, finishReason: FinishReason): { type: 'finished' } & Generated {
    const { tokens, logprobs, drawnLogprobs, text } = this.#growingOf(sequence)
    this.#growing.delete(sequence)
    const left = this.#unfinished.get(sequence.request)! - 1
    if (left > 0) this.#unfinished.set(sequence.request, left)
    else this.#unfinished.delete(sequence.request)
    return {
      type: 'finished',
      request: sequence.request.index,
      sample: sequence.sample,
      tokens: Int32Array.from(tokens),
      logprobs: Float32Array.from(logprobs),
      drawnLogprobs: Float32Array.from(drawnLogprobs),
      finishReason,
      ...(text && { text: text.text }),
      ...(text?.stopText !== undefined && { stopText: text.stopText }),
    }
  }
}

async function chosenOf({ token, logp, drawnLogp }: DrawnTensors): Promise<Chosen> {
  const [tokens, logprobs, drawnLogprobs] = await readTogether([token, logp, drawnLogp])
  return { tokens: tokens!, logprobs: logprobs!, drawnLogprobs: drawnLogprobs! }
}

function notFinite({ request, sample }: Sequence): CaravanError {
  return new CaravanError(
    'ERR_MODEL',
    `request ${request.index}, sample ${sample}: the model gives logits that are not finite`,
    {
      details: { request: request.index, sample },
      hint: 'the weights may hold NaN or infinities; a bf16 run can be compared with f32',
    },
  )
}

/** Bytes of keys and values of one token. */
export function tokenBytes(model: CausalLm): number {
  return cacheBytes(model.config, 1, model.dtype === 'bf16' ? 2 : 4) / PAGE_KEYS
}
