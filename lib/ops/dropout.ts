// Dropout whose mask is a function of (seed, stream, element): the backward pass draws it again, so nothing is saved,
// and a checkpointed block that runs twice drops the same elements twice.
import { Random } from '../base/random.js'
import { countOf } from '../base/shape.js'
import { defineOp, Tensor } from '../tensor/index.js'
import { affine, cast, mul } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'

/** 1 where an element is kept, 0 where it is dropped, as the kernels draw them. */
function mask(x: Tensor, { rate, seed, stream }: DropoutDraw): Tensor {
  const random = new Random(seed, stream)
  const droppedBelow = Math.round(rate * 2 ** 32)
  const kept = Float32Array.from({ length: countOf(x.shape) }, () => (random.uint32() < droppedBelow ? 0 : 1))
  return cast(Tensor.from(x.device, kept, x.shape), x.dtype)
}

/** y = x / (1 - rate) for an element that is kept, which it is with probability 1 - rate, else 0 (Srivastava et al.
 *  2014, inverted). */
export const dropoutOp = defineOp({
  name: 'dropout',
  signature: 'x[...] -> y[...] | rate seed stream',
  shapes: ({ x }) => ({ y: x.shape }),
  dtypes: ['f32', 'bf16', 'f64'],
  reference: ({ x, ...draw }) => ({ y: mul(affine(x, 1 / (1 - draw.rate), 0), mask(x, draw)) }),
  backward: ({ y: dy }, draw) => ({ x: dropout(dy!, draw) }),
  samples: [
    { shapes: { x: [3, 7] }, rate: 0.5, seed: 3, stream: 2 ** 33 },
    { shapes: { x: [33] }, rate: 0.1, seed: 1, stream: 5 },
    { shapes: { x: [2, 5] }, rate: 0, seed: 1, stream: 5 },
    { shapes: { x: [0] }, rate: 0.5, seed: 1, stream: 1 },
    { shapes: { x: [4096, 1024] }, rate: 0.1, seed: 1, stream: 1, bench: true },
    ...gpuSamples.unary.map((sample) => ({ ...sample, rate: 0.1, seed: 1, stream: 1 })),
  ],
})

export interface DropoutDraw {
  /** Probability of 0, in [0, 1). */
  rate: number
  seed: number
  stream: number
}

/** `x` with a share `rate` of its elements set to 0 and the others divided by 1 - rate. */
export const dropout = (x: Tensor, { rate, seed, stream }: DropoutDraw): Tensor =>
  dropoutOp({ x, rate, seed, stream }).y
