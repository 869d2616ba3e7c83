// Generation: the scheduler says which rows go next, the model runs them against the cache, one small read a step
// brings the chosen tokens back. Rows are computed by the very kernels of training, so log-probabilities are those of
// training.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import type { CausalLm } from '../models/index.js'
import { argmax, embedding, linear, linearLogprob } from '../ops/index.js'
import { Tensor, withoutTape } from '../tensor/index.js'
import { KeyValueCache } from './kv_cache.js'
import { type Finished, Scheduler, type Step } from './scheduler.js'

export interface GenerateOptions {
  /** Most new tokens of a sequence. */
  maxTokens: number
  /** Tokens that end a sequence; the one that did is its last token. */
  stopIds: readonly number[]
  /** Sequences in work at the same time; default 64. The tokens do not depend on it. */
  slots?: number
  /** Most rows of one forward pass, at least `slots`; default 2048. Bounds memory; the tokens do not depend on it. */
  stepRows?: number
  /** Also return the log-probability of every token. */
  logprobs?: boolean
  signal?: AbortSignal
  /** Called after every step. */
  onProgress?: (progress: GenerateProgress) => void
}

export interface GenerateProgress {
  /** Finished sequences, and all. */
  done: number
  total: number
  /** New tokens so far. */
  tokens: number
}

export interface Generated {
  /** New tokens, a stop token included. */
  tokens: Int32Array
  /** Natural logarithm of each token's probability, with option `logprobs`. */
  logprobs?: Float32Array
  /** 'length': maxTokens were reached. */
  finishReason: 'stop' | 'length'
}

/** Rows of a step: enough for full-speed matrix products, small enough that a decoding step is not held up by prompts.
 *  */
const STEP_ROWS = 2048

/**
 * Continues every prompt with the most probable token, the lowest id on a tie. Results are in the order of the prompts
 * and do not depend on the other prompts, on their order, or on `slots`. ERR_CONFIG for impossible options or prompts,
 * ERR_OOM, ERR_ABORTED.
 */
export async function generateGreedy(
  model: CausalLm,
  prompts: readonly Int32Array[],
  options: GenerateOptions,
): Promise<Generated[]> {
  const { maxTokens, signal } = options
  const { slots: most = 64, stepRows: rows = STEP_ROWS } = options
  checkRequest(model, prompts, { maxTokens, slots: most, stepRows: rows })
  const slots = Math.min(most, Math.max(1, prompts.length))
  const longest = prompts.reduce((most, prompt) => Math.max(most, prompt.length), 0)
  // The last new token is never fed back.
  const capacity = longest + maxTokens - 1
  const stopIds = new Set(options.stopIds)
  const scheduler = new Scheduler(prompts, { slots, capacity, maxTokens, stopIds, stepRows: Math.max(rows, slots) })
  const logprobs = options.logprobs ? prompts.map((): number[] => []) : undefined
  throwIfAborted(signal)
  const dtype = model.dtype === 'bf16' ? 'bf16' : 'f32'
  const cache = new KeyValueCache(model.device, model.config, { slots, capacity, dtype })
  try {
    for (let step = scheduler.next(); step; step = scheduler.next()) {
      const chosen = await runStep(model, cache, { step, logprobs: logprobs !== undefined })
      if (logprobs) for (const [i, prompt] of scheduler.awaiting.entries()) logprobs[prompt]!.push(chosen.logprobs![i]!)
      scheduler.accept(chosen.tokens)
      options.onProgress?.({
        done: scheduler.finishedCount,
        total: prompts.length,
        tokens: scheduler.newTokenCount,
      })
      throwIfAborted(signal)
    }
  } finally {
    cache.dispose()
  }
  return scheduler.finished.map((finished, i) => result(finished!, logprobs?.[i]))
}

function result(finished: Finished, logprobs: number[] | undefined): Generated {
  return logprobs ? { ...finished, logprobs: Float32Array.from(logprobs) } : finished
}

interface Chosen {
  tokens: ArrayLike<number>
  logprobs: ArrayLike<number> | undefined
}

async function runStep(
  model: CausalLm,
  cache: KeyValueCache,
  { step, logprobs }: { step: Step; logprobs: boolean },
): Promise<Chosen> {
  const made = withoutTape(() => {
    const last = lastHidden(model, cache, step)
    const tokens = argmax(linear(last, model.head))
    return { tokens, logp: logprobs ? linearLogprob(last, model.head, tokens).logp : undefined }
  })
  try {
    const [tokens, logp] = await Promise.all([made.tokens.readRaw(), made.logp?.read()])
    return { tokens, logprobs: logp }
  } finally {
    made.tokens.dispose()
    made.logp?.dispose()
  }
}

/** Runs the rows of `step` and returns the hidden rows from which a token is to be chosen. */
function lastHidden(model: CausalLm, cache: KeyValueCache, step: Step): Tensor {
  const { device } = model
  const vector = (data: Int32Array) => Tensor.from(device, data, [data.length])
  cache.writeTo(vector(step.cacheRows))
  const segments = Tensor.from(device, step.segments, [step.segments.length / 4, 4])
  const rows = { ids: vector(step.ids), positions: vector(step.positions), segments }
  const hidden = model.hidden(rows, { store: cache })
  const everyRow = step.lastRows.length === step.ids.length
  // Picking rows of a table by index is what the embedding op does.
  return everyRow ? hidden : embedding(vector(step.lastRows), hidden)
}

function checkRequest(
  model: CausalLm,
  prompts: readonly Int32Array[],
  options: { maxTokens: number; slots: number; stepRows: number },
): void {
  for (const [name, value] of Object.entries(options)) {
    if (Number.isSafeInteger(value) && value >= 1 && value < 2 ** 24) continue
    throw new CaravanError('ERR_CONFIG', `${name} must be an integer from 1 to 2^24; got ${value}`)
  }
  const { V, contextTokens } = model.config
  for (const [i, prompt] of prompts.entries()) {
    if (prompt.length === 0) {
      throw new CaravanError('ERR_CONFIG', `prompt ${i} is empty; there is nothing to continue`, {
        details: { prompt: i },
        hint: 'begin it with the beginning-of-text token',
      })
    }
    if (prompt.length > contextTokens) {
      throw new CaravanError(
        'ERR_CONFIG',
        `prompt ${i} has ${prompt.length} tokens, the context of this model is ${contextTokens}`,
        { details: { prompt: i, tokens: prompt.length, contextTokens }, hint: 'shorten it, or leave it out' },
      )
    }
    const wrong = prompt.findIndex((id) => id < 0 || id >= V)
    if (wrong === -1) continue
    throw new CaravanError(
      'ERR_CONFIG',
      `prompt ${i}: token ${wrong} must be an id from 0 to ${V - 1} of this model; got ${prompt[wrong]}`,
      { details: { prompt: i, position: wrong, id: prompt[wrong] }, hint: 'use the tokenizer of this model' },
    )
  }
}
