// Matrix products: the batched primitive, and the linear layer with its bias and residual added where the sum is
// stored.
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { countOf, type Shape, shapeText } from '../base/shape.js'
import { defineOp, reshape, type Tensor } from '../tensor/index.js'
import { add } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { sum } from './reduce.js'

const withF64: readonly DType[] = ['f32', 'bf16', 'f64']

/** c = a b for each of G pairs; a transposed operand is stored with its two last sizes swapped. */
export const matmulOp = defineOp({
  name: 'matmul',
  signature: 'a[G,A1,A2] b[G,B1,B2] -> c[G,I,P] | transpose_a transpose_b I P',
  dtypes: withF64,
  shapes: ({ a, b, transpose_a, transpose_b, I, P }) => {
    const sizes = productSizes(a.shape, b.shape, { transposeA: transpose_a === 1, transposeB: transpose_b === 1 })
    if (sizes.I !== I || sizes.P !== P) {
      throw new CaravanError('ERR_SHAPE', `matmul: the result is [G,${sizes.I},${sizes.P}]; got I=${I} P=${P}`)
    }
    return {}
  },
  saved: ['a', 'b'],
  backward: ({ c: dc }, { a, b, transpose_a, transpose_b }) => {
    const [ta, tb] = [transpose_a === 1, transpose_b === 1]
    return {
      a: ta ? matmul(b, dc!, { transposeA: tb, transposeB: true }) : matmul(dc!, b, { transposeB: !tb }),
      b: tb ? matmul(dc!, a, { transposeA: true, transposeB: ta }) : matmul(a, dc!, { transposeA: !ta }),
    }
  },
  flops: ({ G, A1, A2, P }) => 2 * G! * A1! * A2! * P!,
  samples: [
    { G: 2, A1: 3, A2: 5, B1: 5, B2: 7, transpose_a: 0, transpose_b: 0, I: 3, P: 7 },
    { G: 1, A1: 5, A2: 17, B1: 9, B2: 17, transpose_a: 0, transpose_b: 1, I: 5, P: 9 },
    { G: 3, A1: 5, A2: 4, B1: 5, B2: 33, transpose_a: 1, transpose_b: 0, I: 4, P: 33 },
    { G: 1, A1: 8, A2: 1, B1: 3, B2: 8, transpose_a: 1, transpose_b: 1, I: 1, P: 3 },
    { G: 1, A1: 512, A2: 512, B1: 512, B2: 512, transpose_a: 0, transpose_b: 1, I: 512, P: 512, bench: true },
    { G: 32, A1: 128, A2: 64, B1: 128, B2: 64, transpose_a: 0, transpose_b: 1, I: 128, P: 128, bench: true },
  ],
})

/** y = x w^T + bias + residual. */
export const linearOp = defineOp({
  name: 'linear',
  signature: 'x[*,D] w[F,D] bias[F]? residual[*,F]? -> y[*,F]',
  dtypes: withF64,
  costly: true,
  reference: ({ x, w, bias, residual }) => {
    let y = flatMatmul(x, w, true)
    if (bias) y = add(y, bias)
    if (residual) y = add(y, residual)
    return { y }
  },
  saved: ['x', 'w'],
  backward: ({ y: dy }, { x, w }, flow) => {
    const dw = flow.into('w')
    if (dw) linearBackwardWeightAddOp({ dw, dy: dy!, x })
    return {
      x: flow.wants('x') ? linearBackwardInputOp({ dy: dy!, w, dx0: flow.into('x') }).dx : undefined,
      w: dw ?? (flow.wants('w') ? linearBackwardWeightOp({ dy: dy!, x }).dw : undefined),
      bias: flow.wants('bias') ? linearBackwardBiasOp({ dy: dy! }).db : undefined,
      residual: flow.wants('residual') ? dy : undefined,
    }
  },
  flops: ({ rows, D, F }) => 2 * rows! * D! * F!,
  samples: [
    { lead: [5], D: 7, F: 3 },
    { lead: [2, 3], D: 16, F: 17, with_bias: 1 },
    { lead: [1], D: 33, F: 9, with_residual: 1 },
    { lead: [13], D: 1, F: 31, with_bias: 1, with_residual: 1 },
    { lead: [0], D: 4, F: 5 },
    { lead: [512], D: 768, F: 3072, bench: true },
    { lead: [4096], D: 256, F: 256, bench: true },
    { lead: [1], D: 2048, F: 2048, bench: true },
    { lead: [8], D: 2048, F: 2048, bench: true },
    ...gpuSamples.linear,
  ],
})

