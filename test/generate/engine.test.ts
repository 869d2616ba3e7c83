import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import {
  cacheBytes,
  type Generated,
  type GenerateRequest,
  generate,
  generateAll,
  KeyValueCache,
} from '../../lib/generate/index.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { linear, linearLogprob, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { leaks, scope, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { deviation, goldenFacts, goldenNames, modelFolder, rowsOnDevice } from '../models/golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

/** Logits of every position and log-probabilities of the next tokens from one pass over the whole sequence. */
async function wholePass(model: CausalLm, sequence: Int32Array) {
  const N = sequence.length
  const positions = Int32Array.from({ length: N }, (_, i) => i)
  const made = scope(() => {
    const hidden = model.hidden(rowsOnDevice(device, { ids: sequence, positions, cuSeqlens: [0, N] }))
    const next = Tensor.from(device, Int32Array.from([...sequence.subarray(1), -100]), [N])
    return { logits: linear(hidden, model.head), logp: linearLogprob(hidden, model.head, next).logp }
  })
  const logits = (await made.logits.read()) as Float32Array
  const logp = (await made.logp.read()) as Float32Array
  made.logits.dispose()
  made.logp.dispose()
  return { logits, logp }
}

/** The most probable continuation of every prompt. */
async function greedy(
  model: CausalLm,
  prompts: readonly Int32Array[],
  { maxTokens, stopIds = [] }: { maxTokens: number; stopIds?: readonly number[] },
  options: Parameters<typeof generateAll>[2] = {},
): Promise<Generated[]> {
  const requests = prompts.map((prompt) => ({ prompt, maxTokens, stopIds, temperature: 0 }))
  return (await generateAll(model, requests, options)).map(([result]) => result!)
}

function argmax(row: Float32Array): number {
  return row.reduce((best, value, i) => (value > row[best]! ? i : best), 0)
}

describe.each(goldenNames.filter((name) => goldenFacts(name).generation?.prompt_ids))('%s', (name) => {
  const generation = goldenFacts(name).generation!
  const prompts = generation.prompt_ids.map((row, b) =>
    Int32Array.from(row.filter((_, t) => generation.attention_mask[b]![t] === 1)),
  )
  let model: CausalLm
  beforeAll(async () => {
    model = await loadModel(device, modelFolder(name), { dtype: 'f32' })
  })
  afterAll(() => model.dispose())

  it('chooses the tokens of the reference, with its log-probabilities', async () => {
    const results = await greedy(model, prompts, { maxTokens: generation.new_tokens })
    for (const [b, { tokens, logprobs, finishReason }] of results.entries()) {
      expect([...tokens]).toEqual(generation.greedy[b]!.tokens)
      expect(deviation(logprobs, generation.greedy[b]!.logprobs).max).toBeLessThan(5e-5)
      expect(finishReason).toBe('length')
    }
  })

  it('stops after a stop token', async () => {
    const { eos_token_id: eos, output } = generation.eos_case
    const results = await greedy(model, prompts, { maxTokens: generation.new_tokens, stopIds: [eos] })
    for (const [b, { tokens, finishReason }] of results.entries()) {
      const row = output[b]!
      const end = row.indexOf(eos)
      expect([...tokens]).toEqual(end === -1 ? row : row.slice(0, end + 1))
      expect(finishReason).toBe(end === -1 ? 'length' : 'stop')
    }
  })

  it('gives every token the log-probability of a pass without a cache, bit for bit', async () => {
    const results = await greedy(model, prompts, { maxTokens: 12 })
    const { V } = model.config
    for (const [b, { tokens, logprobs }] of results.entries()) {
      const whole = await wholePass(model, Int32Array.from([...prompts[b]!, ...tokens]))
      const first = prompts[b]!.length - 1
      expect(logprobs).toEqual(whole.logp.slice(first, first + tokens.length))
      for (const [i, token] of tokens.entries()) {
        expect(argmax(whole.logits.subarray((first + i) * V, (first + i + 1) * V))).toBe(token)
      }
    }
  })
})

