// Primitives that move elements: repeat, permute, cut, join, pick.
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { broadcastShape, type Shape, sameShape, shapeText } from '../base/shape.js'
import { defineOp, type Sample, type SampleDraw, type Tensor } from '../tensor/index.js'
import { fill, sumTo } from './elementwise.js'

const primitive: readonly DType[] = ['f32', 'bf16', 'f64', 'i32']

export const broadcastToOp = defineOp({
  name: 'broadcast_to',
  signature: 'x[...] -> y[...]',
  shapes: (call) => {
    const { x, shape } = call as unknown as { x: Tensor; shape: Shape }
    const reached = broadcastShape(x.shape, shape)
    if (!reached || !sameShape(reached, shape)) {
      throw new CaravanError('ERR_SHAPE', `broadcast_to: ${shapeText(x.shape)} does not fill ${shapeText(shape)}`)
    }
    return { y: shape }
  },
  dtypes: primitive,
  saved: ['x'],
  backward: ({ y: dy }, { x }) => ({ x: sumTo(dy!, x.shape) }),
  samples: [
    { shapes: { x: [3, 1], y: [3, 5] } },
    { shapes: { x: [17], y: [2, 3, 17] } },
    { shapes: { x: [2, 1, 4], y: [2, 7, 4] } },
    { shapes: { x: [1], y: [0] } },
  ],
})

export const transposeOp = defineOp({
  name: 'transpose',
  signature: 'x[...] -> y[...] | p0 p1 p2 p3 p4 p5',
  shapes: (call) => {
    const order = [call.p0, call.p1, call.p2, call.p3, call.p4, call.p5].slice(0, call.x.shape.length)
    if (call.x.shape.length > 6 || [...order].sort((a, b) => a - b).some((axis, i) => axis !== i)) {
      const given = `${shapeText(call.x.shape)} by [${order.join(',')}]`
      throw new CaravanError('ERR_SHAPE', `transpose: the order must name each axis of x once, at most 6; got ${given}`)
    }
    return { y: order.map((axis) => call.x.shape[axis]!) }
  },
  dtypes: primitive,
  backward: ({ y: dy }, call) => {
    const order = [call.p0, call.p1, call.p2, call.p3, call.p4, call.p5].slice(0, dy!.shape.length)
    return {
      x: transpose(
        dy!,
        order.map((_, axis) => order.indexOf(axis)),
      ),
    }
  },
  samples: [
    { shapes: { x: [3, 5, 7] }, p0: 2, p1: 0, p2: 1, p3: -1, p4: -1, p5: -1 },
    { shapes: { x: [4, 9] }, p0: 1, p1: 0, p2: -1, p3: -1, p4: -1, p5: -1 },
  ],
})

export const sliceOp = defineOp({
  name: 'slice',
  signature: 'x[...] -> y[...] | axis start length',
  shapes: ({ x, axis, start, length }) => {
    const size = x.shape[axis]
    if (size === undefined || start < 0 || length < 0 || start + length > size) {
      throw new CaravanError(
        'ERR_SHAPE',
        `slice: ${start}..${start + length} of axis ${axis} is not in ${shapeText(x.shape)}`,
      )
    }
    return { y: x.shape.map((n, i) => (i === axis ? length : n)) }
  },
  dtypes: primitive,
  saved: ['x'],
  backward: ({ y: dy }, { x, axis, start, length }) => {
    const zeros = (count: number) =>
      fill(
        x.device,
        x.shape.map((n, i) => (i === axis ? count : n)),
        { value: 0, dtype: dy!.dtype },
      )
    const after = x.shape[axis]! - start - length
    const headed = start > 0 ? concat(zeros(start), dy!, axis) : dy!
    return { x: after > 0 ? concat(headed, zeros(after), axis) : headed }
  },
  samples: [
    { shapes: { x: [3, 9, 4] }, axis: 1, start: 2, length: 5 },
    { shapes: { x: [6] }, axis: 0, start: 0, length: 6 },
  ],
})

