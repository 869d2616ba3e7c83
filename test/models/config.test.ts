import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import {
  ConfigReader,
  checkConfig,
  configJsonOf,
  type DecoderConfig,
  familyNamed,
  type JsonObject,
  readConfig,
  readModelConfig,
} from '../../lib/models/index.js'
import { goldenNames, modelFolder } from './golden_model.js'

const read = (name: string, file: string) =>
  JSON.parse(readFileSync(`${modelFolder(name)}/${file}`, 'utf8')) as JsonObject
const configOf = (json: JsonObject) => readConfig(new ConfigReader('config.json', json), 'CausalLM').config

function errorOf(action: () => unknown): CaravanError {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(CaravanError)
    return error as CaravanError
  }
  throw new Error('nothing was thrown')
}

describe.each(goldenNames)('%s', (name) => {
  it('loads alike from both spellings', () => {
    const config = configOf(read(name, 'config.json'))
    expect(configOf(read(name, 'config.legacy.json'))).toEqual(config)
    expect(config.family).toBe(read(name, 'config.json').model_type)
  })

  it('is written so that it reads the same, in both spellings, with unknown keys kept', () => {
    const original: JsonObject = { ...read(name, 'config.json'), my_own_key: [1, { two: 3 }] }
    const config = configOf(original)
    const written = configJsonOf(config, original)
    expect(configOf(written)).toEqual(config)
    expect(written.my_own_key).toEqual([1, { two: 3 }])
    expect(written.architectures).toEqual(original.architectures)
    const { rope_parameters: _, dtype: __, ...old } = written
    expect(configOf(old)).toEqual(config)
    const { rope_theta: ___, rope_scaling: ____, torch_dtype: _____, ...modern } = written
    expect(configOf(modern)).toEqual(config)
  })
})

it('reads what the files say', () => {
  expect(configOf(read('llama_gqa_rope3', 'config.json'))).toEqual({
    family: 'llama',
    V: 368,
    D: 48,
    L: 2,
    H: 6,
    K: 2,
    C: 8,
    F: 112,
    normPlacement: 'pre',
    normKind: 'rms',
    eps: 1e-5,
    queryKeyNorm: 'none',
    attentionBias: 'none',
    mlpBias: false,
    tiedHead: false,
    windows: [0, 0],
    clipQkv: undefined,
    rope: {
      theta: 500000,
      scaling: { kind: 'llama3', factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalTokens: 64 },
    },
    contextTokens: 256,
    dtype: 'f32',
    bosId: 360,
    eosIds: [361],
    padId: 362,
    initializerDeviation: 0.02,
  } satisfies DecoderConfig)
  expect(configOf(read('mistral_swa', 'config.json')).windows).toEqual([7, 7])
  expect(configOf(read('qwen3_qknorm', 'config.json'))).toMatchObject({ C: 16, queryKeyNorm: 'head', bosId: undefined })
  expect(configOf(read('olmo2', 'config.json'))).toMatchObject({ normPlacement: 'post', queryKeyNorm: 'full' })
  expect(configOf(read('olmo1', 'config.json'))).toMatchObject({ normKind: 'layer', eps: 1e-5, clipQkv: 0.5 })
})

const llama = (): JsonObject => read('llama_gqa_rope3', 'config.json')
const qwen = (): JsonObject => read('qwen2_bias_tied', 'config.json')

describe('what published files also say', () => {
  it('takes the older `type` of a rope_scaling and a missing original context', () => {
    const { rope_parameters: _, ...json } = llama()
    json.rope_theta = 500000
    json.rope_scaling = { type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 }
    expect(configOf(json).rope.scaling!.originalTokens).toBe(256)
  })
  it('takes several end tokens, and -1 for none', () => {
    const config = configOf({ ...llama(), eos_token_id: [1, 2], pad_token_id: -1 })
    expect(config).toMatchObject({ eosIds: [1, 2], padId: undefined })
  })
  it('takes window layers by max_window_layers or by layer_types', () => {
    const windowed = { ...qwen(), use_sliding_window: true, sliding_window: 5, max_window_layers: 1 }
    const { layer_types: _, ...byCount } = windowed as JsonObject
    expect(configOf(byCount).windows).toEqual([0, 5])
    const byName = { ...windowed, layer_types: ['sliding_attention', 'full_attention'] }
    expect(configOf(byName).windows).toEqual([5, 0])
    expect(configOf(configJsonOf(configOf(byName), byName)).windows).toEqual([5, 0])
  })
  it('takes a null window of Mistral as none, and an absent one as 4096', () => {
    const { sliding_window: _, ...absent } = read('mistral_swa', 'config.json')
    expect(configOf(absent).windows).toEqual([4096, 4096])
    expect(configOf({ ...absent, sliding_window: null }).windows).toEqual([0, 0])
  })
  it('goes by model_type where architectures is absent', () => {
    const { architectures: _, ...json } = llama()
    expect(configOf(json).family).toBe('llama')
  })
  it('takes 128 for the head width of Qwen3 when it is absent', () => {
    const { head_dim: _, ...json } = read('qwen3_qknorm', 'config.json')
    expect(configOf(json).C).toBe(128)
  })
})

