// Elementwise primitives with NumPy broadcasting. With reduce, movement and matmul they are what every other op is
// defined in; all of them also run in f64, so that a definition is an oracle.
import { type DType, dtypeCode } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { broadcastShape, type Shape, sameShape, shapeText } from '../base/shape.js'
import type { Device } from '../runtime/index.js'
import { defineOp, Gradients, reshape, type Sample, type Tensor } from '../tensor/index.js'
import { gpuSamples } from './gpu_samples.js'
import { sum } from './reduce.js'

const primitive: readonly DType[] = ['f32', 'bf16', 'f64']

const binarySamples: readonly Sample[] = [
  { shapes: { a: [3, 5], b: [3, 5] } },
  { shapes: { a: [2, 3, 17], b: [17] } },
  { shapes: { a: [4, 1], b: [1, 9] } },
  { shapes: { a: [7], b: [1] } },
  { shapes: { a: [0, 4], b: [4] } },
  { shapes: { a: [1], b: [1] } },
  { shapes: { a: [1024, 2048], b: [1024, 2048] }, bench: true },
]

function binaryShapes(name: string) {
  return ({ a, b }: { a: Tensor; b: Tensor }): { c: Shape } => {
    const c = broadcastShape(a.shape, b.shape)
    if (!c)
      throw new CaravanError('ERR_SHAPE', `${name}: ${shapeText(a.shape)} and ${shapeText(b.shape)} do not broadcast`)
    return { c }
  }
}

/** The sum of `gradient` over the dimensions along which an argument of shape `shape` was repeated. */
export function sumTo(gradient: Tensor, shape: Shape): Tensor {
  let result = gradient
  while (result.shape.length > shape.length) result = reshape(sum(result, 0), result.shape.slice(1))
  for (const [axis, size] of shape.entries()) {
    if (size === 1 && result.shape[axis] !== 1) result = sum(result, axis)
  }
  return sameShape(result.shape, shape) ? result : reshape(result, shape)
}

const binary = 'a[...] b[...] -> c[...]'

export const addOp = defineOp({
  name: 'add',
  signature: binary,
  shapes: binaryShapes('add'),
  dtypes: primitive,
  saved: ['a', 'b'],
  backward: ({ c: dc }, { a, b }) => ({ a: sumTo(dc!, a.shape), b: sumTo(dc!, b.shape) }),
  samples: [...binarySamples, ...gpuSamples.binary],
})

export const subOp = defineOp({
  name: 'sub',
  signature: binary,
  shapes: binaryShapes('sub'),
  dtypes: primitive,
  saved: ['a', 'b'],
  backward: ({ c: dc }, { a, b }) => ({ a: sumTo(dc!, a.shape), b: sumTo(neg(dc!), b.shape) }),
  samples: binarySamples,
})

export const mulOp = defineOp({
  name: 'mul',
  signature: binary,
  shapes: binaryShapes('mul'),
  dtypes: primitive,
  saved: ['a', 'b'],
  backward: ({ c: dc }, { a, b }) => ({ a: sumTo(mul(dc!, b), a.shape), b: sumTo(mul(dc!, a), b.shape) }),
  samples: [...binarySamples, ...gpuSamples.binary],
})

export const divOp = defineOp({
  name: 'div',
  signature: binary,
  shapes: binaryShapes('div'),
  dtypes: primitive,
  saved: ['a', 'b', 'c'],
  backward: ({ c: dc }, { a, b, c }) => {
    const da = div(dc!, b)
    return { a: sumTo(da, a.shape), b: sumTo(neg(mul(da, c)), b.shape) }
  },
  samples: binarySamples,
})

/** The gradient goes to the larger argument, to b when they are equal. */
export const maximumOp = defineOp({
  name: 'maximum',
  signature: binary,
  shapes: binaryShapes('maximum'),
  dtypes: primitive,
  saved: ['a', 'b'],
  backward: ({ c: dc }, { a, b }) => {
    const fromA = mul(dc!, greater(a, b))
    return { a: sumTo(fromA, a.shape), b: sumTo(sub(dc!, fromA), b.shape) }
  },
  samples: binarySamples,
})

export const greaterOp = defineOp({
  name: 'greater',
  signature: binary,
  shapes: binaryShapes('greater'),
  dtypes: primitive,
  samples: binarySamples,
})

const unary = 'x[...] -> y[...]'
const unaryShapes = ({ x }: { x: Tensor }) => ({ y: x.shape })
const unarySamples: readonly Sample[] = [
  { shapes: { x: [3, 7] } },
  { shapes: { x: [1] } },
  { shapes: { x: [0] } },
  { shapes: { x: [33] } },
  { shapes: { x: [1024, 1024] }, bench: true },
]

