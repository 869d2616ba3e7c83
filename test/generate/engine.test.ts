import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { cacheBytes, generateGreedy, KeyValueCache } from '../../lib/generate/index.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { linear, linearLogprob, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { leaks, scope, Tensor } from '../../lib/tensor/index.js'
import { deviation, goldenFacts, goldenNames, modelFolder, rowsOnDevice } from '../models/golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice({ threads: 2 })
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
    const results = await generateGreedy(model, prompts, {
      maxTokens: generation.new_tokens,
      stopIds: [],
      logprobs: true,
    })
    for (const [b, { tokens, logprobs, finishReason }] of results.entries()) {
      expect([...tokens]).toEqual(generation.greedy[b]!.tokens)
      expect(deviation(logprobs!, generation.greedy[b]!.logprobs).max).toBeLessThan(5e-5)
      expect(finishReason).toBe('length')
    }
  })

  it('stops after a stop token', async () => {
    const { eos_token_id: eos, output } = generation.eos_case
    const results = await generateGreedy(model, prompts, { maxTokens: generation.new_tokens, stopIds: [eos] })
    for (const [b, { tokens, finishReason }] of results.entries()) {
      const row = output[b]!
      const end = row.indexOf(eos)
      expect([...tokens]).toEqual(end === -1 ? row : row.slice(0, end + 1))
      expect(finishReason).toBe(end === -1 ? 'length' : 'stop')
    }
  })

  it('gives every token the log-probability of a pass without a cache, bit for bit', async () => {
    const results = await generateGreedy(model, prompts, { maxTokens: 12, stopIds: [], logprobs: true })
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
    Int32Array.from({ length: random.integer(1, 40) }, () => random.integer(0, 350)),
  )
  // A token that random greedy text meets now and then, so that sequences end at different times.
  const options = { maxTokens: 30, stopIds: [7, 69, 88, 120, 175, 230, 301], logprobs: true }
  beforeAll(async () => {
    model = await loadModel(device, modelFolder('mistral_swa'))
  })
  afterAll(() => model.dispose())

  it('gives the same tokens and bits for any number of slots, any order, and prompts in pieces', async () => {
    const alone = await generateGreedy(model, prompts, { ...options, slots: 1 })
    expect(new Set(alone.map(({ tokens }) => tokens.length)).size).toBeGreaterThan(3)
    expect(await generateGreedy(model, prompts, { ...options, slots: 3 })).toEqual(alone)
    expect(await generateGreedy(model, prompts, { ...options, slots: 64 })).toEqual(alone)
    expect(await generateGreedy(model, prompts, { ...options, slots: 5, stepRows: 8 })).toEqual(alone)
    const order = random.permutation(prompts.length)
    const shuffled = await generateGreedy(
      model,
      Array.from(order, (i) => prompts[i]!),
      { ...options, slots: 4 },
    )
    expect(shuffled).toEqual(Array.from(order, (i) => alone[i]!))
  })

  it('reports progress and ends with everything done', async () => {
    const seen: number[] = []
    let tokens = 0
    const results = await generateGreedy(model, prompts.slice(0, 5), {
      maxTokens: 4,
      stopIds: [],
      slots: 2,
      onProgress: (progress) => {
        seen.push(progress.done)
        tokens = progress.tokens
      },
    })
    expect(seen.at(-1)).toBe(5)
    expect(tokens).toBe(20)
    expect(results).toHaveLength(5)
  })

  it('stops when aborted, and gives the memory back', async () => {
    await device.idle()
    const before = device.stats().liveTensors
    const abort = new AbortController()
    const run = generateGreedy(model, prompts, {
      ...options,
      signal: abort.signal,
      onProgress: () => abort.abort('enough'),
    })
    await expect(run).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' })
    await device.idle()
    expect(device.stats().liveTensors).toBe(before)
  })

  it('takes the cache memory that was said', async () => {
    await device.idle()
    const before = device.stats().liveBytes
    const size = { slots: 3, capacity: 32 }
    using _ = new KeyValueCache(device, model.config, { ...size, dtype: 'f32' })
    await device.idle()
    expect(device.stats().liveBytes - before).toBe(cacheBytes(model.config, size, 4))
  })

  it('has nothing to do without prompts', async () => {
    expect(await generateGreedy(model, [], options)).toEqual([])
  })

  it('refuses a prompt that is longer than the context, and takes one that fills it', async () => {
    const { contextTokens } = model.config
    const full = new Int32Array(contextTokens).fill(5)
    const [result] = await generateGreedy(model, [full], { maxTokens: 1, stopIds: [] })
    expect(result!.tokens.length).toBe(1)
    const longer = new Int32Array(contextTokens + 1).fill(5)
    await expect(generateGreedy(model, [full, longer], options)).rejects.toMatchObject({
      code: 'ERR_CONFIG',
      message: `prompt 1 has ${contextTokens + 1} tokens, the context of this model is ${contextTokens}`,
      details: { prompt: 1, tokens: contextTokens + 1, contextTokens },
    })
  })

  it.each([
    [{ ...options, maxTokens: 0 }, prompts, 'maxTokens must be an integer from 1 to 2^24; got 0'],
    [{ ...options, slots: 1.5 }, prompts, 'slots must be an integer from 1 to 2^24; got 1.5'],
    [options, [new Int32Array(0)], 'prompt 0 is empty; there is nothing to continue'],
    [
      options,
      [Int32Array.of(1), Int32Array.of(3, 389)],
      'prompt 1: token 1 must be an id from 0 to 388 of this model; got 389',
    ],
    [options, [Int32Array.of(-1)], 'prompt 0: token 0 must be an id from 0 to 388 of this model; got -1'],
  ])('refuses impossible requests: %#', async (bad, given, message) => {
    await expect(generateGreedy(model, given, bad)).rejects.toMatchObject({ code: 'ERR_CONFIG', message })
  })
})
