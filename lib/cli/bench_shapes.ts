// The models of `caravan bench step`, `generate` and `rl`: the shapes of bench/torch_peer.py, which runs the same work
// in PyTorch. Weights and tokens are random; only the sizes matter. The last three are for a GPU.
import type { DecoderConfig } from '../models/index.js'

export const benchModels = ['tiny', 'small', 'base', 'qwen05b', 'llama1b', 'llama8b'] as const
export type BenchModel = (typeof benchModels)[number]

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

/** Qwen2.5-0.5B. */
const qwen05b: DecoderConfig = {
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
}

/** Llama 3, but for the scaling of its rotary positions, which costs nothing. */
function llama3(L: number, sizes: Pick<DecoderConfig, 'D' | 'H' | 'K' | 'C' | 'F' | 'tiedHead'>): DecoderConfig {
  const rope = { theta: 500_000, scaling: undefined }
  return { ...shared(L), family: 'llama', V: 128_256, contextTokens: 8192, eps: 1e-5, rope, ...sizes }
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
  base: { config: qwen05b, B: 2, T: 256, steps: 3 },
  qwen05b: { config: { ...qwen05b, contextTokens: 8192 }, B: 8, T: 2048, steps: 8 },
  llama1b: {
    config: llama3(16, { D: 2048, H: 32, K: 8, C: 64, F: 8192, tiedHead: true }),
    B: 8,
    T: 2048,
    steps: 8,
  },
  // A full fine-tune of it takes 128 GB for weights with their lower halves, gradients and moments alone.
  llama8b: {
    config: llama3(32, { D: 4096, H: 32, K: 8, C: 128, F: 14_336, tiedHead: false }),
    B: 2,
    T: 4096,
    steps: 4,
  },
}

/** The shape of a model with another batch or length. */
export function benchShape(model: BenchModel, { batch, length }: { batch?: number; length?: number }): BenchShape {
  const shape = benchShapes[model]
  return { ...shape, B: batch ?? shape.B, T: length ?? shape.T }
}

/** Tokens of a step that are computed at a time when the command line does not say: enough to fill the processor. */
export function usualMicroBatchTokens(kind: 'cpu' | 'cuda'): number {
  return kind === 'cuda' ? 16_384 : 2048
}
