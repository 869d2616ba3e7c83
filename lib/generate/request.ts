// What can be asked of the engine, and what every field may hold. A request is checked whole before anything runs.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { philox } from '../base/random.js'
import type { DecoderConfig } from '../models/index.js'
import type { SampleSettings } from '../ops/index.js'

/** Where a sequence goes on that would have ended. */
export interface Continuation {
  /** Tokens that are put behind it; a stop token that ended it is taken away first. */
  append: Int32Array
  /** Most tokens that are drawn before it ends again. */
  maxTokens: number
  stopIds: readonly number[]
}

/** Parts of a sequence that are more than one: what the first may have, and what follows a part that ended. */
export interface Steering {
  /** Most tokens of the first part; `maxTokens` of the request is for all of them, appended ones included. */
  maxTokens: number
  /** Asked when a part has ended; undefined ends the sequence, as does the lack of room. */
  next(ended: EndedPart): Continuation | undefined | Promise<Continuation | undefined>
}

export interface EndedPart {
  sample: number
  /** All new tokens, without the stop token. */
  tokens: readonly number[]
  finishReason: 'stop' | 'length'
}

export interface GenerateRequest extends Partial<SampleSettings> {
  prompt: Int32Array
  /** Most new tokens of a sequence; fewer where the model's context ends. */
  maxTokens: number
  /** Tokens that end a sequence; the one that did is its last token. None: only the length ends it. */
  stopIds?: readonly number[]
  /** Texts that end a sequence; the result's text stops before the one that did. Needs the option `decode`. */
  stopTexts?: readonly string[]
  /** Decides the random numbers of this request, together with sample and position: its tokens depend on nothing that
   *  is generated beside it. Default: drawn from the seed of the call and the number of the request. */
  seed?: number
  /** Sequences that go on from the prompt, which is computed once; default 1. */
  samples?: number
  /** Lets a sequence go on where it would have ended; its keys and values stay. */
  steering?: Steering
  /** Ends the sequences of this request with reason 'aborted'. */
  signal?: AbortSignal
}

/** A request with every default filled in. */
export interface ResolvedRequest {
  index: number
  prompt: Int32Array
  maxTokens: number
  settings: SampleSettings
  stopIds: ReadonlySet<number>
  stopTexts: readonly string[]
  seed: number
  samples: number
  steering: Steering | undefined
  signal: AbortSignal | undefined
}

/** What a request is checked against. */
export interface RequestLimits {
  config: Pick<DecoderConfig, 'V' | 'contextTokens'>
  /** Whether tokens can be turned into text. */
  decodes: boolean
  /** Seed of the call. */
  seed: number
}

/** Stream of the seeds that requests get from the seed of their call. */
const SEED_STREAM = 0x72
const MOST_SEED = 2 ** 53 - 1

interface Range {
  /** What is allowed, for the message. */
  wanted: string
  holds(value: number): boolean
}

const atLeastOne: Range = {
  wanted: 'an integer from 1 to 2^24',
  holds: (x) => Number.isInteger(x) && x >= 1 && x <= 2 ** 24,
}

/** Temperatures below this are not told from zero by f32 arithmetic on logits. */
const LEAST_TEMPERATURE = 1e-4

const ranges: { [field: string]: Range } = {
  maxTokens: atLeastOne,
  samples: atLeastOne,
  seed: {
    wanted: 'an integer from 0 to 2^53 - 1',
    holds: (x) => Number.isSafeInteger(x) && x >= 0 && x <= MOST_SEED,
  },
  temperature: {
    wanted: `0 (the most probable token) or from ${LEAST_TEMPERATURE} to 10^4`,
    holds: (x) => x === 0 || (x >= LEAST_TEMPERATURE && x <= 1e4),
  },
  topK: { wanted: 'an integer >= 0 (0: off)', holds: (x) => Number.isInteger(x) && x >= 0 },
  topP: { wanted: 'above 0 and at most 1 (1: off)', holds: (x) => x > 0 && x <= 1 },
  minP: { wanted: 'from 0 (off) to 1', holds: (x) => x >= 0 && x <= 1 },
  repetitionPenalty: {
    wanted: 'from 0.01 to 100 (1: off)',
    holds: (x) => x >= 0.01 && x <= 100,
  },
}

