// Normalisations. RMSNorm serves as pre-norm, post-norm (with the residual added where the row is stored) and per-head
// norm of queries and keys: `*` is any leading dimensions.
import { defineOp, reshape, type Sample, type Tensor } from '../tensor/index.js'
import { add, affine, div, mul, sqrt, sub } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { sum } from './reduce.js'

/** Rows from heads to wide models, whole packs and not: a kernel shares them out in different ways. */
const widths: Sample[] = [128, 640, 1101, 2048, 4096, 8192, 8200].map((D) => ({ N: 5, D, eps: 1e-5 }))

/** 1 / sqrt(mean(x^2) + eps) with the last axis kept. */
function inverseRms(x: Tensor, eps: number): Tensor {
  const D = x.shape.at(-1)!
  const rms = sqrt(affine(sum(mul(x, x), -1), 1 / D, eps))
  return div(affine(rms, 0, 1), rms)
}

/** y = x / sqrt(mean(x^2) + eps) * w (+ residual). Keeps 1/rms of each row for the backward pass. */
export const rmsNormOp = defineOp({
  name: 'rms_norm',
  signature: 'x[*,D] w[D] residual[*,D]? -> y[*,D] rstd[*]:f32 | eps',
  reference: ({ x, w, residual, eps }) => {
    const rstd = inverseRms(x, eps)
    const y = mul(mul(x, rstd), w)
    return { y: residual ? add(y, residual) : y, rstd: reshape(rstd, x.shape.slice(0, -1)) }
  },
  auxiliary: ['rstd'],
  saved: ['x', 'w', 'rstd'],
  backward: ({ y: dy }, { x, w, rstd }, flow) => {
    const { dx, dw } = rmsNormBackwardOp({ dy: dy!, x, w, rstd, dx0: flow.into('x') })
    return { x: dx, w: dw, residual: flow.wants('residual') ? dy : undefined }
  },
  samples: [
    { N: 3, D: 64, eps: 1e-5 },
    { N: 33, D: 31, eps: 1e-6 },
    { N: 5, D: 17, eps: 1e-5, with_residual: 1 },
    { lead: [2, 3], D: 8, eps: 1e-5 },
    { N: 1, D: 1, eps: 1e-5 },
    { N: 8200, D: 8, eps: 1e-5 },
    { N: 0, D: 8, eps: 1e-5 },
    ...widths,
    { N: 4096, D: 2048, eps: 1e-5, bench: true },
    ...gpuSamples.norm,
  ],
})

export const rmsNormBackwardOp = defineOp({
  name: 'rms_norm_backward',
  signature: 'dy[*,D] x[*,D] w[D] rstd[*]:f32 dx0[*,D]? -> dx[*,D] dw[D]:f32',
  reference: ({ dy, x, w, rstd, dx0 }) => {
    const D = x.shape.at(-1)!
    const r = reshape(rstd, [...rstd.shape, 1])
    const normed = mul(x, r)
    const g = mul(dy, w)
    const projection = affine(sum(mul(g, normed), -1), 1 / D, 0)
    const dx = mul(sub(g, mul(normed, projection)), r)
    const dw = reshape(sum(reshape(mul(dy, normed), [-1, D]), 0), [D])
    return { dx: dx0 ? add(dx, dx0) : dx, dw }
  },
  samples: [
    { N: 3, D: 64 },
    { N: 130, D: 31, with_dx0: 1 },
    { N: 1, D: 1 },
    { N: 2100, D: 16 },
    ...widths.map((sample) => ({ ...sample, with_dx0: 1 })),
    { N: 4096, D: 2048, bench: true },
    ...gpuSamples.norm,
  ],
})

/** sum = x + residual, y = norm(sum) * w: a residual stream that is carried outside the matrix products. */
export const addRmsNormOp = defineOp({
  name: 'add_rms_norm',
  signature: 'x[*,D] residual[*,D] w[D] -> y[*,D] sum[*,D] rstd[*]:f32 | eps',
  reference: ({ x, residual, w, eps }) => {
    const total = add(x, residual)
    const { y, rstd } = rmsNormOp.definition.reference!({ x: total, w, eps })
    return { y, rstd, sum: total }
  },
  auxiliary: ['rstd'],
  saved: ['sum', 'w', 'rstd'],
  backward: ({ y: dy, sum: dsum }, { sum: total, w, rstd }) => {
    const { dx, dw } = rmsNormBackwardOp({ dy: dy!, x: total, w, rstd, dx0: dsum })
    return { x: dx, residual: dx, w: dw }
  },
  samples: [
    { N: 3, D: 64, eps: 1e-5 },
    { N: 33, D: 31, eps: 1e-6 },
    ...widths,
    { N: 4096, D: 2048, eps: 1e-5, bench: true },
    ...gpuSamples.norm,
  ],
})

/** y = (x - mean) / sqrt(variance + eps), without parameters (OLMo 1). */
export const layerNormOp = defineOp({
  name: 'layer_norm',
  signature: 'x[*,D] -> y[*,D] mean[*]:f32 rstd[*]:f32 | eps',
  reference: ({ x, eps }) => {
    const D = x.shape.at(-1)!
    const mean = affine(sum(x, -1), 1 / D, 0)
    const centred = sub(x, mean)
    const rstd = inverseRms(centred, eps)
    const lead = x.shape.slice(0, -1)
    return { y: mul(centred, rstd), mean: reshape(mean, lead), rstd: reshape(rstd, lead) }
  },
  auxiliary: ['mean', 'rstd'],
  saved: ['x', 'mean', 'rstd'],
  backward: ({ y: dy }, { x, mean, rstd }) => ({ x: layerNormBackwardOp({ dy: dy!, x, mean, rstd }).dx }),
  samples: [
    { N: 3, D: 64, eps: 1e-5 },
    { N: 33, D: 31, eps: 1e-5 },
    { N: 2, D: 1, eps: 1e-5 },
    { N: 0, D: 8, eps: 1e-5 },
    ...widths,
    { N: 4096, D: 2048, eps: 1e-5, bench: true },
    ...gpuSamples.norm,
  ],
})

export const layerNormBackwardOp = defineOp({
  name: 'layer_norm_backward',
  signature: 'dy[*,D] x[*,D] mean[*]:f32 rstd[*]:f32 -> dx[*,D]',
  reference: ({ dy, x, mean, rstd }) => {
    const D = x.shape.at(-1)!
    const r = reshape(rstd, [...rstd.shape, 1])
    const normed = mul(sub(x, reshape(mean, [...mean.shape, 1])), r)
    const average = (t: Tensor) => affine(sum(t, -1), 1 / D, 0)
    return { dx: mul(sub(sub(dy, average(dy)), mul(normed, average(mul(dy, normed)))), r) }
  },
  samples: [{ N: 3, D: 64 }, { N: 33, D: 31 }, ...widths, { N: 4096, D: 2048, bench: true }, ...gpuSamples.norm],
})

/** RMSNorm over the last axis of x, times w [D], plus `residual` when given. */
export function rmsNorm(x: Tensor, w: Tensor, options: { eps: number; residual?: Tensor }): Tensor {
  return rmsNormOp({ x, w, residual: options.residual, eps: options.eps }).y
}

/** LayerNorm over the last axis without weight or bias. */
export const layerNorm = (x: Tensor, eps: number): Tensor => layerNormOp({ x, eps }).y
