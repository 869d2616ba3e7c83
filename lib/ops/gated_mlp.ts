// SwiGLU (Shazeer 2020): the activation of every decoder here.
import { defineOp, type Tensor } from '../tensor/index.js'
import { add, affine, mul, sigmoid } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'

/** y = gate * sigmoid(gate) * up. */
export const swigluOp = defineOp({
  name: 'swiglu',
  signature: 'gate[*,F] up[*,F] -> y[*,F]',
  reference: ({ gate, up }) => ({ y: mul(mul(gate, sigmoid(gate)), up) }),
  saved: ['gate', 'up'],
  backward: ({ y: dy }, { gate, up }) => {
    const { dgate, dup } = swigluBackwardOp({ dy: dy!, gate, up })
    return { gate: dgate, up: dup }
  },
  samples: [
    { N: 3, F: 64 },
    { N: 5, F: 31 },
    { N: 33, F: 131 },
    { N: 1, F: 1 },
    { N: 0, F: 8 },
    { N: 4096, F: 2816, bench: true },
    ...gpuSamples.gate,
  ],
})

export const swigluBackwardOp = defineOp({
  name: 'swiglu_backward',
  signature: 'dy[*,F] gate[*,F] up[*,F] -> dgate[*,F] dup[*,F]',
  reference: ({ dy, gate, up }) => {
    const s = sigmoid(gate)
    const silu = mul(gate, s)
    // d silu = s + silu (1 - s)
    const slope = add(s, mul(silu, affine(s, -1, 1)))
    return { dgate: mul(mul(dy, up), slope), dup: mul(dy, silu) }
  },
  samples: [{ N: 3, F: 64 }, { N: 5, F: 31 }, { N: 33, F: 131 }, { N: 4096, F: 2816, bench: true }, ...gpuSamples.gate],
})

/** silu(gate) * up. */
export const swiglu = (gate: Tensor, up: Tensor): Tensor => swigluOp({ gate, up }).y