export const linearBackwardInputOp = defineOp({
  name: 'linear_backward_input',
  signature: 'dy[*,F] w[F,D] dx0[*,D]? -> dx[*,D]',
  dtypes: withF64,
  reference: ({ dy, w, dx0 }) => {
    const dx = flatMatmul(dy, w, false)
    return { dx: dx0 ? add(dx, dx0) : dx }
  },
  flops: ({ rows, D, F }) => 2 * rows! * D! * F!,
  samples: [
    { lead: [5], D: 7, F: 3 },
    { lead: [9], D: 17, F: 33, with_dx0: 1 },
    { lead: [512], D: 768, F: 3072, bench: true },
    ...gpuSamples.linearBackward,
  ],
})

export const linearBackwardWeightOp = defineOp({
  name: 'linear_backward_weight',
  signature: 'dy[*,F] x[*,D] -> dw[F,D]:f32',
  dtypes: withF64,
  reference: ({ dy, x }) => ({ dw: weightGradient(dy, x) }),
  flops: ({ rows, D, F }) => 2 * rows! * D! * F!,
  samples: [
    { lead: [5], D: 7, F: 3 },
    { lead: [33], D: 17, F: 9 },
    { lead: [0], D: 3, F: 2 },
    { lead: [512], D: 768, F: 3072, bench: true },
    ...gpuSamples.linearBackward,
  ],
})

/** dw += dy^T x, in place. */
export const linearBackwardWeightAddOp = defineOp({
  name: 'linear_backward_weight_add',
  signature: 'dw[F,D]:f32! dy[*,F] x[*,D] ->',
  dtypes: withF64,
  samples: [
    { lead: [5], D: 7, F: 3 },
    { lead: [33], D: 17, F: 9 },
  ],
})

export const linearBackwardBiasOp = defineOp({
  name: 'linear_backward_bias',
  signature: 'dy[*,F] -> db[F]:f32',
  dtypes: withF64,
  reference: ({ dy }) => {
    const F = dy.shape.at(-1)!
    return { db: reshape(sum(reshape(dy, [rowCount(dy), F]), 0), [F]) }
  },
  samples: [
    { lead: [5], F: 3 },
    { lead: [300], F: 17 },
    { lead: [1], F: 1 },
  ],
})

/** Rows of a tensor: all dimensions but the last, multiplied. Not count / width, as a width may be 0. */
const rowCount = (x: Tensor) => countOf(x.shape.slice(0, -1))

/** x [.., K] times w ([F,K] when `transposed`, else [K,F]) with all leading dimensions as rows. */
function flatMatmul(x: Tensor, w: Tensor, transposed: boolean): Tensor {
  const K = x.shape.at(-1)!
  const rows = rowCount(x)
  const [m, n] = w.shape as [number, number]
  const c = matmul(reshape(x, [1, rows, K]), reshape(w, [1, m, n]), { transposeB: transposed })
  return reshape(c, [...x.shape.slice(0, -1), transposed ? m : n])
}

function weightGradient(dy: Tensor, x: Tensor): Tensor {
  const [F, D] = [dy.shape.at(-1)!, x.shape.at(-1)!]
  const rows = rowCount(dy)
  return reshape(matmul(reshape(dy, [1, rows, F]), reshape(x, [1, rows, D]), { transposeA: true }), [F, D])
}

/** Rows and columns of a product; throws ERR_SHAPE when the inner sizes differ. */
function productSizes(
  a: Shape,
  b: Shape,
  options: { transposeA: boolean; transposeB: boolean },
): { I: number; P: number } {
  const [, a1, a2] = a as [number, number, number]
  const [, b1, b2] = b as [number, number, number]
  const [I, J] = options.transposeA ? [a2, a1] : [a1, a2]
  const [inner, P] = options.transposeB ? [b2, b1] : [b1, b2]
  if (J !== inner) {
    throw new CaravanError('ERR_SHAPE', `matmul: inner sizes of ${shapeText(a)} and ${shapeText(b)} differ`)
  }
  return { I, P }
}

/** Batched product of a [G,I,J] and b [G,J,P]; with transposeA, a is [G,J,I]; with transposeB, b is [G,P,J]. */
export function matmul(a: Tensor, b: Tensor, options: { transposeA?: boolean; transposeB?: boolean } = {}): Tensor {
  const { transposeA = false, transposeB = false } = options
  const { I, P } = productSizes(a.shape, b.shape, { transposeA, transposeB })
  return matmulOp({ a, b, transpose_a: transposeA ? 1 : 0, transpose_b: transposeB ? 1 : 0, I, P }).c
}

/** x w^T (+ bias) (+ residual): x [..,D], w [F,D] as in a Hugging Face checkpoint. */
export function linear(x: Tensor, w: Tensor, options: { bias?: Tensor; residual?: Tensor } = {}): Tensor {
  return linearOp({ x, w, bias: options.bias, residual: options.residual }).y
}
