// What a model costs: parameters and products exactly, by formula; memory of a training step by what the tape keeps, op
// by op. A plan printed before training starts, and the numerator of every "FLOP/s achieved", come from here.
import type { DecoderShape } from '../nn/decoder_shape.js'
import { logitsChunkBytes } from '../ops/index.js'
import type { Checkpointing } from '../tensor/index.js'
import type { AdapterCost } from './adapter_cost.js'

/** Weights of the matrices that every token is multiplied with in one block. */
function blockMatrixCount({ D, H, K, C, F }: DecoderShape): number {
  const attention = D * H * C + 2 * D * K * C + H * C * D
  return attention + 3 * D * F
}

/** Biases and norm weights of one block. */
function blockVectorCount(shape: DecoderShape): number {
  const { D, H, K, C, F, attentionBias, mlpBias, normKind, queryKeyNorm } = shape
  let count = normKind === 'rms' ? 2 * D : 0
  if (queryKeyNorm === 'head') count += 2 * C
  if (queryKeyNorm === 'full') count += H * C + K * C
  if (attentionBias !== 'none') count += H * C + 2 * K * C
  if (attentionBias === 'all') count += D
  if (mlpBias) count += 2 * F + D
  return count
}

/** Number of parameters; a tied head counts once. */
export function parameterCount(shape: DecoderShape): number {
  const { V, D, L, tiedHead, normKind } = shape
  const tables = (tiedHead ? 1 : 2) * V * D
  const finalNorm = normKind === 'rms' ? D : 0
  return tables + finalNorm + L * (blockMatrixCount(shape) + blockVectorCount(shape))
}

/**
 * Floating-point operations of one forward pass per token: two for each weight that it meets (the embedding is a
 * look-up, the head is not), and four per head width and visible key for the scores and their use. `meanContext` is the
 * mean number of keys that a query sees, T/2 for whole sequences of T. Norms, rotation and softmax are left out, as is
 * usual; a training step is three forward passes (the backward pass makes two products for each one).
 */
export function forwardFlopsPerToken(shape: DecoderShape, meanContext: number): number {
  const { V, D, L, H, C, windows } = shape
  let flops = 2 * (L * blockMatrixCount(shape) + V * D)
  for (const window of windows) flops += 4 * H * C * (window > 0 ? Math.min(window, meanContext) : meanContext)
  return flops
}

/** Operations of a training step per token, by forwardFlopsPerToken. Frozen weights need no gradient, which is one of
 *  their three products; an adapter's are trained. */
export function trainingFlopsPerToken(shape: DecoderShape, meanContext: number, adapter?: AdapterCost): number {
  const all = 3 * forwardFlopsPerToken(shape, meanContext)
  return adapter ? all - forwardFlopsPerToken(shape, 0) + 6 * adapter.parameters : all
}

export interface TrainingCostOptions {
  /** Tokens of one micro-batch. */
  tokens: number
  /** Element type of weights and activations. */
  dtype: 'f32' | 'bf16'
  /** What each block leaves on the tape; default none, which leaves all that the backward pass reads. */
  checkpoint?: Checkpointing
  /** Trained in place of the weights. */
  adapter?: AdapterCost
  /** What computes; default cpu. */
  device?: 'cpu' | 'cuda'
  /** How the optimizer keeps what is beside bf16 weights, and its moments: lib/optim/adamw.ts. */
  master?: 'full' | 'split'
  moments?: 'f32' | 'bf16'
}

/** Bytes that one block leaves on the tape per token, for the backward pass. */
export function blockTapeBytesPerToken(shape: DecoderShape, dtype: 'f32' | 'bf16'): number {
  const { D, H, K, C, F, queryKeyNorm, clipQkv, normKind } = shape
  const [query, key] = [H * C, K * C]
  // Four rows of width D: inputs of the two branches and of the two norms (in post-norm: the branches' outputs).
  // Rotated queries and keys, values, attention output; gate, up, and their product.
  let elements = 4 * D + 2 * query + 2 * key + 3 * F
  // f32 numbers: 1/rms of two norms, log-sum-exp per head.
  let scalars = 2 + H
  if (normKind === 'layer') scalars += 2
  if (queryKeyNorm !== 'none') {
    elements += query + key
    scalars += queryKeyNorm === 'head' ? H + K : 2
  }
  // Each clamp is two `maximum`, each of which keeps its input.
  if (clipQkv !== undefined) elements += 2 * (query + 2 * key)
  return elements * bytesOf(dtype) + scalars * 4
}

