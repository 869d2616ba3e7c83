// Reductions over one axis, which stays with size 1. The order of the sum is fixed.
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { type Shape, shapeText } from '../base/shape.js'
import { defineOp, type Tensor } from '../tensor/index.js'
import { affine, div, greater, mul } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { broadcastTo } from './movement.js'

const primitive: readonly DType[] = ['f32', 'bf16', 'f64']

function reducedShape({ x, axis }: { x: Tensor; axis: number }): { y: Shape } {
  if (x.shape[axis] === undefined) {
    throw new CaravanError('ERR_SHAPE', `a reduction runs over an axis of ${shapeText(x.shape)}; got axis ${axis}`)
  }
  return { y: x.shape.map((size, i) => (i === axis ? 1 : size)) }
}

const samples = [
  { shapes: { x: [3, 5, 17] }, axis: 2 },
  { shapes: { x: [3, 5, 17] }, axis: 1 },
  { shapes: { x: [9, 4] }, axis: 0 },
  { shapes: { x: [1, 1] }, axis: 1 },
  { shapes: { x: [2048, 1024] }, axis: 1, bench: true },
]

export const sumOp = defineOp({
  name: 'sum',
  signature: 'x[...] -> y[...] | axis',
  shapes: reducedShape,
  dtypes: primitive,
  saved: ['x'],
  backward: ({ y: dy }, { x }) => ({ x: broadcastTo(dy!, x.shape) }),
  samples: [...samples, ...gpuSamples.unary.map((sample) => ({ ...sample, axis: 1 }))],
})

/** The gradient is shared equally by all elements that hold the maximum. */
export const maxOp = defineOp({
  name: 'max',
  signature: 'x[...] -> y[...] | axis',
  shapes: reducedShape,
  dtypes: primitive,
  saved: ['x', 'y'],
  backward: ({ y: dy }, { x, y, axis }) => {
    const atMax = affine(greater(y, x), -1, 1)
    return { x: mul(broadcastTo(div(dy!, sum(atMax, axis)), x.shape), atMax) }
  },
  samples,
})

export const argmaxOp = defineOp({
  name: 'argmax',
  signature: 'x[*,V] -> index[*]:i32',
  dtypes: primitive,
  samples: [
    { lead: [5], V: 33 },
    { lead: [2, 3], V: 1 },
  ],
})

/** Sum along `axis` (negative counts from the end); the axis stays with size 1. */
export const sum = (x: Tensor, axis: number): Tensor => sumOp({ x, axis: axis < 0 ? x.shape.length + axis : axis }).y
/** Largest along `axis`; the axis stays with size 1. */
export const max = (x: Tensor, axis: number): Tensor => maxOp({ x, axis: axis < 0 ? x.shape.length + axis : axis }).y
/** Index of the largest along the last axis; the lowest index wins a tie. */
export const argmax = (x: Tensor): Tensor => argmaxOp({ x }).index
