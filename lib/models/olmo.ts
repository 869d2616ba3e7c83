// OLMo 1: LayerNorm without parameters (eps fixed at 1e-5, no key for it), optional clamp of queries, keys and values.
import { commonKeys, readCommon } from './decoder_config.js'
import { type Family, preNormNames } from './family.js'

const EPS = 1e-5

export const olmo: Family = {
  name: 'olmo',
  architecture: 'OlmoForCausalLM',
  read(reader) {
    const config = readCommon(reader, 'olmo', { eps: EPS })
    config.normKind = 'layer'
    config.eps = EPS
    config.attentionBias = reader.boolean('attention_bias', false) ? 'all' : 'none'
    config.clipQkv = reader.has('clip_qkv') ? reader.positive('clip_qkv') : undefined
    return config
  },
  write(config) {
    const { rms_norm_eps: _, ...keys } = commonKeys(config)
    return { ...keys, attention_bias: config.attentionBias === 'all', clip_qkv: config.clipQkv ?? null }
  },
  blockNorms: preNormNames,
}
