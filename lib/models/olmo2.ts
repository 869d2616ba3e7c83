// OLMo 2: norms on the output of each branch, RMSNorm over the whole query and key projections.
import { commonKeys, readCommon } from './decoder_config.js'
import type { Family } from './family.js'

export const olmo2: Family = {
  name: 'olmo2',
  architecture: 'Olmo2ForCausalLM',
  read(reader) {
    const config = readCommon(reader, 'olmo2', { eps: 1e-5 })
    config.normPlacement = 'post'
    config.queryKeyNorm = 'full'
    config.attentionBias = reader.boolean('attention_bias', false) ? 'all' : 'none'
    return config
  },
  write(config) {
    return { ...commonKeys(config), attention_bias: config.attentionBias === 'all' }
  },
  blockNorms: { attention: 'post_attention_layernorm', mlp: 'post_feedforward_layernorm' },
}
