// What a family must say about itself. A family is one file and one line in index.ts.
import type { ConfigReader, JsonObject } from './config_reader.js'
import type { DecoderConfig } from './decoder_config.js'

export interface Family {
  /** `model_type` of its config.json, and its name here. */
  name: string
  /** Class of its language model in transformers: `architectures` of config.json. */
  architecture: string
  /** What config.json says, as a configuration. ERR_MODEL names file and key. */
  read(reader: ConfigReader): DecoderConfig
  /** config.json for `config`; keys that `read` reads and keys that transformers needs. */
  write(config: DecoderConfig): JsonObject
  /** Names of the two norms of a block in a checkpoint. */
  blockNorms: BlockNormNames
}

export interface BlockNormNames {
  attention: string
  mlp: string
}

/** Norms before each branch, as Llama names them. */
export const preNormNames: BlockNormNames = { attention: 'input_layernorm', mlp: 'post_attention_layernorm' }