/** Fills in the defaults of request number `index` and checks it: ERR_CONFIG says which field of which request, what it
 *  may hold and what it held. */
export function resolveRequest(request: GenerateRequest, index: number, limits: RequestLimits): ResolvedRequest {
  const { prompt, stopTexts = [], steering, signal } = request
  const { V, contextTokens } = limits.config
  const numbers = {
    maxTokens: request.maxTokens,
    samples: request.samples ?? 1,
    seed: request.seed ?? seedOf(limits.seed, index),
    temperature: request.temperature ?? 1,
    topK: request.topK ?? 0,
    topP: request.topP ?? 1,
    minP: request.minP ?? 0,
    repetitionPenalty: request.repetitionPenalty ?? 1,
  }
  for (const [field, value] of Object.entries(numbers)) {
    if (typeof value === 'number' && ranges[field]!.holds(value)) continue
    throw fault(index, `${field} must be ${ranges[field]!.wanted}; got ${value}`, { field, value })
  }
  checkPrompt(prompt, index, limits.config)
  const stopIds = new Set(request.stopIds)
  for (const id of stopIds) checkId(id, { index, what: 'stop id', V })
  if (steering && !atLeastOne.holds(steering.maxTokens)) {
    throw fault(index, `steering.maxTokens must be ${atLeastOne.wanted}; got ${steering.maxTokens}`, {})
  }
  checkStopTexts(stopTexts, index, limits.decodes)
  const { maxTokens, samples, seed, ...settings } = numbers
  return {
    index,
    prompt,
    maxTokens: Math.min(maxTokens, contextTokens - prompt.length),
    settings,
    stopIds,
    stopTexts,
    seed,
    samples,
    steering,
    signal,
  }
}

function seedOf(seed: number, index: number): number {
  const [low, high] = philox(seed, SEED_STREAM, index)
  return (high >>> 11) * 2 ** 32 + low
}

function checkPrompt(prompt: Int32Array, index: number, { V, contextTokens }: RequestLimits['config']): void {
  if (!(prompt instanceof Int32Array)) throw fault(index, 'prompt must be an Int32Array of token ids', {})
  if (prompt.length === 0) {
    throw fault(index, 'the prompt is empty; there is nothing to continue', {
      hint: 'begin it with the beginning-of-text token',
    })
  }
  if (prompt.length >= contextTokens) {
    const wanted = `shorter than the context of ${contextTokens} tokens`
    throw fault(index, `the prompt must be ${wanted}; it has ${prompt.length}`, {
      tokens: prompt.length,
      contextTokens,
      hint: 'shorten the prompt: what does not fit would be seen by no layer as it was trained',
    })
  }
  for (const [position, id] of prompt.entries()) checkId(id, { index, what: `token ${position} of the prompt`, V })
}

function checkId(id: number, { index, what, V }: { index: number; what: string; V: number }): void {
  if (Number.isInteger(id) && id >= 0 && id < V) return
  throw fault(index, `${what} must be an id from 0 to ${V - 1} of this model; got ${id}`, {
    id,
    hint: 'use the tokenizer of this model',
  })
}

function checkStopTexts(texts: readonly string[], index: number, decodes: boolean): void {
  if (texts.includes('')) throw fault(index, 'a stop text must not be empty: it would end every sequence at once', {})
  if (texts.length > 0 && !decodes) {
    throw fault(index, 'stop texts need the option `decode`, which turns tokens into text', {
      hint: 'pass decode: (sequences) => tokenizer.decodeBatch(sequences), or use stopIds',
    })
  }
}

function fault(index: number, what: string, { hint, ...details }: { hint?: string; [detail: string]: unknown }) {
  return new CaravanError('ERR_CONFIG', `request ${index}: ${what}`, { details: { request: index, ...details }, hint })
}

/** Options of a call that are whole numbers, checked. */
export function checkOptions(options: { [name: string]: number | undefined }, signal: AbortSignal | undefined): void {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue
    const range = name === 'seed' ? ranges.seed! : atLeastOne
    if (range.holds(value)) continue
    throw new CaravanError('ERR_CONFIG', `${name} must be ${range.wanted}; got ${value}`, {
      details: { [name]: value },
    })
  }
  throwIfAborted(signal)
}
