// The configuration of a decoder: what decides its mathematics (lib/nn/decoder_shape) plus what a checkpoint says about
// itself. Families differ only in defaults, in the keys they know and in the values they fix.
import { CaravanError } from '../base/errors.js'
import type { DecoderShape, RopeShape } from '../nn/decoder_shape.js'
import type { ConfigReader, JsonObject } from './config_reader.js'

export type StoredDtype = 'f32' | 'bf16' | 'f16'

export interface DecoderConfig extends DecoderShape {
  /** Name of the family in lib/models/index: llama, qwen2, ... */
  family: string
  /** Longest sequence the model was made for (`max_position_embeddings`). */
  contextTokens: number
  /** Element type of the weights on disk. */
  dtype: StoredDtype
  bosId: number | undefined
  eosIds: readonly number[]
  padId: number | undefined
  /** Standard deviation for new weights (`initializer_range`). */
  initializerDeviation: number
}

const dtypeNames: { [name: string]: StoredDtype } = { float32: 'f32', bfloat16: 'bf16', float16: 'f16' }
export const huggingFaceDtype: Record<StoredDtype, string> = { f32: 'float32', bf16: 'bfloat16', f16: 'float16' }

/** Keys that mean the weights are not plain matrices of the family. */
const refusedKeys = ['quantization_config', 'compression_config', 'sparsity_config']

/** Far above any model, low enough that a damaged file cannot make us count to 2^31. */
const MAX_LAYERS = 10_000
const MAX_HEAD_WIDTH = 65_536

/** Values that a family may give for keys that are absent from the file. */
export interface CommonDefaults {
  eps: number
  /** Head width when `head_dim` is absent; default D / H. */
  headWidth?: number
}

/**
 * The keys that all families share, under the Hugging Face names. The result is a plain pre-norm RMSNorm decoder
 * without biases; families override what differs. ERR_MODEL for missing, mistyped or contradictory values.
 */
export function readCommon(reader: ConfigReader, family: string, defaults: CommonDefaults): DecoderConfig {
  for (const key of refusedKeys) {
    if (reader.has(key)) throw reader.fault(key, 'absent', 'quantised or compressed weights are not read: convert them')
  }
  const activation = reader.string('hidden_act', 'silu')
  if (activation !== 'silu' && activation !== 'swish') throw reader.fault('hidden_act', '"silu"')
  const D = reader.integer('hidden_size')
  const H = reader.integer('num_attention_heads')
  const L = reader.integer('num_hidden_layers', { maximum: MAX_LAYERS })
  const contextTokens = reader.integer('max_position_embeddings', { fallback: 2048 })
  if (!reader.has('head_dim') && defaults.headWidth === undefined && D % H !== 0) {
    throw reader.fault('num_attention_heads', `a divisor of hidden_size ${D} where head_dim is absent`)
  }
  const config: DecoderConfig = {
    family,
    V: reader.integer('vocab_size'),
    D,
    L,
    H,
    K: reader.integer('num_key_value_heads', { fallback: H }),
    C: reader.integer('head_dim', { fallback: defaults.headWidth ?? D / H, maximum: MAX_HEAD_WIDTH }),
    F: reader.integer('intermediate_size'),
    normPlacement: 'pre',
    normKind: 'rms',
    eps: reader.positive('rms_norm_eps', defaults.eps),
    queryKeyNorm: 'none',
    attentionBias: 'none',
    mlpBias: false,
    tiedHead: reader.boolean('tie_word_embeddings', false),
    windows: Array(L).fill(0),
    clipQkv: undefined,
    rope: readRope(reader, contextTokens),
    contextTokens,
    dtype: readDtype(reader),
    bosId: reader.tokenIds('bos_token_id')[0],
    eosIds: reader.tokenIds('eos_token_id'),
    padId: reader.tokenIds('pad_token_id')[0],
    initializerDeviation: reader.positive('initializer_range', 0.02),
  }
  if (H % config.K !== 0) throw reader.fault('num_key_value_heads', `a divisor of num_attention_heads ${H}`)
  if (config.C > MAX_HEAD_WIDTH) {
    throw reader.fault('num_attention_heads', `such that hidden_size ${D} / heads is at most ${MAX_HEAD_WIDTH}`)
  }
  if (config.C % 2 !== 0) {
    throw reader.fault(
      'head_dim',
      `even (it is rotated in pairs); hidden_size ${D} / num_attention_heads ${H} = ${D / H}`,
    )
  }
  return config
}

function readDtype(reader: ConfigReader): StoredDtype {
  const key = reader.has('dtype') ? 'dtype' : 'torch_dtype'
  const name = reader.string(key, 'float32').replace(/^torch\./, '')
  const dtype = Object.hasOwn(dtypeNames, name) ? dtypeNames[name] : undefined
  if (!dtype) throw reader.fault(key, `one of ${Object.keys(dtypeNames).join(', ')}`)
  return dtype
}

/**
 * Rotary settings in either spelling: `rope_theta` with `rope_scaling` (whose kind is `rope_type` or, older, `type`),
 * or one `rope_parameters`. Kinds: default, llama3; others are refused by name.
 */
