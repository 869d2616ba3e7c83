// Qwen2 and Qwen2.5: query, key and value always have biases, which no key of config.json says.
import { commonKeys, layerWindowKeys, readCommon, readLayerWindows } from './decoder_config.js'
import { type Family, preNormNames } from './family.js'

export const qwen2: Family = {
  name: 'qwen2',
  architecture: 'Qwen2ForCausalLM',
  read(reader) {
    const config = readCommon(reader, 'qwen2', { eps: 1e-6 })
    config.attentionBias = 'qkv'
    config.windows = readLayerWindows(reader, config.L)
    return config
  },
  write(config) {
    return { ...commonKeys(config), ...layerWindowKeys(config) }
  },
  blockNorms: preNormNames,
}
