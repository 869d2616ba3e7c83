// The optimizer on the device. Learning rate, gradient scale, clip factor and the finite flag live in an 8-number
// tensor `control`, so that a step needs no wait: [lr, gradient scale, finite, 1 - beta1^t, 1 - beta2^t, gradient norm,
// t, 0].
import { defineOp } from '../tensor/index.js'
import { gpuSamples } from './gpu_samples.js'

const bench = { lead: [1024, 4096], beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, bench: true }

/** AdamW (Loshchilov & Hutter 2019) in the order of torch.optim.AdamW. A bf16 parameter has an f32 `master`. With
 *  control.finite = 0 nothing changes. */
export const adamwOp = defineOp({
  name: 'adamw',
  signature: 'p[*]! master[*]:f32? g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay',
  samples: [bench, ...gpuSamples.adamw],
})

/** AdamW on f32 weights in two halves: p is the upper one, rounded half up, `low` what that took away (a signed 16-bit
 *  number in the bits of a bf16). The numbers are those of an f32 master, in 2 bytes a weight less. */
export const adamwSplitOp = defineOp({
  name: 'adamw_split',
  signature: 'p[*]:bf16! low[*]:bf16! g[*]:f32 m[*]:f32! v[*]:f32! control[8]:f32 -> | beta1 beta2 eps weight_decay',
  samples: [bench, ...gpuSamples.adamw],
})

/** AdamW with moments in bf16, rounded at random by element and control.t: their mean over many steps is right, where
 *  rounding to nearest would freeze the second moment. 4 bytes a weight less. */
export const adamwBf16MomentsOp = defineOp({
  name: 'adamw_bf16_moments',
  signature: 'p[*]! master[*]:f32? g[*]:f32 m[*]:bf16! v[*]:bf16! control[8]:f32 -> | beta1 beta2 eps weight_decay',
  samples: [bench, ...gpuSamples.adamw],
})

/** Both savings: 8 bytes of state a weight beside 4 of its gradient, in place of 14. */
export const adamwSplitBf16MomentsOp = defineOp({
  name: 'adamw_split_bf16_moments',
  signature: 'p[*]:bf16! low[*]:bf16! g[*]:f32 m[*]:bf16! v[*]:bf16! control[8]:f32 -> | beta1 beta2 eps weight_decay',
  samples: [bench, ...gpuSamples.adamw],
})

/** sum += sum of squares of g, in f64 along a fixed tree. */
export const squaredSumAddOp = defineOp({
  name: 'squared_sum_add',
  signature: 'g[*] sum[1]:f64! ->',
  dtypes: ['f32', 'bf16', 'f64'],
  samples: [{ lead: [1024, 4096], bench: true }, ...gpuSamples.gradients],
})

/** norm = sqrt(sum) * scale, finite = isfinite(norm), gradient scale = scale * min(1, max_norm / (norm + 1e-6)) as
 *  torch.nn.utils.clip_grad_norm_ has it; max_norm 0 = no clipping. Written into `control`. */
export const clipControlOp = defineOp({
  name: 'clip_control',
  signature: 'sum[1]:f64 control[8]:f32! -> | scale max_norm',
  samples: [],
})
