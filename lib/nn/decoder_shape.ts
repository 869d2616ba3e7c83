// What decides the mathematics of a decoder. Names of checkpoints, token ids and files are not here: lib/models adds
// them.
import type { NormKind } from './norm.js'

export interface DecoderShape {
  /** Vocabulary (rows of the embedding), width, layers, query heads, key/value heads, head width, feed-forward width.
   *  */
  V: number
  D: number
  L: number
  H: number
  K: number
  C: number
  F: number
  /** 'pre': x + f(norm(x)). 'post': x + norm(f(x)) (OLMo 2). */
  normPlacement: 'pre' | 'post'
  normKind: NormKind
  eps: number
  /** RMSNorm of queries and keys: none, per head after the split (Qwen3), or over the whole projection (OLMo 2). */
  queryKeyNorm: 'none' | 'head' | 'full'
  /** Biases of the projections: none, of query, key and value (Qwen2), or of the output as well. */
  attentionBias: 'none' | 'qkv' | 'all'
  mlpBias: boolean
  /** The output head is the embedding. */
  tiedHead: boolean
  /** Per layer, the number of newest keys that a query sees, itself included; 0 = all. */
  windows: readonly number[]
  /** Queries, keys and values are held inside +-clipQkv after their projection (OLMo 1). */
  clipQkv: number | undefined
  rope: RopeShape
}

export interface RopeShape {
  theta: number
  scaling: Llama3Scaling | undefined
}

/** Llama 3.1's stretching of the slow frequencies. */
export interface Llama3Scaling {
  kind: 'llama3'
  factor: number
  lowFrequencyFactor: number
  highFrequencyFactor: number
  /** Context length before stretching. */
  originalTokens: number
}

/**
 * Rotary frequencies f_j = theta^(-2j/C), j < C/2, in f64, stretched as in transformers' `llama3` rule when asked for:
 * with wavelength w = 2 pi / f and L tokens of original context, f stays where w < L / high, becomes f / factor where w
 * > L / low, and between is blended by s = (L / w - low) / (high - low).
 */
export function ropeFrequencies(C: number, { theta, scaling }: RopeShape): Float64Array {
  const frequencies = Float64Array.from({ length: C / 2 }, (_, j) => theta ** ((-2 * j) / C))
  if (!scaling) return frequencies
  const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalTokens } = scaling
  return frequencies.map((f) => {
    const turns = (originalTokens * f) / (2 * Math.PI)
    if (turns > high) return f
    if (turns < low) return f / factor
    const s = (turns - low) / (high - low)
    return ((1 - s) * f) / factor + s * f
  })
}
