// What an adapter costs, by formula, before any model is there.
import type { DecoderShape } from '../nn/decoder_shape.js'
import { ALL_LINEAR, checkSpec, type LoraSpec, targetedLayers } from './adapter.js'

/** An adapter in numbers. */
export interface AdapterCost {
  layers: number
  parameters: number
  /** Elements that all layers together leave on the tape for a token, beyond what their base does. */
  tapeElementsPerToken: number
  /** Those of them that selective checkpointing keeps until the backward pass reaches their block. */
  keptElementsPerToken: number
}

/** The cost of an adapter for a decoder of `shape`. ERR_CONFIG as addAdapter has it. */
export function adapterCost(shape: DecoderShape, spec: LoraSpec): AdapterCost {
  checkSpec(spec)
  const { rank, targetModules, dropout = 0, decomposed = false } = spec
  const cost: AdapterCost = { layers: 0, parameters: 0, tapeElementsPerToken: 0, keptElementsPerToken: 0 }
  for (const [name, [inputs, outputs]] of targetedLayers(layerSizes(shape), targetModules ?? [ALL_LINEAR])) {
    cost.layers++
    cost.parameters += rank * (inputs + outputs) + (decomposed ? outputs : 0)
    // The rows between A and B, with dropout the masked input, and with lengths of their own the rows before these.
    cost.tapeElementsPerToken += rank + (dropout > 0 ? inputs : 0) + (decomposed ? outputs : 0)
    // With lengths of their own the products are kept in place of the rows after them, but the last one beside them.
    const besideResult = decomposed && shape.normPlacement === 'pre' && name.endsWith('.down_proj')
    cost.keptElementsPerToken += rank + (besideResult ? outputs : 0)
  }
  return cost
}

/** Inputs and outputs of every linear layer of the blocks, by name. */
function layerSizes({ D, L, H, K, C, F }: DecoderShape): Map<string, [inputs: number, outputs: number]> {
  const inBlock: [name: string, sizes: [number, number]][] = [
    ['self_attn.q_proj', [D, H * C]],
    ['self_attn.k_proj', [D, K * C]],
    ['self_attn.v_proj', [D, K * C]],
    ['self_attn.o_proj', [H * C, D]],
    ['mlp.gate_proj', [D, F]],
    ['mlp.up_proj', [D, F]],
    ['mlp.down_proj', [F, D]],
  ]
  const layers = Array.from({ length: L }, (_, i) =>
    inBlock.map(([name, sizes]) => [`model.layers.${i}.${name}`, sizes]),
  )
  return new Map(layers.flat() as [string, [number, number]][])
}
