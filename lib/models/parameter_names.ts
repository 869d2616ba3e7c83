// Names of parameters here (fields of the modules) and in a Hugging Face checkpoint. Files, adapters and training
// checkpoints all speak Hugging Face; only the modules speak otherwise.
import type { BlockNormNames } from './family.js'

const outside = new Map([
  ['decoder.embedding.weight', 'model.embed_tokens.weight'],
  ['decoder.norm.weight', 'model.norm.weight'],
  ['output.weight', 'lm_head.weight'],
])

const inBlock = new Map([
  ['attention.query', 'self_attn.q_proj'],
  ['attention.key', 'self_attn.k_proj'],
  ['attention.value', 'self_attn.v_proj'],
  ['attention.output', 'self_attn.o_proj'],
  ['attention.queryNorm', 'self_attn.q_norm'],
  ['attention.keyNorm', 'self_attn.k_norm'],
  ['mlp.gate', 'mlp.gate_proj'],
  ['mlp.up', 'mlp.up_proj'],
  ['mlp.down', 'mlp.down_proj'],
])

/** The Hugging Face name of the parameter that the modules call `name`; names of no decoder part stay as they are. */
export function huggingFaceName(name: string, norms: BlockNormNames): string {
  const known = outside.get(name)
  if (known) return known
  const match = /^decoder\.blocks\.(\d+)\.(.+)\.(weight|bias)$/.exec(name)
  if (!match) return name
  const [, layer, part, kind] = match
  const norm = part === 'attentionNorm' ? norms.attention : part === 'mlpNorm' ? norms.mlp : undefined
  return `model.layers.${layer}.${norm ?? inBlock.get(part!) ?? part}.${kind}`
}

/** Tensors that old or tied checkpoints carry although nothing is missing without them. */
export function isHarmlessExtra(name: string, tiedHead: boolean): boolean {
  return /(^|\.)rotary_emb\.inv_freq$/.test(name) || (tiedHead && name === 'lm_head.weight')
}