/** Bytes per token that a block leaves on the tape until the backward pass runs it again for the rest. */
export function blockKeptBytesPerToken(
  shape: DecoderShape,
  dtype: 'f32' | 'bf16',
  checkpoint: Checkpointing = 'none',
): number {
  const { D, H, K, C, F, normPlacement } = shape
  if (checkpoint === 'none') return blockTapeBytesPerToken(shape, dtype)
  if (checkpoint === 'full') return D * bytesOf(dtype)
  // The input; what the products make but the last one, whose result is the next block's input (in post-norm a norm
  // still reads it): queries, keys, values, gate, up, and the attention branch's end; what attention makes.
  const rows = normPlacement === 'post' ? 3 : 2
  return (rows * D + 2 * H * C + 2 * K * C + 2 * F) * bytesOf(dtype) + H * 4
}

/** Bytes that a forward pass leaves on the tape: what the blocks keep, embedding, rotation, final norm, loss. */
export function tapeBytes(shape: DecoderShape, { tokens, dtype, checkpoint }: TrainingCostOptions): number {
  const { D, L, C, normKind } = shape
  const e = bytesOf(dtype)
  const perBlock = blockKeptBytesPerToken(shape, dtype, checkpoint)
  // Input of the final norm and its output; ids, targets, log-sum-exp and log-probability of the loss; the rotary
  // table.
  const ends = 2 * D * e + 4 * (normKind === 'layer' ? 2 : 1) + 4 * 4 + 4 * C
  return tokens * (L * perBlock + ends)
}

/** Buffers in which the matrix products of the CPU pack their operands: measured, bounded by the sizes of caches. */
const PACKING_BYTES = 4 * 2 ** 20

/** Bytes beyond the tape at the worst moment of a step: the logits of a chunk at the loss, or the gradients inside the
 *  MLP of the last block, with checkpointing beside what it computes again. By then the final norm has been played. */
export function workspaceBytes(shape: DecoderShape, options: TrainingCostOptions): number {
  const { D, F, V, normPlacement } = shape
  const { tokens, dtype, checkpoint, device = 'cpu' } = options
  const e = bytesOf(dtype)
  // Gradient of the hidden rows, and of one chunk of them the rows, their gradient in f32, and the logits.
  const chunk = Math.min(logitsChunkBytes[device], tokens * V * 4)
  const loss = tokens * D * e + (chunk / (V * 4)) * D * (e + 4) + chunk + (device === 'cpu' ? PACKING_BYTES : 0)
  const replayed = blockTapeBytesPerToken(shape, dtype) - blockKeptBytesPerToken(shape, dtype, checkpoint)
  // Of gate and up, and of the block's result; in post-norm also of what the norm was given.
  const gradients = 2 * F + (normPlacement === 'post' ? 2 : 1) * D
  const block = tokens * (replayed + (gradients - 2 * D) * e)
  return Math.max(loss, block)
}

/** Bytes of a training step by what they are for. */
export interface TrainingMemory {
  weights: number
  /** Sums over micro-batches, always f32. */
  gradients: number
  /** Two moments, and f32 master weights, or their lower halves, where the weights are bf16. */
  optimizer: number
  tape: number
  workspace: number
  total: number
}

/** Memory plan of training all parameters, or an adapter, with AdamW. */
export function trainingMemory(shape: DecoderShape, options: TrainingCostOptions): TrainingMemory {
  const { dtype, adapter } = options
  const count = parameterCount(shape)
  // The matrices of an adapter are f32, and so are their own masters.
  const trained = adapter ? adapter.parameters : count
  const parts = {
    weights: count * bytesOf(dtype) + (adapter ? trained * 4 : 0),
    gradients: trained * 4,
    optimizer: trained * optimizerBytes(options),
    tape: tapeBytes(shape, options) + (adapter ? adapterTapeBytes(shape, adapter, options) : 0),
    workspace: workspaceBytes(shape, options),
  }
  return { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) }
}

/** Bytes of optimizer state a trained parameter. */
function optimizerBytes({ dtype, adapter, master, moments }: TrainingCostOptions): number {
  const beside = dtype === 'f32' || adapter ? 0 : master === 'full' ? 4 : 2
  return beside + 2 * bytesOf(moments ?? 'f32')
}

/** Bytes that an adapter leaves on the tape; with checkpointing what is kept, and the rest of the block that is run
 *  again. */
function adapterTapeBytes(shape: DecoderShape, adapter: AdapterCost, options: TrainingCostOptions): number {
  const { tokens, dtype, checkpoint = 'none' } = options
  const roundedMatrices = dtype === 'bf16' ? adapter.parameters * 2 : 0
  const all = tokens * adapter.tapeElementsPerToken * bytesOf(dtype) + roundedMatrices
  if (checkpoint === 'none') return all
  const kept = checkpoint === 'selective' ? tokens * adapter.keptElementsPerToken * bytesOf(dtype) : 0
  return kept + (all - kept) / shape.L
}

function bytesOf(dtype: 'f32' | 'bf16'): number {
  return dtype === 'f32' ? 4 : 2
}
