import { afterAll, beforeAll, expect, it } from 'vitest'
import { ConfigReader, type DecoderConfig, familyNamed, newModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { differing, parameterValues } from './golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice({ threads: 2 })
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

const config = (family: string, keys: object = {}): DecoderConfig =>
  familyNamed(family).read(
    new ConfigReader('config.json', {
      vocab_size: 300,
      hidden_size: 64,
      intermediate_size: 192,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      initializer_range: 0.03,
      ...keys,
    }),
  )

/** Standard deviation around the mean, and the mean. */
function moments(values: Float32Array): { mean: number; deviation: number } {
  const mean = values.reduce((a, b) => a + b, 0) / values.length
  return { mean, deviation: Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length) }
}

it('draws matrices from N(0, initializer_range), sets norms to 1 and biases to 0', async () => {
  using model = newModel(device, config('qwen2'), { seed: 7 })
  expect([...model.parameters().values()].every((tensor) => tensor.tracked)).toBe(true)
  for (const [name, values] of await parameterValues(model)) {
    if (name.endsWith('.bias'))
      expect(
        values.every((value) => value === 0),
        name,
      ).toBe(true)
    else if (name.includes('norm'))
      expect(
        values.every((value) => value === 1),
        name,
      ).toBe(true)
    else {
      const { mean, deviation } = moments(values)
      // 4 standard errors.
      expect(Math.abs(mean), name).toBeLessThan((4 * 0.03) / Math.sqrt(values.length))
      expect(Math.abs(deviation / 0.03 - 1), name).toBeLessThan(4 / Math.sqrt(2 * values.length))
    }
  }
})

it('draws by fan-in and depth when asked', async () => {
  using model = newModel(device, config('llama', { tie_word_embeddings: true }), {
    seed: 7,
    init: { embeddingDeviation: 0.04, linearGain: 0.5 },
  })
  const values = await parameterValues(model)
  const near = (name: string, wanted: number) =>
    expect(Math.abs(moments(values.get(name)!).deviation / wanted - 1), name).toBeLessThan(0.05)
  near('model.embed_tokens.weight', 0.04)
  near('model.layers.0.self_attn.q_proj.weight', 0.5 / 8)
  near('model.layers.1.mlp.up_proj.weight', 0.5 / 8)
  // Divided by sqrt(2L) = 2.
  near('model.layers.1.self_attn.o_proj.weight', 0.5 / 8 / 2)
  near('model.layers.0.mlp.down_proj.weight', 0.5 / Math.sqrt(192) / 2)
  expect(values.has('lm_head.weight')).toBe(false)
})

it('depends on the seed alone, and gives every parameter numbers of its own', async () => {
  using one = newModel(device, config('olmo2'), { seed: 1 })
  using again = newModel(device, config('olmo2'), { seed: 1, trainable: false })
  using other = newModel(device, config('olmo2'), { seed: 2 })
  const values = await parameterValues(one)
  expect(differing(await parameterValues(again), values)).toEqual([])
  const matrices = [...values.keys()].filter((name) => !name.includes('norm'))
  expect(differing(await parameterValues(other), values)).toEqual(matrices)
  expect(values.get('model.layers.0.mlp.gate_proj.weight')).not.toEqual(values.get('model.layers.0.mlp.up_proj.weight'))
  expect([...again.parameters().values()].some((tensor) => tensor.tracked)).toBe(false)
})

it('refuses impossible configurations', () => {
  const impossible = { ...config('llama'), H: 0 }
  expect(() => newModel(device, impossible, { seed: 1 })).toThrow(
    'model configuration: H must be an integer >= 1; got 0',
  )
  expect(() => newModel(device, { ...config('llama'), family: 'gpt2' }, { seed: 1 })).toThrow(
    "unknown model family 'gpt2'",
  )
})
