// One decoder for every family: embedding, blocks, final norm. Rows of all sequences lie end to end, so there is no
// batch dimension and no padding; which rows see which is said by the segment table alone.
import { placeRows, ropeTable, takeRows } from '../ops/index.js'
import { type Checkpointing, checkpoint, keep, scope, Tensor } from '../tensor/index.js'
import { type AttentionContext, type KeyValueStore, type ReadRows, SelfAttention } from './attention.js'
import { type DecoderShape, ropeFrequencies } from './decoder_shape.js'
import { Embedding } from './embedding.js'
import type { Lora } from './lora.js'
import { Mlp } from './mlp.js'
import { Module, type ParameterScope } from './module.js'
import { Norm } from './norm.js'

/** Sequences laid end to end, as i32 tensors. */
export interface PackedRows {
  /** [N] */
  ids: Tensor
  /** [N], from 0 in each sequence. */
  positions: Tensor
  /** [S,4]: q_begin, q_end, k_begin, k_end of each sequence (lib/ops/attention). */
  segments: Tensor
  /** [M]: the rows whose keys and values `segments` speaks of, where sequences share a prefix. */
  keyRows?: Tensor
  /** The rows that somebody reads; the last block computes nothing for others, whose hidden rows are 0. Default:
   *  all. */
  read?: ReadRows
}

export interface ForwardOptions {
  /** What each block leaves for the backward pass, which runs it again for the rest; default none: all is kept. */
  checkpoint?: Checkpointing
  /** Keys and values of earlier rows; for generating, outside any tape. */
  store?: KeyValueStore
}

export class Block extends Module {
  readonly attentionNorm: Norm
  readonly attention: SelfAttention
  readonly mlpNorm: Norm
  readonly mlp: Mlp

  constructor(
    at: ParameterScope,
    private readonly shape: DecoderShape,
    layer: number,
  ) {
    super()
    const norm = { kind: shape.normKind, width: shape.D, eps: shape.eps }
    this.attentionNorm = new Norm(at.at('attentionNorm'), norm)
    this.attention = new SelfAttention(at.at('attention'), shape, layer)
    this.mlpNorm = new Norm(at.at('mlpNorm'), norm)
    this.mlp = new Mlp(at.at('mlp'), { D: shape.D, F: shape.F, bias: shape.mlpBias })
  }

  /** [N,D] from x [N,D], or [R,D] where R rows are read. The residual is added in the epilogue of the last op of each
   *  branch. */
  forward(x: Tensor, context: AttentionContext): Tensor {
    return scope(() => {
      const residual = context.read ? takeRows(x, context.read.rows) : x
      if (this.shape.normPlacement === 'post') {
        const h = this.attentionNorm.forward(this.attention.forward(x, context), residual)
        return this.mlpNorm.forward(this.mlp.forward(h), h)
      }
      const h = this.attention.forward(this.attentionNorm.forward(x), context, residual)
      return this.mlp.forward(this.mlpNorm.forward(h), h)
    })
  }
}

export class Decoder extends Module {
  readonly embedding: Embedding
  readonly blocks: readonly Block[]
  readonly norm: Norm
  /** The adapter that layers of the blocks have, if any. */
  lora: Lora | undefined
  /** [C/2] f64; a constant, not a parameter. */
  readonly #frequencies: Tensor

  constructor(
    at: ParameterScope,
    readonly shape: DecoderShape,
  ) {
    super()
    this.embedding = new Embedding(at.at('embedding'), shape)
    this.blocks = Array.from({ length: shape.L }, (_, i) => new Block(at.at('blocks', i), shape, i))
    this.norm = new Norm(at.at('norm'), { kind: shape.normKind, width: shape.D, eps: shape.eps })
    const frequencies = ropeFrequencies(shape.C, shape.rope)
    this.#frequencies = keep(Tensor.from(this.embedding.weight.device, frequencies, [frequencies.length]))
  }

  /** Hidden rows [N,D] after the final norm. */
  forward(rows: PackedRows, options: ForwardOptions = {}): Tensor {
    return scope(() => {
      const { segments, keyRows, read } = rows
      const { checkpoint: mode = 'none', store } = options
      const table = ropeTable(rows.positions, this.#frequencies)
      let x = this.embedding.forward(rows.ids)
      const inPass = this.lora?.masks?.begin() ?? ((part) => part())
      for (const block of this.blocks) {
        const before = x
        const context = { table, segments, keyRows, store, read: block === this.blocks.at(-1) ? read : undefined }
        // What the second run of a body reads besides parameters must come in as its inputs.
        const inputs = [before, table, segments, keyRows, context.read?.rows, context.read?.segments]
        x = checkpoint(
          mode,
          () => inPass(() => block.forward(before, context)),
          ...inputs.filter((tensor) => tensor !== undefined),
        )
        // Nobody but the tape, where one records, needs the input of a finished block.
        keep(before).dispose()
      }
      const hidden = this.norm.forward(x)
      return read ? placeRows(hidden, read.rows, rows.ids.shape[0]!) : hidden
    })
  }

  override dispose(): void {
    super.dispose()
    this.#frequencies.dispose()
  }
}
