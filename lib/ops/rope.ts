// Rotary position embedding (Su et al. 2021) with pairs (i, i + C/2), as Hugging Face checkpoints expect. The table of
// cosines and sines is made once per batch, with angles in f64, and serves every layer.
import { CaravanError } from '../base/errors.js'
import { shapeText } from '../base/shape.js'
import { defineOp, reshape, type Tensor } from '../tensor/index.js'
import { add, affine, cast, cos, mul, neg, sin } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { concat, slice } from './movement.js'

/** table[n] = cos(p f_0 .. p f_{C/2-1}), sin(p f_0 ..). */
export const ropeTableOp = defineOp({
  name: 'rope_table',
  signature: 'positions[N]:i32 frequencies[J]:f64 -> table[N,C]:f32 | C',
  reference: ({ positions, frequencies }) => {
    const p = reshape(cast(positions, 'f64'), [-1, 1])
    const angles = mul(p, reshape(frequencies, [1, -1]))
    return { table: concat(cos(angles), sin(angles), 1) }
  },
  shapes: ({ frequencies, C }) => {
    if (C !== 2 * frequencies.shape[0]!) {
      throw new CaravanError('ERR_SHAPE', `rope_table: C must be 2 J = ${2 * frequencies.shape[0]!}; got ${C}`)
    }
    return {}
  },
  data: (sample, draw) => ({
    positions: Int32Array.from({ length: sample.N as number }, () => draw.integer(0, 100_000)),
    frequencies: Float64Array.from({ length: sample.J as number }, (_, j) => 10_000 ** (-j / (sample.J as number))),
  }),
  samples: [
    { N: 5, J: 4, C: 8 },
    { N: 33, J: 16, C: 32 },
    { N: 0, J: 2, C: 4 },
    { N: 4096, J: 32, C: 64, bench: true },
  ],
})

/** Rotates each pair by its angle; direction -1 rotates back, which is the gradient. */
export const ropeOp = defineOp({
  name: 'rope',
  signature: 'x[N,H,C] table[N,C]:f32 -> y[N,H,C] | direction',
  reference: ({ x, table, direction }) => {
    const [N, , C] = x.shape as [number, number, number]
    const half = C / 2
    const part = (t: Tensor, start: number) => slice(t, { axis: t.shape.length - 1, start, length: half })
    const row = reshape(table, [N, 1, C])
    const [c, s] = [part(row, 0), affine(part(row, half), direction, 0)]
    const [a, b] = [part(x, 0), part(x, half)]
    return { y: concat(add(mul(a, c), neg(mul(b, s))), add(mul(b, c), mul(a, s)), 2) }
  },
  shapes: ({ x }) => {
    if (x.shape[2]! % 2 !== 0) {
      throw new CaravanError('ERR_SHAPE', `rope: C of x[N,H,C]=${shapeText(x.shape)} must be even`)
    }
    return {}
  },
  saved: ['table'],
  backward: ({ y: dy }, { table, direction }) => ({ x: ropeOf(dy!, table, -direction) }),
  constant: ['table'],
  samples: [
    { N: 5, H: 3, C: 8, direction: 1 },
    { N: 7, H: 1, C: 34, direction: -1 },
    { N: 0, H: 2, C: 4, direction: 1 },
    { N: 37, H: 9, C: 16, direction: 1 },
    { N: 2, H: 41, C: 256, direction: -1 },
    { N: 4096, H: 16, C: 64, direction: 1, bench: true },
    ...gpuSamples.rope,
  ],
})

function ropeOf(x: Tensor, table: Tensor, direction: number): Tensor {
  return ropeOp({ x, table, direction }).y
}

/** Table for `positions` [N] and `frequencies` [C/2] (f64). */
export function ropeTable(positions: Tensor, frequencies: Tensor): Tensor {
  return ropeTableOp({ positions, frequencies, C: frequencies.shape[0]! * 2 }).table
}

/** `x` [N,H,C] rotated by the rows of `table` [N,C]. */
export const rope = (x: Tensor, table: Tensor): Tensor => ropeOf(x, table, 1)