/** Values kept away from 0 and positive, for functions that need it. */
const positive = (sample: Sample, draw: { integer(low: number, high: number): number }) => {
  const count = sample.shapes!.x!.reduce((a, b) => a * b, 1)
  return { x: Float64Array.from({ length: count }, () => draw.integer(1, 400) / 100) }
}

export const negOp = defineOp({
  name: 'neg',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  backward: ({ y: dy }) => ({ x: neg(dy!) }),
  samples: unarySamples,
})

export const expOp = defineOp({
  name: 'exp',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['y'],
  backward: ({ y: dy }, { y }) => ({ x: mul(dy!, y) }),
  samples: [...unarySamples, ...gpuSamples.unary],
})

export const logOp = defineOp({
  name: 'log',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['x'],
  backward: ({ y: dy }, { x }) => ({ x: div(dy!, x) }),
  data: positive,
  samples: unarySamples,
})

export const sqrtOp = defineOp({
  name: 'sqrt',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['y'],
  backward: ({ y: dy }, { y }) => ({ x: affine(div(dy!, y), 0.5, 0) }),
  data: positive,
  samples: unarySamples,
})

export const sigmoidOp = defineOp({
  name: 'sigmoid',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['y'],
  backward: ({ y: dy }, { y }) => ({ x: mul(dy!, sub(y, mul(y, y))) }),
  samples: unarySamples,
})

export const cosOp = defineOp({
  name: 'cos',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['x'],
  backward: ({ y: dy }, { x }) => ({ x: neg(mul(dy!, sin(x))) }),
  samples: unarySamples,
})

export const sinOp = defineOp({
  name: 'sin',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['x'],
  backward: ({ y: dy }, { x }) => ({ x: mul(dy!, cos(x)) }),
  samples: unarySamples,
})

export const tanhOp = defineOp({
  name: 'tanh',
  signature: unary,
  shapes: unaryShapes,
  dtypes: primitive,
  saved: ['y'],
  backward: ({ y: dy }, { y }) => ({ x: sub(dy!, mul(dy!, mul(y, y))) }),
  samples: unarySamples,
})

/** y = scale * x + shift. */
export const affineOp = defineOp({
  name: 'affine',
  signature: 'x[...] -> y[...] | scale shift',
  shapes: unaryShapes,
  dtypes: primitive,
  backward: ({ y: dy }, { scale }) => ({ x: affine(dy!, scale, 0) }),
  samples: [
    { shapes: { x: [3, 7] }, scale: -2.5, shift: 0.25 },
    { shapes: { x: [0] }, scale: 1, shift: 1 },
    ...gpuSamples.unary.map((sample) => ({ ...sample, scale: 2, shift: 1 })),
  ],
})

/** y += x, in place; an f32 sum takes bf16 terms. */
export const addIntoOp = defineOp({
  name: 'add_into',
  signature: 'y[...]! x[...] ->',
  shapes: ({ y, x }) => {
    if (!sameShape(y.shape, x.shape)) {
      throw new CaravanError('ERR_SHAPE', `add_into: ${shapeText(x.shape)} cannot be added into ${shapeText(y.shape)}`)
    }
    if (x.dtype !== y.dtype && !(y.dtype === 'f32' && x.dtype === 'bf16')) {
      throw new CaravanError(
        'ERR_DTYPE',
        `add_into: x must be ${y.dtype} to match y (or bf16 where y is f32); got ${x.dtype}`,
      )
    }
    return {}
  },
  dtypes: primitive,
  mixed: true,
  samples: [
    { shapes: { y: [3, 7], x: [3, 7] } },
    { shapes: { y: [33], x: [33] } },
    { shapes: { y: [0], x: [0] } },
    ...gpuSamples.update,
  ],
})

export const castOp = defineOp({
  name: 'cast',
  signature: 'x[...] -> y[...]:dtype | dtype',
  shapes: unaryShapes,
  dtypes: ['f32', 'bf16', 'f64', 'i32', 'f16'],
  saved: ['x'],
  backward: ({ y: dy }, { x }) => ({ x: cast(dy!, x.dtype) }),
  samples: [
    { shapes: { x: [5, 9] }, dtype: dtypeCode.bf16 },
    { shapes: { x: [5, 9] }, dtype: dtypeCode.f64 },
    { shapes: { x: [0] }, dtype: dtypeCode.f32 },
    ...gpuSamples.unary.map((sample) => ({ ...sample, dtype: dtypeCode.bf16 })),
  ],
})

export const fillOp = defineOp({
  name: 'fill',
  signature: '-> y[...]:dtype | value dtype',
  shapes: (call) => ({ y: (call as unknown as { shape: Shape }).shape }),
  samples: [],
})

export const iotaOp = defineOp({
  name: 'iota',
  signature: '-> y[N]:dtype | N start step dtype',
  samples: [],
})

