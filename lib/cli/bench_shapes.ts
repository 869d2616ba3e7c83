// The models of `caravan bench step`: the shapes of bench/torch_peer.py, which runs the same work in PyTorch. Weights
// and tokens are random; only the sizes matter.
import type { DecoderConfig } from '../models/index.js'

export type BenchModel = 'tiny' | 'small' | 'base'

export interface BenchShape {
  config: DecoderConfig
  /** Sequences in a step, and tokens in each. */
  B: number
  T: number
  /** Measured steps when the command line does not say. */
  steps: number
}

function shared(L: number): Omit<DecoderConfig, 'family' | 'V' | 'D' | 'H' | 'K' | 'C' | 'F' | 'contextTokens'> {
  return {
    L,
    normPlacement: 'pre',
    normKind: 'rms',
    eps: 1e-6,
    queryKeyNorm: 'none',
    attentionBias: 'none',
    mlpBias: false,
    tiedHead: true,
    windows: Array(L).fill(0),
    clipQkv: undefined,
    rope: { theta: 10_000, scaling: undefined },
    dtype: 'f32',
    bosId: undefined,
    eosIds: [],
    padId: undefined,
    initializerDeviation: 0.02,
  }
}

export const benchShapes: { readonly [name in BenchModel]: BenchShape } = {
  tiny: {
    config: { ...shared(4), family: 'llama', V: 512, D: 128, H: 4, K: 2, C: 32, F: 352, contextTokens: 512 },
    B: 32,
    T: 128,
    steps: 20,
  },
  small: {
    config: { ...shared(6), family: 'llama', V: 32_000, D: 288, H: 6, K: 6, C: 48, F: 768, contextTokens: 512 },
    B: 8,
    T: 256,
    steps: 8,
  },
  base: {
    config: {
      ...shared(24),
      family: 'qwen2',
      attentionBias: 'qkv',
      V: 151_936,
      D: 896,
      H: 14,
      K: 2,
      C: 64,
      F: 4864,
      contextTokens: 1024,
    },
    B: 2,
    T: 256,
    steps: 3,
  },
}