function readRope(reader: ConfigReader, contextTokens: number): RopeShape {
  const parameters = reader.object('rope_parameters')
  const scaling = parameters ?? reader.object('rope_scaling')
  const theta = (parameters?.has('rope_theta') ? parameters : reader).positive('rope_theta', 10_000)
  const partial = parameters?.has('partial_rotary_factor') ? parameters : reader
  if (partial.positive('partial_rotary_factor', 1) !== 1) throw partial.fault('partial_rotary_factor', '1')
  if (!scaling) return { theta, scaling: undefined }
  const kindKey = scaling.has('rope_type') ? 'rope_type' : 'type'
  const kind = scaling.string(kindKey, 'default')
  if (kind === 'default') return { theta, scaling: undefined }
  if (kind !== 'llama3') throw scaling.fault(kindKey, '"default" or "llama3"', 'this rotary scaling is not supported')
  const rope: RopeShape = {
    theta,
    scaling: {
      kind: 'llama3',
      factor: scaling.positive('factor'),
      lowFrequencyFactor: scaling.positive('low_freq_factor'),
      highFrequencyFactor: scaling.positive('high_freq_factor'),
      originalTokens: scaling.integer('original_max_position_embeddings', { fallback: contextTokens }),
    },
  }
  const { lowFrequencyFactor, highFrequencyFactor } = rope.scaling!
  if (highFrequencyFactor <= lowFrequencyFactor) {
    throw scaling.fault('high_freq_factor', `greater than low_freq_factor ${lowFrequencyFactor}`)
  }
  return rope
}

/** The keys of readCommon for `config`, with the rotary settings and the dtype in both spellings. */
export function commonKeys(config: DecoderConfig): JsonObject {
  const eos = config.eosIds
  return {
    bos_token_id: config.bosId ?? null,
    dtype: huggingFaceDtype[config.dtype],
    eos_token_id: eos.length > 1 ? [...eos] : (eos[0] ?? null),
    head_dim: config.C,
    hidden_act: 'silu',
    hidden_size: config.D,
    initializer_range: config.initializerDeviation,
    intermediate_size: config.F,
    max_position_embeddings: config.contextTokens,
    num_attention_heads: config.H,
    num_hidden_layers: config.L,
    num_key_value_heads: config.K,
    pad_token_id: config.padId ?? null,
    rms_norm_eps: config.eps,
    ...ropeKeys(config.rope),
    tie_word_embeddings: config.tiedHead,
    torch_dtype: huggingFaceDtype[config.dtype],
    vocab_size: config.V,
  }
}

function ropeKeys({ theta, scaling }: RopeShape): JsonObject {
  if (!scaling) {
    return {
      rope_parameters: { rope_theta: theta, rope_type: 'default' },
      rope_scaling: null,
      rope_theta: theta,
    }
  }
  const keys = {
    factor: scaling.factor,
    high_freq_factor: scaling.highFrequencyFactor,
    low_freq_factor: scaling.lowFrequencyFactor,
    original_max_position_embeddings: scaling.originalTokens,
    rope_type: scaling.kind,
  }
  return { rope_parameters: { ...keys, rope_theta: theta }, rope_scaling: keys, rope_theta: theta }
}

/** Window per layer by the keys of Qwen2 and Qwen3: none unless `use_sliding_window`, then by `layer_types`, else from
 *  layer `max_window_layers` on. */
export function readLayerWindows(reader: ConfigReader, L: number): number[] {
  const use = reader.boolean('use_sliding_window', false)
  const window = use ? reader.integer('sliding_window', { fallback: 4096 }) : 0
  const first = reader.integer('max_window_layers', { fallback: 28, minimum: 0 })
  if (!reader.has('layer_types')) return Array.from({ length: L }, (_, i) => (i >= first ? window : 0))
  const types = reader.strings('layer_types')
  if (types.length !== L) throw reader.fault('layer_types', `a list of num_hidden_layers = ${L} names`)
  return types.map((type) => {
    if (type === 'full_attention') return 0
    if (type === 'sliding_attention' && window > 0) return window
    const known = use ? '"full_attention" or "sliding_attention"' : '"full_attention" (use_sliding_window is not set)'
    throw reader.fault('layer_types', `names out of ${known}`)
  })
}

/** The keys of readLayerWindows for windows that are 0 or all the same. */
export function layerWindowKeys(config: DecoderConfig): JsonObject {
  const window = Math.max(0, ...config.windows)
  return {
    layer_types: config.windows.map((width) => (width > 0 ? 'sliding_attention' : 'full_attention')),
    max_window_layers: window > 0 ? config.windows.findIndex((width) => width > 0) : config.L,
    sliding_window: window > 0 ? window : null,
    use_sliding_window: window > 0,
  }
}

/** Throws ERR_MODEL unless the sizes of `config`, which may not come from a file, make a decoder. */
export function checkConfig(config: DecoderConfig): void {
  const fault = (key: string, expected: string, received: unknown) =>
    new CaravanError('ERR_MODEL', `model configuration: ${key} must be ${expected}; got ${received}`, {
      details: { key, expected, received },
    })
  for (const key of ['V', 'D', 'L', 'H', 'K', 'C', 'F', 'contextTokens'] as const) {
    const value = config[key]
    if (!Number.isSafeInteger(value) || value < 1 || value >= 2 ** 31) throw fault(key, 'an integer >= 1', value)
  }
  if (config.H % config.K !== 0) throw fault('K', `a divisor of H = ${config.H}`, config.K)
  if (config.C % 2 !== 0) throw fault('C', 'even', config.C)
  if (!(config.eps > 0)) throw fault('eps', 'a number > 0', config.eps)
  if (!(config.rope.theta > 0)) throw fault('rope.theta', 'a number > 0', config.rope.theta)
  if (config.clipQkv !== undefined && !(config.clipQkv > 0)) throw fault('clipQkv', 'a number > 0', config.clipQkv)
  const windows = config.windows
  if (windows.length !== config.L || windows.some((width) => !Number.isSafeInteger(width) || width < 0)) {
    throw fault('windows', `L = ${config.L} integers >= 0`, `[${windows.join(',')}]`)
  }
}
