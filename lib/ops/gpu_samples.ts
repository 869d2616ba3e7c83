// Benchmark sizes of ops on a GPU: those of models of 0.5B to 8B parameters at 8k to 16k tokens, where the sizes that
// suit a processor would measure launches. Each op of the table takes its list from here.
import type { Sample } from '../tensor/index.js'

type Sizes = { [letter: string]: number }

const onGpu = (samples: readonly Sample[]): Sample[] => samples.map((sample) => ({ ...sample, bench: 'cuda' }))

/** Qwen2.5-0.5B, Llama-3.2-1B and Llama-3.1-8B; and norms of queries and keys, one row a head. */
const widths: Sizes[] = [
  { N: 16384, D: 896 },
  { N: 16384, D: 2048 },
  { N: 16384, D: 4096 },
  { N: 8192, D: 4096 },
  { N: 131072, D: 128 },
]

const products: Sample[] = [
  { lead: [8192], D: 8192, F: 8192 },
  // Llama-3.2-1B: queries, keys and values; output; gate or up; down.
  { lead: [16384], D: 2048, F: 3072 },
  { lead: [16384], D: 2048, F: 2048 },
  { lead: [16384], D: 2048, F: 8192 },
  { lead: [16384], D: 8192, F: 2048 },
  // Llama-3.1-8B.
  { lead: [8192], D: 4096, F: 6144 },
  { lead: [8192], D: 4096, F: 14336 },
  { lead: [8192], D: 14336, F: 4096 },
  // Qwen2.5-0.5B.
  { lead: [16384], D: 896, F: 4864 },
]

const decodedProducts: Sample[] = [1, 8, 64, 256].map((rows) => ({ lead: [rows], D: 4096, F: 14336 }))

/** Lengths of packed answers as in instruction data (lognormal, mean near 600, at most 4096): 16384 tokens. */
const packedLengths = [
  212, 640, 95, 1480, 388, 731, 150, 2904, 505, 267, 1033, 61, 420, 878, 333, 1790, 184, 576, 117, 940, 452, 301, 1251,
  676,
]

function attentionOf(lengths: number[], sizes: Sizes): Sample {
  const N = lengths.reduce((sum, length) => sum + length, 0)
  return { N, M: N, ...sizes, S: lengths.length, queries: lengths, keys: lengths, scale: sizes.C! ** -0.5, window: 0 }
}

const repeated = (count: number, length: number) => Array<number>(count).fill(length)
const [small, large] = [
  { H: 32, K: 8, C: 64 },
  { H: 32, K: 8, C: 128 },
]

const attention: Sample[] = [
  ...[2048, 4096, 8192, 16384, 32768].map((length) => attentionOf([length], { H: 64, K: 8, C: 128 })),
  attentionOf(repeated(4, 4096), large),
  attentionOf(repeated(8, 2048), small),
  attentionOf(repeated(2, 8192), { H: 14, K: 2, C: 64 }),
  attentionOf(repeated(4, 4096), { H: 16, K: 16, C: 128 }),
  attentionOf(packedLengths, large),
  attentionOf(packedLengths, small),
]

/** Decoding: one query a sequence, `context` keys in pages of 64. */
function decodeOf(sequences: number, context: number, sizes: Sizes): Sample {
  const pages = sequences * Math.ceil(context / 64)
  const [queries, keys] = [repeated(sequences, 1), repeated(sequences, context)]
  const rows = { N: sequences, P: pages, M: pages, S: sequences }
  return { ...rows, ...sizes, queries, keys, scale: sizes.C! ** -0.5, window: 0 }
}

const decode: Sample[] = [
  decodeOf(1, 8192, large),
  decodeOf(16, 2048, large),
  decodeOf(64, 2048, large),
  decodeOf(256, 512, large),
  decodeOf(256, 2048, large),
  decodeOf(64, 2048, small),
  decodeOf(256, 2048, small),
  decodeOf(64, 2048, { H: 16, K: 16, C: 128 }),
]

/** Rows, widths and vocabularies of language-model heads. */
const heads: Sizes[] = [
  { N: 4096, D: 4096, V: 128256 },
  { N: 8192, D: 4096, V: 131072 },
  { N: 16384, D: 2048, V: 128256 },
  { N: 16384, D: 896, V: 151936 },
  { N: 8192, D: 2304, V: 256000 },
]

const adamw = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, with_master: 1 }
const parameters = [494_032_768, 1_235_814_400]
const sampled: Sizes[] = [
  ...[1, 64, 256, 512].map((N) => ({ N, V: 128256, D: 4096 })),
  { N: 256, V: 151936, D: 896 },
  { N: 256, V: 100352, D: 2048 },
]
const rows = [16384, 4096]

/** Lists of samples by what they measure. */
export const gpuSamples = {
  binary: onGpu([{ shapes: { a: rows, b: rows } }]),
  unary: onGpu([{ shapes: { x: rows } }]),
  update: onGpu([{ shapes: { y: rows, x: rows } }]),
  norm: onGpu(widths.map((sizes) => ({ ...sizes, eps: 1e-5 }))),
  gate: onGpu([
    { N: 8192, F: 14336 },
    { N: 16384, F: 8192 },
    { N: 16384, F: 4864 },
  ]),
  rope: onGpu([128, 64].map((C) => ({ N: 16384, H: 40, C, direction: 1 }))),
  embedding: onGpu([
    { N: 16384, V: 128256, D: 4096 },
    { N: 16384, V: 128256, D: 2048 },
  ]),
  linear: onGpu([...products, ...decodedProducts]),
  linearBackward: onGpu(products),
  attention: onGpu(attention),
  decode: onGpu(decode),
  /** Sizes alone; attributes are the op's. */
  heads: onGpu(heads),
  adamw: onGpu(parameters.map((count) => ({ lead: [count], ...adamw }))),
  gradients: onGpu(parameters.map((count) => ({ lead: [count] }))),
  sample: onGpu(sampled.map((sizes) => ({ ...sizes, with_probs: 0, plain: 1 }))),
  losses: { N: 262_144, S: 1024, bench: 'cuda' },
} as const