describe('faults', () => {
  const without = (json: JsonObject, key: string) => {
    const { [key]: _, ...rest } = json
    return rest
  }
  const rope = (keys: JsonObject) => ({ ...llama(), rope_parameters: { rope_theta: 1e4, ...keys } })
  const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 }

  it.each<[string, JsonObject, string]>([
    ['no vocabulary', without(llama(), 'vocab_size'), 'vocab_size must be an integer >= 1; got nothing'],
    ['no width', without(llama(), 'hidden_size'), 'hidden_size must be an integer >= 1; got nothing'],
    ['no layers', { ...llama(), num_hidden_layers: 0 }, 'num_hidden_layers must be an integer from 1 to 10000; got 0'],
    ['a fraction', { ...llama(), intermediate_size: 11.5 }, 'intermediate_size must be an integer >= 1; got 11.5'],
    ['text for a number', { ...llama(), hidden_size: '48' }, 'hidden_size must be an integer >= 1; got "48"'],
    ['a negative', { ...llama(), vocab_size: -3 }, 'vocab_size must be an integer >= 1; got -3'],
    ['a huge number', { ...llama(), vocab_size: 1e18 }, 'vocab_size must be an integer >= 1; got 1000000000000000000'],
    [
      'heads that do not divide',
      { ...llama(), num_key_value_heads: 4 },
      'num_key_value_heads must be a divisor of num_attention_heads 6; got 4',
    ],
    ['odd heads', { ...llama(), head_dim: 7 }, 'head_dim must be even (it is rotated in pairs)'],
    [
      'a width that the heads do not divide',
      { ...without(llama(), 'head_dim'), num_attention_heads: 5 },
      'num_attention_heads must be a divisor of hidden_size 48 where head_dim is absent; got 5',
    ],
    [
      'a million layers',
      { ...llama(), num_hidden_layers: 1e6 },
      'num_hidden_layers must be an integer from 1 to 10000; got 1',
    ],
    ['a giant head', { ...llama(), head_dim: 2 ** 30 }, 'head_dim must be an integer from 1 to 65536; got 1073741824'],
    [
      'giant heads by division',
      { ...without(llama(), 'head_dim'), hidden_size: 6e8 },
      'num_attention_heads must be such that hidden_size 600000000 / heads is at most 65536; got 6',
    ],
    ['another activation', { ...llama(), hidden_act: 'gelu' }, 'hidden_act must be "silu"; got "gelu"'],
    ['a zero eps', { ...llama(), rms_norm_eps: 0 }, 'rms_norm_eps must be a number > 0; got 0'],
    ['a text eps', { ...llama(), rms_norm_eps: '1e-5' }, 'rms_norm_eps must be a number > 0; got "1e-5"'],
    ['a number for a flag', { ...llama(), tie_word_embeddings: 1 }, 'tie_word_embeddings must be true or false; got 1'],
    [
      'an unknown dtype',
      { ...llama(), dtype: 'float8' },
      'dtype must be one of float32, bfloat16, float16; got "float8"',
    ],
    ['a prototype name as dtype', { ...llama(), dtype: 'constructor' }, 'dtype must be one of'],
    [
      'yarn',
      rope({ rope_type: 'yarn', factor: 4 }),
      'rope_parameters.rope_type must be "default" or "llama3"; got "yarn"',
    ],
    [
      'old yarn',
      { ...without(llama(), 'rope_parameters'), rope_theta: 1e4, rope_scaling: { type: 'yarn' } },
      'rope_scaling.type must be "default" or "llama3"; got "yarn"',
    ],
    ['half a scaling', rope({ rope_type: 'llama3' }), 'rope_parameters.factor must be a number > 0; got nothing'],
    [
      'crossed factors',
      rope({ ...llama3, high_freq_factor: 1 }),
      'rope_parameters.high_freq_factor must be greater than low_freq_factor 1; got 1',
    ],
    ['a negative theta', rope({ rope_theta: -1 }), 'rope_parameters.rope_theta must be a number > 0; got -1'],
    ['a list of rotary settings', { ...llama(), rope_parameters: [1] }, 'rope_parameters must be an object; got [1]'],
    ['partial rotation', { ...llama(), partial_rotary_factor: 0.5 }, 'partial_rotary_factor must be 1; got 0.5'],
    ['quantised weights', { ...llama(), quantization_config: { bits: 4 } }, 'quantization_config must be absent'],
    ['a text token id', { ...llama(), eos_token_id: '</s>' }, 'eos_token_id must be a token id'],
    ['a fractional token id', { ...llama(), bos_token_id: 1.5 }, 'bos_token_id must be a token id'],
    [
      'a text architecture',
      { ...llama(), architectures: 'LlamaForCausalLM' },
      'architectures must be a list of strings',
    ],
    ['no architecture', without(without(llama(), 'architectures'), 'model_type'), 'architectures must be a list'],
    [
      'a contradiction',
      { ...llama(), model_type: 'qwen2' },
      'model_type must be "llama" to match architectures ["LlamaForCausalLM"]; got "qwen2"',
    ],
    [
      'too few layer types',
      { ...qwen(), layer_types: ['full_attention'] },
      'layer_types must be a list of num_hidden_layers = 2',
    ],
    [
      'a window without its size',
      { ...qwen(), layer_types: ['full_attention', 'sliding_attention'] },
      'layer_types must be names out of "full_attention" (use_sliding_window is not set)',
    ],
    ['a clamp of nothing', { ...read('olmo1', 'config.json'), clip_qkv: 0 }, 'clip_qkv must be a number > 0; got 0'],
    [
      'Mistral without key/value heads',
      without(read('mistral_swa', 'config.json'), 'num_key_value_heads'),
      'num_key_value_heads must be an integer that divides num_attention_heads 4; got nothing',
    ],
  ])('%s', (_, json, message) => {
    const error = errorOf(() => configOf(json))
    expect(error.code).toBe('ERR_MODEL')
    expect(error.message.startsWith(`config.json: ${message}`), error.message).toBe(true)
    expect(error.details.file).toBe('config.json')
  })

  it('names the known architectures and the nearest', () => {
    const error = errorOf(() => configOf({ ...llama(), architectures: ['LlamaForCausalML'] }))
    expect(error.message).toContain('LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM')
    expect(error.hint).toBe("the nearest known is 'LlamaForCausalLM'")
    const olmoe = errorOf(() => configOf({ ...llama(), architectures: ['OlmoeForCausalLM'], model_type: 'olmoe' }))
    expect(olmoe.message).toContain('got "OlmoeForCausalLM"')
    expect(errorOf(() => familyNamed('lama')).hint).toBe("the nearest known is 'llama'")
  })

  it('does not take a reward model for a language model', () => {
    const json = { ...llama(), architectures: ['LlamaForSequenceClassification'] }
    expect(errorOf(() => configOf(json)).code).toBe('ERR_MODEL')
    expect(readConfig(new ConfigReader('config.json', json), 'SequenceClassification').family.name).toBe('llama')
  })

  it('does not write what the family cannot say', () => {
    const config = { ...configOf(llama()), queryKeyNorm: 'head' as const }
    const error = errorOf(() => configJsonOf(config))
    expect(error.message).toBe('a llama model cannot have queryKeyNorm = "head"; it would be "none"')
  })

  it.each<[Partial<DecoderConfig>, string]>([
    [{ K: 5 }, 'K must be a divisor of H = 6; got 5'],
    [{ C: 3 }, 'C must be even; got 3'],
    [{ L: 1 }, 'windows must be L = 1 integers >= 0; got [0,0]'],
    [{ V: 0 }, 'V must be an integer >= 1; got 0'],
    [{ eps: Number.NaN }, 'eps must be a number > 0; got NaN'],
  ])('finds impossible sizes: %o', (change, message) => {
    const error = errorOf(() => checkConfig({ ...configOf(llama()), ...change }))
    expect(error.message).toBe(`model configuration: ${message}`)
  })
})

describe('files', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'caravan-config-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  async function errorFor(name: string, text: string | undefined): Promise<CaravanError> {
    const directory = join(folder, name)
    await mkdir(directory)
    if (text !== undefined) await writeFile(join(directory, 'config.json'), text)
    return await readModelConfig(directory).then(
      () => expect.unreachable(),
      (error: CaravanError) => error,
    )
  }

  it('says which file is missing or damaged, and where', async () => {
    expect(await errorFor('none', undefined)).toMatchObject({ code: 'ERR_MODEL' })
    const cut = await errorFor('cut', '{"hidden_size": 48, "é": ')
    expect(cut).toMatchObject({ code: 'ERR_FORMAT', details: { offset: 26 } })
    expect((await errorFor('list', '[]')).message).toContain('must be a JSON object')
    expect(await errorFor('empty', '')).toMatchObject({ code: 'ERR_FORMAT' })
  })
})
