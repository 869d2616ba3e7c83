// Rows of a table by token id. The gradient adds rows in token order, so it repeats bit for bit.
import type { DType } from '../base/dtype.js'
import {
  defineOp,
  recordingTape,
  reshape,
  type Sample,
  type SampleDraw,
  type Tensor,
  withoutTape,
} from '../tensor/index.js'
import { affine, cast, greater, iota, maximum, neg, sub } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { matmul } from './matmul.js'

const withF64: readonly DType[] = ['f32', 'bf16', 'f64']

function someIds(sample: Sample, draw: SampleDraw): { ids: Int32Array } {
  return { ids: Int32Array.from({ length: sample.N as number }, () => draw.integer(0, sample.V as number)) }
}

/** One-hot rows [N,V] of `ids`, from comparisons alone. */
function oneHot(ids: Tensor, V: number, dtype: DType): Tensor {
  const row = reshape(cast(ids, dtype), [-1, 1])
  const distance = sub(row, reshape(iota(ids.device, V, { dtype }), [1, V]))
  return greater(affine(maximum(distance, neg(distance)), -1, 0.5), affine(distance, 0, 0))
}

export const embeddingOp = defineOp({
  name: 'embedding',
  signature: 'ids[N]:i32 w[V,D] -> y[N,D]',
  reference: ({ ids, w }) => {
    const [V, D] = w.shape as [number, number]
    const N = ids.shape[0]!
    return { y: reshape(matmul(reshape(oneHot(ids, V, w.dtype), [1, N, V]), reshape(w, [1, V, D])), [N, D]) }
  },
  // Rows of integers are picked, too; only numbers with a gradient have a reference.
  dtypes: [...withF64, 'i32'],
  saved: ['ids', 'w'],
  backward: ({ y: dy }, { ids, w }, flow) => {
    const dw = flow.into('w')
    if (dw) embeddingBackwardAddOp({ dw, dy: dy!, ids })
    return { w: dw ?? embeddingBackwardOp({ dy: dy!, ids, V: w.shape[0]! }).dw }
  },
  constant: ['ids'],
  data: someIds,
  samples: [
    { N: 7, V: 5, D: 9 },
    { N: 33, V: 17, D: 16 },
    { N: 0, V: 3, D: 4 },
    { N: 5, V: 7, D: 1040 },
    { N: 4096, V: 32000, D: 1024, bench: true },
    ...gpuSamples.embedding,
  ],
})

export const embeddingBackwardOp = defineOp({
  name: 'embedding_backward',
  signature: 'dy[N,D] ids[N]:i32 -> dw[V,D]:f32 | V',
  dtypes: withF64,
  reference: ({ dy, ids, V }) => {
    const [N, D] = dy.shape as [number, number]
    const hot = reshape(oneHot(ids, V, dy.dtype), [1, N, V])
    return { dw: reshape(matmul(hot, reshape(dy, [1, N, D]), { transposeA: true }), [V, D]) }
  },
  data: someIds,
  samples: [
    { N: 7, V: 5, D: 9 },
    { N: 33, V: 17, D: 16 },
    { N: 4096, V: 32000, D: 1024, bench: true },
    ...gpuSamples.embedding,
  ],
})

/** dw[ids[n]] += dy[n], in place. */
export const embeddingBackwardAddOp = defineOp({
  name: 'embedding_backward_add',
  signature: 'dw[V,D]:f32! dy[N,D] ids[N]:i32 ->',
  dtypes: withF64,
  data: someIds,
  samples: [{ N: 7, V: 5, D: 9 }],
})

/** Rows `ids` [N] of `w` [V,D]. ERR_KERNEL at the next wait when an id is outside the table. */
export const embedding = (ids: Tensor, w: Tensor): Tensor => embeddingOp({ ids, w }).y

/** Rows `rows` [N] of an activation `x` [M,D], in its dtype; rows may recur. The gradient of a row is the sum over its
 *  uses, in order. Differs from embedding in the gradient's dtype alone: that of a parameter stays f32. */
export function takeRows(x: Tensor, rows: Tensor): Tensor {
  const y = withoutTape(() => embedding(rows, x))
  if (!x.tracked) return y
  recordingTape()?.add({
    name: 'take_rows',
    inputs: [x],
    outputs: [y],
    saved: [rows],
    backward: ([dy]) => [rowsPlaced(dy!, rows, x.shape[0]!)],
  })
  return y
}

/** An activation [M,D] with the rows of `x` [N,D] at `rows` [N], in order and each once, and zeros elsewhere; in the
 *  dtype of x. */
export function placeRows(x: Tensor, rows: Tensor, M: number): Tensor {
  const y = withoutTape(() => rowsPlaced(x, rows, M))
  if (!x.tracked) return y
  recordingTape()?.add({
    name: 'place_rows',
    inputs: [x],
    outputs: [y],
    saved: [rows],
    backward: ([dy]) => [embedding(rows, dy!)],
  })
  return y
}

function rowsPlaced(x: Tensor, rows: Tensor, M: number): Tensor {
  const { dw } = embeddingBackwardOp({ dy: x, ids: rows, V: M })
  return dw.dtype === x.dtype ? dw : cast(dw, x.dtype)
}
