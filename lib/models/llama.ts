// Llama 2 and 3 (also Tulu 3, TinyLlama, SmolLM2, ...): the plain pre-norm decoder.
import { commonKeys, readCommon } from './decoder_config.js'
import { type Family, preNormNames } from './family.js'

export const llama: Family = {
  name: 'llama',
  architecture: 'LlamaForCausalLM',
  read(reader) {
    const config = readCommon(reader, 'llama', { eps: 1e-6 })
    config.attentionBias = reader.boolean('attention_bias', false) ? 'all' : 'none'
    config.mlpBias = reader.boolean('mlp_bias', false)
    return config
  },
  write(config) {
    return { ...commonKeys(config), attention_bias: config.attentionBias === 'all', mlp_bias: config.mlpBias }
  },
  blockNorms: preNormNames,
}
