// Self-attention over packed rows: projection, optional norm of queries and keys, optional clamp, rotation, attention,
// output projection. Where keys and values live is left to the caller: by default they are those of the rows
// themselves, while generating they are appended to a cache.
import { type AttentionOptions, attention, fill, maximum, neg, rope, takeRows } from '../ops/index.js'
import { reshape, type Tensor } from '../tensor/index.js'
import type { DecoderShape } from './decoder_shape.js'
import { Linear } from './linear.js'
import { Module, type ParameterScope } from './module.js'
import { Norm } from './norm.js'

/** Where the keys and values of earlier rows are kept while generating. */
export interface KeyValueStore {
  /** Adds the rows k, v [N,K,C] of `layer` and returns o [N,H,C] of q [N,H,C] over all keys that the store has for the
   *  sequences in `segments`. */
  attend(layer: number, rows: { q: Tensor; k: Tensor; v: Tensor; segments: Tensor }, options: AttentionOptions): Tensor
}

/** Some rows of a pass, for which alone a block computes what comes out of it. */
export interface ReadRows {
  /** [R] i32, ascending: of the sequence of each segment the last ones. */
  rows: Tensor
  /** [S,4] i32: the segments of the pass with these rows as queries, counted by their place in `rows`. */
  segments: Tensor
}

/** What every layer of one forward pass shares. */
export interface AttentionContext {
  /** Cosines and sines of the positions, [N,C] f32. */
  table: Tensor
  /** [S,4] i32: q_begin, q_end, k_begin, k_end of each sequence; with a store, what that store reads. */
  segments: Tensor
  /** [M] i32: the rows whose keys and values `segments` speaks of, where sequences share a prefix; default: all. */
  keyRows?: Tensor
  store?: KeyValueStore
  /** The rows that are queries; default: all. */
  read?: ReadRows
}

export class SelfAttention extends Module {
  readonly query: Linear
  readonly key: Linear
  readonly value: Linear
  readonly queryNorm: Norm | undefined
  readonly keyNorm: Norm | undefined
  readonly output: Linear

  constructor(
    scope: ParameterScope,
    private readonly shape: DecoderShape,
    private readonly layer: number,
  ) {
    super()
    const { D, H, K, C, attentionBias } = shape
    const bias = attentionBias !== 'none'
    this.query = new Linear(scope.at('query'), { inputs: D, outputs: H * C, bias })
    this.key = new Linear(scope.at('key'), { inputs: D, outputs: K * C, bias })
    this.value = new Linear(scope.at('value'), { inputs: D, outputs: K * C, bias })
    if (shape.queryKeyNorm !== 'none') {
      const whole = shape.queryKeyNorm === 'full'
      const options = { kind: 'rms', eps: shape.eps } as const
      this.queryNorm = new Norm(scope.at('queryNorm'), { ...options, width: whole ? H * C : C })
      this.keyNorm = new Norm(scope.at('keyNorm'), { ...options, width: whole ? K * C : C })
    }
    const outputBias = attentionBias === 'all'
    this.output = new Linear(scope.at('output'), { inputs: H * C, outputs: D, bias: outputBias, role: 'branch_output' })
  }

  /** [N,D] from x [N,D], or [R,D] where R rows are read; `residual` of the same shape is added where the sum is
   *  stored. */
  forward(x: Tensor, context: AttentionContext, residual?: Tensor): Tensor {
    const { H, K, C, windows } = this.shape
    const { read } = context
    const asking = read ? takeRows(x, read.rows) : x
    const askingTable = read ? takeRows(context.table, read.rows) : context.table
    const q = rope(this.heads(this.query.forward(asking), H, this.queryNorm), askingTable)
    const own = {
      k: rope(this.heads(this.key.forward(x), K, this.keyNorm), context.table),
      v: this.heads(this.value.forward(x), K),
    }
    const { keyRows, store } = context
    const segments = read?.segments ?? context.segments
    const options = { scale: 1 / Math.sqrt(C), window: windows[this.layer]! }
    const o = store
      ? store.attend(this.layer, { q, ...own, segments }, options)
      : attention(q, { ...shared(own, keyRows), segments }, options)
    return this.output.forward(reshape(o, [asking.shape[0]!, H * C]), residual)
  }

  /** Rows [N, heads * C] -> [N, heads, C], normed per head or as a whole, then clamped. */
  private heads(rows: Tensor, heads: number, norm?: Norm): Tensor {
    const { C, queryKeyNorm, clipQkv } = this.shape
    const whole = norm && queryKeyNorm === 'full' ? norm.forward(rows) : rows
    const clipped = clipQkv === undefined ? whole : clamp(whole, clipQkv)
    const split = reshape(clipped, [rows.shape[0]!, heads, C])
    return norm && queryKeyNorm === 'head' ? norm.forward(split) : split
  }
}

/** Keys and values [M,K,C] of the rows `rows` [M]. */
function shared({ k, v }: { k: Tensor; v: Tensor }, rows: Tensor | undefined): { k: Tensor; v: Tensor } {
  if (!rows) return { k, v }
  const [N, K, C] = k.shape as [number, number, number]
  const taken = (x: Tensor) => reshape(takeRows(reshape(x, [N, K * C]), rows), [rows.shape[0]!, K, C])
  return { k: taken(k), v: taken(v) }
}

/** Every element held inside [-limit, limit]. */
function clamp(x: Tensor, limit: number): Tensor {
  const low = fill(x.device, [1], { value: -limit, dtype: x.dtype })
  return neg(maximum(neg(maximum(x, low)), low))
}