export const concatOp = defineOp({
  name: 'concat',
  signature: 'a[...] b[...] -> c[...] | axis',
  shapes: ({ a, b, axis }) => {
    const sameRank = a.shape.length === b.shape.length && a.shape[axis] !== undefined
    const fits = sameRank && a.shape.every((n, i) => i === axis || n === b.shape[i])
    if (!fits) {
      throw new CaravanError(
        'ERR_SHAPE',
        `concat: ${shapeText(a.shape)} and ${shapeText(b.shape)} differ off axis ${axis}`,
      )
    }
    return { c: a.shape.map((n, i) => (i === axis ? n + b.shape[i]! : n)) }
  },
  dtypes: primitive,
  saved: ['a', 'b'],
  backward: ({ c: dc }, { a, b, axis }) => ({
    a: slice(dc!, { axis, start: 0, length: a.shape[axis]! }),
    b: slice(dc!, { axis, start: a.shape[axis]!, length: b.shape[axis]! }),
  }),
  samples: [
    { shapes: { a: [3, 2, 4], b: [3, 5, 4] }, axis: 1 },
    { shapes: { a: [2], b: [3] }, axis: 0 },
  ],
})

function pickedIndex(sample: Sample, draw: SampleDraw): { index: Int32Array } {
  const rows = (sample.lead ?? [2, 3]).reduce((a, b) => a * b, 1)
  return {
    index: Int32Array.from({ length: rows }, (_, i) => (i % 4 === 3 ? -100 : draw.integer(0, sample.V as number))),
  }
}

/** y = x[..., index]; a negative index gives 0. */
export const takeOp = defineOp({
  name: 'take',
  signature: 'x[*,V] index[*]:i32 -> y[*]',
  dtypes: ['f32', 'bf16', 'f64'],
  saved: ['x', 'index'],
  backward: ({ y: dy }, { x, index }) => ({ x: put(dy!, index, x.shape.at(-1)!) }),
  constant: ['index'],
  data: pickedIndex,
  samples: [
    { lead: [7], V: 9 },
    { lead: [2, 3], V: 1 },
  ],
})

/** x[..., index] = y in a tensor of zeros: the gradient of take. */
export const putOp = defineOp({
  name: 'put',
  signature: 'y[*] index[*]:i32 -> x[*,V] | V',
  dtypes: ['f32', 'bf16', 'f64'],
  saved: ['index'],
  backward: ({ x: dx }, { index }) => ({ y: take(dx!, index) }),
  constant: ['index'],
  data: pickedIndex,
  samples: [{ lead: [7], V: 9 }],
})

/** into[index[n]] = rows[n], in place: appends to a key/value cache. */
export const scatterRowsOp = defineOp({
  name: 'scatter_rows',
  signature: 'into[M,W]! rows[N,W] index[N]:i32 ->',
  dtypes: ['f32', 'bf16', 'i32'],
  data: (sample) => ({
    index: Int32Array.from({ length: sample.N as number }, (_, i) => (i * 3 + 1) % (sample.M as number)),
  }),
  samples: [
    { M: 11, N: 3, W: 5 },
    { M: 4, N: 0, W: 2 },
    // More rows than places: the last one of each counts.
    { M: 8, N: 20, W: 6 },
    { M: 700, N: 1100, W: 8 },
  ],
})

/** `x` repeated along dimensions of size 1 (or new leading ones) to fill `shape`. */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  if (sameShape(x.shape, shape)) return x
  const call: { x: Tensor; shape: Shape } = { x, shape }
  return broadcastToOp(call).y
}

/** Dimensions in another order: output dimension i is input dimension order[i]. */
export function transpose(x: Tensor, order: readonly number[]): Tensor {
  const [p0, p1, p2, p3, p4, p5] = [...order, -1, -1, -1, -1, -1, -1] as [
    number,
    number,
    number,
    number,
    number,
    number,
  ]
  return transposeOp({ x, p0, p1, p2, p3, p4, p5 }).y
}

export function slice(x: Tensor, cut: { axis: number; start: number; length: number }): Tensor {
  return sliceOp({ x, ...cut }).y
}

export const concat = (a: Tensor, b: Tensor, axis: number): Tensor => concatOp({ a, b, axis }).c
export const take = (x: Tensor, index: Tensor): Tensor => takeOp({ x, index }).y
export const put = (y: Tensor, index: Tensor, V: number): Tensor => putOp({ y, index, V }).x
export function scatterRows(into: Tensor, rows: Tensor, index: Tensor): void {
  scatterRowsOp({ into, rows, index })
}
