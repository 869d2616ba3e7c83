// Mistral 7B: Llama without biases, with one sliding window in every layer where the file gives it.
import { commonKeys, readCommon } from './decoder_config.js'
import { type Family, preNormNames } from './family.js'

export const mistral: Family = {
  name: 'mistral',
  architecture: 'MistralForCausalLM',
  read(reader) {
    const config = readCommon(reader, 'mistral', { eps: 1e-6 })
    // An explicit null means full attention; only an absent key means the 4096 of the first release.
    const fallback = Object.hasOwn(reader.json, 'sliding_window') ? undefined : 4096
    const window = fallback ?? (reader.has('sliding_window') ? reader.integer('sliding_window') : 0)
    config.windows = Array(config.L).fill(window)
    if (!reader.has('num_key_value_heads')) {
      throw reader.fault('num_key_value_heads', `an integer that divides num_attention_heads ${config.H}`)
    }
    return config
  },
  write(config) {
    return { ...commonKeys(config), sliding_window: config.windows[0]! > 0 ? config.windows[0]! : null }
  },
  blockNorms: preNormNames,
}