export const randomNormalOp = defineOp({
  name: 'random_normal',
  signature: '-> y[...]:dtype | mean deviation seed stream dtype',
  shapes: (call) => ({ y: (call as unknown as { shape: Shape }).shape }),
  samples: [],
})

export const randomUniformOp = defineOp({
  name: 'random_uniform',
  signature: '-> y[...]:dtype | low high seed stream dtype',
  shapes: (call) => ({ y: (call as unknown as { shape: Shape }).shape }),
  samples: [],
})

/** a + b. */
export const add = (a: Tensor, b: Tensor): Tensor => addOp({ a, b }).c
/** a - b. */
export const sub = (a: Tensor, b: Tensor): Tensor => subOp({ a, b }).c
/** a * b, element by element. */
export const mul = (a: Tensor, b: Tensor): Tensor => mulOp({ a, b }).c
/** a / b. */
export const div = (a: Tensor, b: Tensor): Tensor => divOp({ a, b }).c
/** The larger of a and b. */
export const maximum = (a: Tensor, b: Tensor): Tensor => maximumOp({ a, b }).c
/** 1 where a > b, else 0, in the dtype of the arguments. No gradient. */
export const greater = (a: Tensor, b: Tensor): Tensor => greaterOp({ a, b }).c
export const neg = (x: Tensor): Tensor => negOp({ x }).y
export const exp = (x: Tensor): Tensor => expOp({ x }).y
/** Natural logarithm. */
export const log = (x: Tensor): Tensor => logOp({ x }).y
export const sqrt = (x: Tensor): Tensor => sqrtOp({ x }).y
/** 1 / (1 + e^-x). */
export const sigmoid = (x: Tensor): Tensor => sigmoidOp({ x }).y
export const cos = (x: Tensor): Tensor => cosOp({ x }).y
export const sin = (x: Tensor): Tensor => sinOp({ x }).y
export const tanh = (x: Tensor): Tensor => tanhOp({ x }).y
/** log(1 + e^x) without overflow; -log sigmoid(x) is softplus(-x). */
export function softplus(x: Tensor): Tensor {
  return add(maximum(x, affine(x, 0, 0)), log(affine(exp(neg(maximum(x, neg(x)))), 1, 1)))
}

/** scale * x + shift with numbers. */
export const affine = (x: Tensor, scale: number, shift: number): Tensor => affineOp({ x, scale, shift }).y
/** `x` in another dtype, rounded to nearest even. */
export const cast = (x: Tensor, dtype: DType): Tensor =>
  x.dtype === dtype ? reshape(x, x.shape) : castOp({ x, dtype: dtypeCode[dtype] }).y

/** y += x, overwriting y; the shapes must be equal. */
export function addInto(y: Tensor, x: Tensor): void {
  addIntoOp({ y, x })
}

type SourceCall<C> = C & { device: Device; shape?: Shape }

/** A tensor with every element equal to `value`. */
export function fill(device: Device, shape: Shape, options: { value: number; dtype: DType }): Tensor {
  const call: SourceCall<{ value: number; dtype: number }> = {
    device,
    shape,
    value: options.value,
    dtype: dtypeCode[options.dtype],
  }
  return fillOp(call).y
}

/** start, start + step, ... : `count` numbers. */
export function iota(device: Device, count: number, options: { start?: number; step?: number; dtype: DType }): Tensor {
  const { start = 0, step = 1, dtype } = options
  const call: SourceCall<{ N: number; start: number; step: number; dtype: number }> = {
    device,
    N: count,
    start,
    step,
    dtype: dtypeCode[dtype],
  }
  return iotaOp(call).y
}

/** Normally distributed numbers, the same on every device and as lib/base/random draws them. */
export function randomNormal(
  device: Device,
  shape: Shape,
  options: { mean?: number; deviation: number; seed: number; stream: number; dtype: DType },
): Tensor {
  const { mean = 0, deviation, seed, stream, dtype } = options
  const call: SourceCall<{ mean: number; deviation: number; seed: number; stream: number; dtype: number }> = {
    device,
    shape,
    mean,
    deviation,
    seed,
    stream,
    dtype: dtypeCode[dtype],
  }
  return randomNormalOp(call).y
}

/** Uniform numbers in [low, high), the same on every device and as lib/base/random draws them. */
export function randomUniform(
  device: Device,
  shape: Shape,
  options: { low: number; high: number; seed: number; stream: number; dtype: DType },
): Tensor {
  const { low, high, seed, stream, dtype } = options
  const call: SourceCall<{ low: number; high: number; seed: number; stream: number; dtype: number }> = {
    device,
    shape,
    low,
    high,
    seed,
    stream,
    dtype: dtypeCode[dtype],
  }
  return randomUniformOp(call).y
}

Gradients.add = add
Gradients.addInto = addInto
