// Qwen3 (dense): RMSNorm of each query and key head, and a head width of its own (128 unless said).
import { commonKeys, layerWindowKeys, readCommon, readLayerWindows } from './decoder_config.js'
import { type Family, preNormNames } from './family.js'

export const qwen3: Family = {
  name: 'qwen3',
  architecture: 'Qwen3ForCausalLM',
  read(reader) {
    const config = readCommon(reader, 'qwen3', { eps: 1e-6, headWidth: 128 })
    config.queryKeyNorm = 'head'
    config.attentionBias = reader.boolean('attention_bias', false) ? 'all' : 'none'
    config.windows = readLayerWindows(reader, config.L)
    return config
  },
  write(config) {
    return { ...commonKeys(config), ...layerWindowKeys(config), attention_bias: config.attentionBias === 'all' }
  },
  blockNorms: preNormNames,
}
