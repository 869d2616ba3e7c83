// The sampler's log-probabilities are the trainer's: decoding against the cache, a prompt pass over the same tokens and
// a training pass without a cache give every token the same bits, for any batch, order of arrival and thread count.
import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { type Generated, type GenerateRequest, generateAll } from '../../lib/generate/index.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { linearLogprob, openDevice, selfSegments } from '../../lib/ops/index.js'
import { scope, Tape, Tensor } from '../../lib/tensor/index.js'
import { modelFolder } from '../models/golden_model.js'

const PROMPTS = 200
const random = new Random(17)

/** Prompts of 1 to 110 tokens (a page has 64), with samplers of every kind. */
const requests: GenerateRequest[] = Array.from({ length: PROMPTS }, (_, i) => ({
  prompt: Int32Array.from({ length: 1 + random.integer(0, 110) }, () => random.integer(0, 330)),
  maxTokens: 1 + random.integer(0, 12),
  seed: 1000 + i,
  temperature: i % 7 === 0 ? 0 : 0.7 + (i % 5) / 5,
  topK: i % 4 === 1 ? 30 : 0,
  topP: i % 3 === 1 ? 0.9 : 1,
  repetitionPenalty: i % 8 === 5 ? 1.2 : 1,
}))

/** Requests in groups of 1 to 32 that arrive one after the other, in random order. */
async function* arrivals(order: Uint32Array) {
  const turn = new Random(order[0]!)
  for (let at = 0; at < order.length; ) {
    const size = turn.integer(1, 33)
    for (const i of order.slice(at, at + size)) yield requests[i]!
    at += size
    await new Promise((resolve) => setImmediate(resolve))
  }
}

async function generated(model: CausalLm, shuffle: number, slots: number): Promise<Generated[]> {
  const order = new Random(shuffle).permutation(PROMPTS)
  const results = await generateAll(model, arrivals(order), { slots, cacheTokens: 64 * 4 * slots, stepRows: 300 })
  const byRequest: Generated[] = []
  for (const [n, i] of order.entries()) byRequest[i] = { ...results[n]![0]!, request: i }
  return byRequest
}

/** Log-probabilities of the new tokens from a recorded forward pass over whole sequences, `batch` at a time. */
async function trainingPass(model: CausalLm, results: readonly Generated[], batch: number): Promise<Float32Array[]> {
  const logprobs: Float32Array[] = []
  for (let at = 0; at < results.length; at += batch) {
    const sequences = results
      .slice(at, at + batch)
      .map(({ tokens, request }) => [...requests[request]!.prompt, ...tokens])
    const ids = Int32Array.from(sequences.flat())
    const bounds = [0]
    for (const sequence of sequences) bounds.push(bounds.at(-1)! + sequence.length)
    const vector = (data: Int32Array) => Tensor.from(model.device, data, [data.length])
    using logp = scope(() =>
      new Tape().record(() => {
        const { data, shape } = selfSegments(bounds)
        const positions = Int32Array.from(sequences.flatMap((sequence) => sequence.map((_, t) => t)))
        const target = Int32Array.from(sequences.flatMap((sequence) => [...sequence.slice(1), -100]))
        const rows = {
          ids: vector(ids),
          positions: vector(positions),
          segments: Tensor.from(model.device, data, shape),
        }
        return linearLogprob(model.hidden(rows), model.head, vector(target)).logp
      }),
    )
    const values = (await logp.read()) as Float32Array
    for (const [i, end] of bounds.slice(1).entries()) {
      logprobs.push(values.slice(end - 1 - results[at + i]!.tokens.length, end - 1))
    }
  }
  return logprobs
}

/** The same sequences again, cut at a random place before which everything is prompt. */
async function promptPass(
  model: CausalLm,
  results: readonly Generated[],
): Promise<{ at: number; result: Generated }[]> {
  const cuts = results.map(({ tokens }) => random.integer(0, tokens.length))
  const cut = results.map(({ tokens, request }, i) => ({
    ...requests[request]!,
    prompt: Int32Array.from([...requests[request]!.prompt, ...tokens.slice(0, cuts[i])]),
    maxTokens: 1,
  }))
  const again = await generateAll(model, cut, { slots: 20 })
  return cuts.map((at, i) => ({ at, result: again[i]![0]! }))
}

describe.each([
  ['llama_gqa_rope3', 'f32'],
  ['llama_gqa_rope3', 'bf16'],
  ['mistral_swa', 'f32'],
  ['qwen3_qknorm', 'bf16'],
] as const)('%s in %s', (name, dtype) => {
  it('decoding, prompt and training passes agree bit for bit, on 1 to 3 threads', async () => {
    let first: Generated[] | undefined
    for (const [threads, slots] of [
      [1, 1],
      [2, 32],
      [3, 7],
    ] as const) {
      using device = openDevice({ threads })
      using model = await loadModel(device, modelFolder(name), { dtype })
      model.setTrainable(true)
      const results = await generated(model, 10 * threads, slots)
      first ??= results
      expect(results).toEqual(first)
      expect(await trainingPass(model, results, 1 + 9 * threads)).toEqual(results.map(({ logprobs }) => logprobs))
      for (const [i, { at, result }] of (await promptPass(model, results)).entries()) {
        expect(result.tokens[0]).toBe(results[i]!.tokens[at])
        expect(result.logprobs[0]).toBe(results[i]!.logprobs[at])
        expect(result.drawnLogprobs[0]).toBe(results[i]!.drawnLogprobs[at])
      }
      await device.idle()
    }
  })
})
