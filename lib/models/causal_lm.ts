// A language model: decoder and output head. There is no `logits()`: rows meet the vocabulary only inside the fused ops
// of lib/ops/linear_logprob, which take `hidden` rows and `head`.
import type { DType } from '../base/dtype.js'
import { Decoder, type ForwardOptions, type PackedRows } from '../nn/decoder.js'
import { Linear } from '../nn/linear.js'
import { Module, ParameterScope, type ParameterSource } from '../nn/module.js'
import type { Device } from '../runtime/index.js'
import type { Tensor } from '../tensor/index.js'
import type { JsonObject } from './config_reader.js'
import type { DecoderConfig } from './decoder_config.js'
import { huggingFaceName } from './parameter_names.js'
import { familyNamed, type Task } from './registry.js'

/** What a model folder said beside the weights, kept for saving. */
export interface ModelOrigin {
  /** config.json as it was read. */
  configJson: JsonObject
  /** generation_config.json as it was read. */
  generationConfigJson: JsonObject | undefined
  /** What was odd but harmless. */
  warnings: readonly string[]
}

export class CausalLm extends Module {
  readonly task: Task = 'CausalLM'
  readonly decoder: Decoder
  /** The output head where it is not the embedding. */
  readonly output: Linear | undefined

  constructor(
    source: ParameterSource,
    readonly config: DecoderConfig,
    readonly origin?: ModelOrigin,
  ) {
    super()
    const root = new ParameterScope(source)
    const { D: inputs, V: outputs } = config
    // Before the decoder, which owns more than parameters: a source that throws here leaves nothing else behind.
    this.output = config.tiedHead ? undefined : new Linear(root.at('output'), { inputs, outputs, role: 'head' })
    this.decoder = new Decoder(root.at('decoder'), config)
  }

  /** [V,D]: the embedding itself where the head is tied. */
  get head(): Tensor {
    return (this.output ?? this.decoder.embedding).weight
  }

  get device(): Device {
    return this.head.device
  }

  /** Element type of the weights in memory. */
  get dtype(): DType {
    return this.head.dtype
  }

  get warnings(): readonly string[] {
    return this.origin?.warnings ?? []
  }

  /** Hidden rows [N,D] after the final norm. */
  hidden(rows: PackedRows, options: ForwardOptions = {}): Tensor {
    return this.decoder.forward(rows, options)
  }

  /** Parameters by their Hugging Face name; a tied head is there once, as the embedding. */
  override parameters(): Map<string, Tensor> {
    const { blockNorms } = familyNamed(this.config.family)
    const named = [...super.parameters()].map(([name, tensor]) => [huggingFaceName(name, blockNorms), tensor] as const)
    return new Map(named)
  }

  /** Whether gradients flow to the parameters. */
  setTrainable(trainable: boolean): void {
    for (const tensor of this.parameters().values()) tensor.tracked = trainable
  }
}
