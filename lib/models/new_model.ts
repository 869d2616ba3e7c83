// A model with random weights. Each parameter has a random stream of its own, so its values depend on seed and place
// alone: not on dtype, device or thread count.
import type { ParameterPlace } from '../nn/module.js'
import { fill, randomNormal } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, type Tensor } from '../tensor/index.js'
import { CausalLm } from './causal_lm.js'
import { checkConfig, type DecoderConfig } from './decoder_config.js'
import { familyNamed } from './registry.js'

/** Standard deviations of the initial weights. Norm weights are 1, biases 0. */
export interface Initialisation {
  /** Of the embedding; default the configuration's initializer_range. */
  embeddingDeviation?: number
  /** Matrices get linearGain / sqrt(inputs); default: initializer_range, whatever the inputs (transformers' rule). */
  linearGain?: number
  /** Matrices that add to the residual stream (output and down projections) are divided by sqrt(2L), so that the stream
   *  does not grow with depth (Radford et al. 2019); default: true with linearGain. */
  scaleByDepth?: boolean
}

export interface NewModelOptions {
  seed: number
  init?: Initialisation
  /** Element type in memory; default f32. */
  dtype?: 'f32' | 'bf16'
  /** Whether gradients flow to the parameters; default true. */
  trainable?: boolean
}

/** A model of configuration `config` with random weights. ERR_MODEL when the configuration is impossible. */
export function newModel(device: Device, config: DecoderConfig, options: NewModelOptions): CausalLm {
  checkConfig(config)
  familyNamed(config.family)
  const { seed, init = {}, dtype = 'f32', trainable = true } = options
  const made: Tensor[] = []
  const source = (place: ParameterPlace): Tensor => {
    const stream = made.length
    const deviation = deviationOf(place, config, init)
    const value = place.role === 'norm' ? 1 : 0
    const tensor =
      deviation === undefined
        ? fill(device, place.shape, { value, dtype })
        : randomNormal(device, place.shape, { deviation, seed, stream, dtype })
    made.push(keep(tensor))
    return tensor
  }
  try {
    const model = new CausalLm(source, { ...config, dtype })
    model.setTrainable(trainable)
    return model
  } catch (error) {
    for (const tensor of made) tensor.dispose()
    throw error
  }
}

/** Standard deviation for a matrix; undefined for norms and biases. */
function deviationOf(place: ParameterPlace, config: DecoderConfig, init: Initialisation): number | undefined {
  if (place.role === 'norm' || place.role === 'bias') return undefined
  if (place.role === 'embedding') return init.embeddingDeviation ?? config.initializerDeviation
  const inputs = place.shape[1]!
  const gain = init.linearGain
  const deviation = gain === undefined ? config.initializerDeviation : gain / Math.sqrt(inputs)
  const byDepth = place.role === 'branch_output' && (init.scaleByDepth ?? gain !== undefined)
  return byDepth ? deviation / Math.sqrt(2 * config.L) : deviation
}