describe('continuous batching', () => {
  let model: CausalLm
  const random = new Random(5)
  const prompts = Array.from({ length: 23 }, () =>
    Int32Array.from({ length: random.integer(1, 90) }, () => random.integer(0, 350)),
  )
  // Tokens that random text meets now and then, so that sequences end at different times.
  const stopIds = [7, 69, 88, 120, 175, 230, 301]
  const requests: GenerateRequest[] = prompts.map((prompt, i) => ({
    prompt,
    maxTokens: 30,
    stopIds,
    seed: i,
    samples: 1 + (i % 3),
    temperature: i % 4 === 0 ? 0 : 0.9,
    topK: i % 5 === 1 ? 20 : 0,
    topP: i % 3 === 2 ? 0.9 : 1,
    repetitionPenalty: i % 6 === 3 ? 1.3 : 1,
  }))
  const sequences = requests.reduce((sum, { samples }) => sum + samples!, 0)
  beforeAll(async () => {
    model = await loadModel(device, modelFolder('mistral_swa'))
  })
  afterAll(() => model.dispose())

  it('gives the same tokens and bits for any slots, cache, order and pieces', async () => {
    const alone = await generateAll(model, requests, { slots: 1 })
    expect(new Set(alone.flat().map(({ tokens }) => tokens.length)).size).toBeGreaterThan(3)
    for (const options of [{ slots: 3 }, { slots: 64 }, { slots: 5, stepRows: 8 }, { slots: 64, cacheTokens: 256 }]) {
      expect(await generateAll(model, requests, options)).toEqual(alone)
    }
    const order = random.permutation(requests.length)
    const shuffled = await generateAll(
      model,
      Array.from(order, (i) => requests[i]!),
      { slots: 4 },
    )
    const renumbered = Array.from(order, (i, n) => alone[i]!.map((result) => ({ ...result, request: n })))
    expect(shuffled).toEqual(renumbered)
  })

  it('draws another text for each sample and seed, the same for the same', async () => {
    const request = { prompt: prompts[1]!, maxTokens: 12, samples: 3 }
    const texts = (results: Generated[][]) => results.flat().map(({ tokens }) => tokens.join())
    const [a, b, other] = await Promise.all([
      generateAll(model, [{ ...request, seed: 1 }]),
      generateAll(model, [{ ...request, seed: 1, samples: 2 }]),
      generateAll(model, [{ ...request, seed: 2 }]),
    ])
    expect(new Set([...texts(a), ...texts(other)]).size).toBe(6)
    expect(texts(b)).toEqual(texts(a).slice(0, 2))
    // The seed of the call decides those of the requests that name none.
    const byCall = async (seed: number) => texts(await generateAll(model, [request, request], { seed }))
    expect(new Set(await byCall(3)).size).toBe(6)
    expect(await byCall(3)).toEqual(await byCall(3))
    expect(await byCall(4)).not.toEqual(await byCall(3))
  })

  it('streams tokens as they come, whose sum is the result', async () => {
    const tokens = new Map<string, number[]>()
    let finished = 0
    for await (const event of generate(model, requests.slice(0, 6), { slots: 4 })) {
      const name = `${event.request}.${event.sample}`
      if (event.type === 'token') tokens.set(name, [...(tokens.get(name) ?? []), event.token])
      else {
        finished++
        expect([...event.tokens]).toEqual(tokens.get(name))
        expect(event.logprobs).toHaveLength(event.tokens.length)
      }
    }
    expect(finished).toBe(12)
  })

  it('takes requests from a stream while others are in work', async () => {
    const arrivals = requests.slice(0, 8)
    let started = 0
    async function* source() {
      for (const request of arrivals) {
        started++
        yield request
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
    }
    const results = await generateAll(model, source(), { slots: 8, cacheTokens: 2048 })
    expect(started).toBe(8)
    expect(results).toEqual(await generateAll(model, arrivals))
  })

  it('reports progress and ends with everything done', async () => {
    const seen: number[] = []
    let tokens = 0
    await generateAll(
      model,
      prompts.slice(0, 5).map((prompt) => ({ prompt, maxTokens: 4 })),
      {
        slots: 2,
        onProgress: (progress) => {
          seen.push(progress.done)
          tokens = progress.tokens
        },
      },
    )
    expect(seen.at(-1)).toBe(5)
    expect(tokens).toBe(20)
  })

  it('stops when aborted, and gives the memory back', async () => {
    await device.idle()
    const before = device.stats().liveTensors
    const abort = new AbortController()
    const run = generateAll(model, requests, { signal: abort.signal, onProgress: () => abort.abort('enough') })
    await expect(run).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' })
    for await (const _ of generate(model, requests)) break
    const waiting = new AbortController()
    const never = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) }
    const idle = generateAll(model, never, { signal: waiting.signal })
    waiting.abort('closing')
    await expect(idle).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'closing' })
    // A source that is busy cannot be told to end; nobody waits for it.
    async function* stuck() {
      yield requests[0]!
      await new Promise(() => {})
    }
    const stop = new AbortController()
    const busy = generateAll(model, stuck(), { signal: stop.signal, onProgress: () => stop.abort('busy') })
    await expect(busy).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'busy' })
    async function* failing() {
      yield requests[0]!
      throw new Error('the source broke')
    }
    await expect(generateAll(model, failing())).rejects.toThrow('the source broke')
    await device.idle()
    expect(device.stats().liveTensors).toBe(before)
  })

  it('ends one request when its own signal fires, and no other', async () => {
    const abort = new AbortController()
    const wanted = await generateAll(model, requests.slice(0, 3))
    const given = requests.slice(0, 3).map((request, i) => (i === 2 ? { ...request, signal: abort.signal } : request))
    const results: Generated[][] = [[], [], []]
    for await (const event of generate(model, given, { slots: 5 })) {
      if (event.type === 'finished') {
        const { type: _, ...result } = event
        results[event.request]![event.sample] = result
      } else if (event.request === 2) abort.abort()
    }
    expect(results.slice(0, 2)).toEqual(wanted.slice(0, 2))
    expect(results[2]).toHaveLength(3)
    for (const [i, { tokens, finishReason }] of results[2]!.entries()) {
      expect(finishReason).toBe('aborted')
      expect([...wanted[2]![i]!.tokens].slice(0, tokens.length)).toEqual([...tokens])
      expect(tokens.length).toBeLessThan(wanted[2]![i]!.tokens.length)
    }
  })

  it('ends at the end of the context', async () => {
    const context = model.config.contextTokens
    const prompt = Int32Array.from({ length: context - 3 }, () => 5)
    const [[result]] = (await generateAll(model, [{ prompt, maxTokens: 100 }])) as [[Generated]]
    expect(result.tokens).toHaveLength(3)
    expect(result.finishReason).toBe('length')
  })

  it('takes a prompt that leaves room for one token in the context, and none that is longer', async () => {
    const { contextTokens } = model.config
    const promptOf = (length: number) => new Int32Array(length).fill(5)
    const [result] = await greedy(model, [promptOf(contextTokens - 1)], { maxTokens: 8 })
    expect(result!.tokens).toHaveLength(1)
    for (const tokens of [contextTokens, contextTokens + 1]) {
      const requests = [promptOf(3), promptOf(tokens)].map((prompt) => ({ prompt, maxTokens: 1 }))
      await expect(generateAll(model, requests)).rejects.toMatchObject({
        code: 'ERR_CONFIG',
        message: `request 1: the prompt must be shorter than the context of ${contextTokens} tokens; it has ${tokens}`,
        details: { request: 1, tokens, contextTokens },
      })
    }
  })

  it('takes the cache memory that was said', async () => {
    await device.idle()
    const before = device.stats().liveBytes
    using _ = new KeyValueCache(device, model.config, { pages: 3, dtype: 'f32' })
    await device.idle()
    expect(device.stats().liveBytes - before).toBe(cacheBytes(model.config, 3, 4))
  })

  it('has nothing to do without requests', async () => {
    expect(await generateAll(model, [])).toEqual([])
    expect(sequences).toBeGreaterThan(40)
  })

  const request = { prompt: Int32Array.of(1), maxTokens: 4 }
  it.each([
    [{ maxTokens: 0 }, {}, 'request 0: maxTokens must be an integer from 1 to 2^24; got 0'],
    [{ samples: 0 }, {}, 'request 0: samples must be an integer from 1 to 2^24; got 0'],
    [
      { temperature: -1 },
      {},
      'request 0: temperature must be 0 (the most probable token) or from 0.0001 to 10^4; got -1',
    ],
    [{ temperature: Number.NaN }, {}, 'request 0: temperature must be 0 (the most probable token) or'],
    [{ topK: 0.5 }, {}, 'request 0: topK must be an integer >= 0 (0: off); got 0.5'],
    [{ topP: 0 }, {}, 'request 0: topP must be above 0 and at most 1 (1: off); got 0'],
    [{ minP: 1.5 }, {}, 'request 0: minP must be from 0 (off) to 1; got 1.5'],
    [{ repetitionPenalty: 0 }, {}, 'request 0: repetitionPenalty must be from 0.01 to 100 (1: off); got 0'],
    [{ seed: -1 }, {}, 'request 0: seed must be an integer from 0 to 2^53 - 1; got -1'],
    [{ stopIds: [389] }, {}, 'request 0: stop id must be an id from 0 to 388 of this model; got 389'],
    [{ stopTexts: ['x'] }, {}, 'request 0: stop texts need the option `decode`, which turns tokens into text'],
    [{ stopTexts: [''] }, {}, 'request 0: a stop text must not be empty: it would end every sequence at once'],
    [{ prompt: new Int32Array(0) }, {}, 'request 0: the prompt is empty; there is nothing to continue'],
    [{ prompt: Int32Array.of(3, 389) }, {}, 'request 0: token 1 of the prompt must be an id from 0 to 388 of this'],
    [{ prompt: Int32Array.of(-1) }, {}, 'request 0: token 0 of the prompt must be an id from 0 to 388 of this model'],
    [{ prompt: new Int32Array(5000) }, {}, 'request 0: the prompt must be shorter than the context of'],
    [{}, { slots: 1.5 }, 'slots must be an integer from 1 to 2^24; got 1.5'],
    [{}, { cacheTokens: 0 }, 'cacheTokens must be an integer from 1 to 2^24; got 0'],
  ])('refuses impossible requests: %o %o', async (changed, options, message) => {
    const run = generateAll(model, [{ ...request, ...changed } as GenerateRequest], options)
    await expect(run).rejects.toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining(message) })
  })

  it('names a model whose logits are not finite', async () => {
    using broken = await loadModel(device, modelFolder('mistral_swa'))
    device.upload(broken.decoder.norm.weight!.id, new Float32Array(broken.config.D).fill(Number.NaN))
    await expect(generateAll(broken, [request])).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: 'request 0, sample 0: the model gives logits that are not finite',
    })
  })
})
