// The only place where the vocabulary meets the tokens. No [N,V] tensor exists: the products run in chunks of rows
// whose logits fit a byte budget, and rows without a target are dropped before the product.
import { CaravanError } from '../base/errors.js'
import type { Device } from '../runtime/index.js'
import { defineOp, recordingTape, reshape, type Sample, type SampleDraw, Tensor, withoutTape } from '../tensor/index.js'
import { add, affine, cast, exp, greater, log, mul, neg, sub } from './elementwise.js'
import { gpuSamples } from './gpu_samples.js'
import { matmul } from './matmul.js'
import { put, take } from './movement.js'
import { max, sum } from './reduce.js'

/** Bytes for a tile of logits: large enough for a full-speed product, small beside any model of the device. */
export const logitsChunkBytes = { cpu: 60 * 2 ** 20, cuda: 2 ** 30 } as const

/** Every third row is without a target; not so in the benchmark, whose operations count every row. */
function someTargets(sample: Sample, draw: SampleDraw): { target: Int32Array } {
  const { N, V } = sample as { N: number; V: number }
  const skips = (i: number) => !sample.bench && i % 3 === 2
  return { target: Int32Array.from({ length: N }, (_, i) => (skips(i) ? -100 : draw.integer(0, V))) }
}

/** Logits [N,V] and their log-sum-exp [N,1], in primitives. */
function logitsAndLse(hidden: Tensor, head: Tensor): { logits: Tensor; lse: Tensor } {
  const [N, D] = hidden.shape as [number, number]
  const V = head.shape[0]!
  const logits = reshape(matmul(reshape(hidden, [1, N, D]), reshape(head, [1, V, D]), { transposeB: true }), [N, V])
  const peak = max(logits, -1)
  return { logits, lse: add(peak, log(sum(exp(sub(logits, peak)), -1))) }
}

/** 1 for rows with a target, else 0. */
const hasTarget = (target: Tensor, like: Tensor) => {
  const t = cast(target, like.dtype)
  return greater(t, affine(t, 0, -0.5))
}

interface BackwardCall {
  dlogp: Tensor
  dentropy?: Tensor
  hidden: Tensor
  head: Tensor
  target: Tensor
  lse: Tensor
}

/** Gradients from dlogits = dlogp (onehot - p) - dentropy p (log p + entropy), 0 for rows without a target. The entropy
 *  needs a second look at the logits, which gives a log-sum-exp that is not rounded. */
function backwardReference({ dlogp, dentropy, hidden, head, target, lse }: BackwardCall) {
  const [N, D] = hidden.shape as [number, number]
  const V = head.shape[0]!
  const column = (t: Tensor) => reshape(t, [N, 1])
  const { logits, lse: own } = logitsAndLse(hidden, head)
  const logProbs = sub(logits, dentropy ? own : column(lse))
  const p = exp(logProbs)
  const live = hasTarget(target, hidden)
  let slopes = mul(p, column(dlogp))
  if (dentropy) {
    const entropy = neg(sum(mul(p, logProbs), -1))
    slopes = add(slopes, mul(mul(p, add(logProbs, entropy)), column(dentropy)))
  }
  const dlogits = reshape(sub(put(mul(dlogp, live), target, V), mul(slopes, column(live))), [1, N, V])
  return {
    dhidden: reshape(matmul(dlogits, reshape(head, [1, V, D])), [N, D]),
    dhead: reshape(matmul(dlogits, reshape(hidden, [1, N, D]), { transposeA: true }), [V, D]),
  }
}

const samples: readonly Sample[] = [
  { N: 7, V: 11, D: 5, with_entropy: 1, chunk_bytes: 1 << 20 },
  { N: 33, V: 65, D: 16, with_entropy: 0, chunk_bytes: 1024 },
  { N: 33, V: 65, D: 16, with_entropy: 1, chunk_bytes: 1024, targets: 22 },
  { N: 1, V: 1, D: 1, with_entropy: 0, chunk_bytes: 1024 },
  { N: 0, V: 5, D: 3, with_entropy: 0, chunk_bytes: 1024 },
  { N: 6, V: 4101, D: 3, with_entropy: 1, chunk_bytes: 1 << 15 },
  { N: 1030, V: 3, D: 2, with_entropy: 0, chunk_bytes: 1 << 20 },
  { N: 2048, V: 32000, D: 288, with_entropy: 0, chunk_bytes: logitsChunkBytes.cpu, bench: true },
  ...gpuSamples.heads.map((sample) => ({
    ...sample,
    with_entropy: 0,
    chunk_bytes: logitsChunkBytes.cuda,
    targets: sample.N,
  })),
]

/** logp = log softmax(hidden head^T)[target], 0 without target; lse = log-sum-exp of the logits; entropy in nats.
 *  `targets`, here and below: how many rows have a target, where that is known (ERR_DATA when it is another number),
 *  else 0; a GPU waits for the number then. */
export const linearLogprobOp = defineOp({
  name: 'linear_logprob',
  signature:
    'hidden[N,D] head[V,D] target[N]:i32 -> logp[N]:f32 lse[N]:f32 entropy[N]:f32? | with_entropy chunk_bytes targets',
  reference: ({ hidden, head, target, with_entropy }) => {
    const { logits, lse } = logitsAndLse(hidden, head)
    const live = hasTarget(target, hidden)
    const row = (t: Tensor) => mul(reshape(t, target.shape), live)
    const logp = sub(take(logits, target), row(lse))
    if (!with_entropy) return { logp, lse: row(lse) }
    const logProbs = sub(logits, lse)
    return { logp, lse: row(lse), entropy: row(neg(sum(mul(exp(logProbs), logProbs), -1))) }
  },
  auxiliary: ['lse'],
  saved: ['hidden', 'head', 'target', 'lse'],
  backward: ({ logp: dlogp, entropy: dentropy }, { hidden, head, target, lse, chunk_bytes, targets }, flow) => {
    const dlogps = dlogp ?? affine(lse, 0, 0)
    const call = { dlogp: dlogps, dentropy, hidden, head, target, lse, chunk_bytes, targets }
    if (!flow.wants('head')) return { hidden: linearLogprobBackwardFrozenOp(call).dhidden }
    const dhead = flow.into('head')
    if (dhead) return { hidden: linearLogprobBackwardAddOp({ ...call, dhead }).dhidden, head: dhead }
    const { dhidden, dhead: fresh } = linearLogprobBackwardOp(call)
    return { hidden: dhidden, head: fresh }
  },
  constant: ['target'],
  data: someTargets,
  flops: ({ N, V, D }) => 2 * N! * V! * D!,
  samples,
})

export const linearLogprobBackwardOp = defineOp({
  name: 'linear_logprob_backward',
  signature:
    'dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> dhidden[N,D] dhead[V,D]:f32 | chunk_bytes targets',
  reference: backwardReference,
  data: someTargets,
  flops: ({ N, V, D }) => 6 * N! * V! * D!,
  samples: samples.filter((sample) => sample.bench),
})

/** As linear_logprob_backward, adding into `dhead`. */
export const linearLogprobBackwardAddOp = defineOp({
  name: 'linear_logprob_backward_add',
  signature:
    'dhead[V,D]:f32! dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> dhidden[N,D] | chunk_bytes targets',
  data: someTargets,
  samples: [],
})

/** As linear_logprob_backward for a frozen head: a product and [V,D] numbers less. */
export const linearLogprobBackwardFrozenOp = defineOp({
  name: 'linear_logprob_backward_frozen',
  signature:
    'dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> dhidden[N,D] | chunk_bytes targets',
  reference: (call) => ({ dhidden: backwardReference(call).dhidden }),
  data: someTargets,
  flops: ({ N, V, D }) => 4 * N! * V! * D!,
  samples: samples.filter((sample) => sample.bench),
})

/** Sum of -logp (+ z_loss lse^2) over rows with a target, and its gradients, in one pass: the coefficient of every
 *  row is  known beforehand (1), so the logits are never computed twice. */
export const crossEntropyOp = defineOp({
  name: 'cross_entropy',
  signature:
    'hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] dhead[V,D]:f32 | z_loss chunk_bytes targets',
  reference: ({ hidden, head, target, z_loss }) => {
    const { logits, lse } = logitsAndLse(hidden, head)
    const live = reshape(hasTarget(target, hidden), [-1, 1])
    const [N, D] = hidden.shape as [number, number]
    const V = head.shape[0]!
    const nll = sub(mul(reshape(lse, [-1]), reshape(live, [-1])), take(logits, target))
    const z = affine(mul(mul(lse, lse), live), z_loss, 0)
    const slope = mul(affine(lse, 2 * z_loss, 1), live)
    const dlogits = sub(mul(exp(sub(logits, lse)), slope), put(reshape(live, [-1]), target, V))
    const rows = reshape(dlogits, [1, N, V])
    return {
      loss: sum(add(nll, reshape(z, [-1])), 0),
      nll,
      dhidden: reshape(matmul(rows, reshape(head, [1, V, D])), [N, D]),
      dhead: reshape(matmul(rows, reshape(hidden, [1, N, D]), { transposeA: true }), [V, D]),
    }
  },
  data: someTargets,
  flops: ({ N, V, D }) => 6 * N! * V! * D!,
  samples: [
    { N: 7, V: 11, D: 5, z_loss: 0, chunk_bytes: 1 << 20 },
    { N: 33, V: 65, D: 16, z_loss: 1e-2, chunk_bytes: 1024 },
    { N: 33, V: 65, D: 16, z_loss: 1e-2, chunk_bytes: 1024, targets: 22 },
    { N: 1, V: 1, D: 1, z_loss: 0, chunk_bytes: 1024 },
    { N: 0, V: 5, D: 3, z_loss: 0, chunk_bytes: 1024 },
    { N: 6, V: 4101, D: 3, z_loss: 1e-3, chunk_bytes: 1 << 15 },
    { N: 4096, V: 512, D: 128, z_loss: 0, chunk_bytes: logitsChunkBytes.cpu, bench: true },
    { N: 2048, V: 32000, D: 288, z_loss: 0, chunk_bytes: logitsChunkBytes.cpu, bench: true },
    { N: 512, V: 151936, D: 896, z_loss: 0, chunk_bytes: logitsChunkBytes.cpu, bench: true },
    ...gpuSamples.heads.map((sample) => ({
      ...sample,
      z_loss: 0,
      chunk_bytes: logitsChunkBytes.cuda,
      targets: sample.N,
    })),
  ],
})

/** As cross_entropy, adding into `dhead`. */
export const crossEntropyAddOp = defineOp({
  name: 'cross_entropy_add',
  signature:
    'dhead[V,D]:f32! hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] | z_loss chunk_bytes targets',
  data: someTargets,
  samples: [],
})

/** As cross_entropy for a frozen head: a product and [V,D] numbers less. */
export const crossEntropyFrozenOp = defineOp({
  name: 'cross_entropy_frozen',
  signature: 'hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] | z_loss chunk_bytes targets',
  reference: (call) => {
    const { loss, nll, dhidden } = crossEntropyOp.definition.reference!(call)
    return { loss, nll, dhidden }
  },
  data: someTargets,
  flops: ({ N, V, D }) => 4 * N! * V! * D!,
  samples: [],
})

/** Targets of rows, negative for none, and how many rows have one. */
export interface Targets {
  target: Tensor
  targets: number
}

/** `labels` [N], negative for none, on a device, counted here so that nobody has to wait for a count there. */
export function targetsOn(device: Device, labels: Int32Array): Targets {
  let targets = 0
  for (let n = 0; n < labels.length; n++) if (labels[n]! >= 0) targets++
  return { target: Tensor.from(device, labels, [labels.length]), targets }
}

/** Per-row log-probability of targets [N] (negative: none) under softmax(hidden [N,D] head [V,D]^T). Differentiable. */
export function linearLogprob(hidden: Tensor, head: Tensor, of: Tensor | Targets): { logp: Tensor; lse: Tensor } {
  const { target, targets } = of instanceof Tensor ? { target: of, targets: 0 } : of
  const chunk_bytes = logitsChunkBytes[hidden.device.kind]
  return linearLogprobOp({ hidden, head, target, with_entropy: 0, chunk_bytes, targets })
}

/** Sum over rows with a target of -logp + zLoss * lse^2, as a tensor [1], and -logp per row [N]. Its gradient is made
 *  in  the same pass; when the tape collects into a table that already has one for `head`, it is added there
 *  directly. */
export function crossEntropy(
  hidden: Tensor,
  head: Tensor,
  { target, targets = 0, zLoss = 0 }: { target: Tensor; targets?: number; zLoss?: number },
): { loss: Tensor; nll: Tensor } {
  const call = { hidden, head, target, z_loss: zLoss, chunk_bytes: logitsChunkBytes[hidden.device.kind], targets }
  const tape = recordingTape()
  if (!tape || !(hidden.tracked || head.tracked)) {
    const { logp, lse } = linearLogprob(hidden, head, { target, targets })
    const z = affine(mul(lse, lse), zLoss, 0)
    const loss = reshape(sum(sub(z, logp), 0), [1])
    return { loss, nll: neg(logp) }
  }
  const collected = tape.unitSeed ? tape.into?.get(head) : undefined
  const made: { loss: Tensor; nll: Tensor; dhidden: Tensor; dhead?: Tensor } = withoutTape(() => {
    if (!head.tracked) return crossEntropyFrozenOp(call)
    return collected ? crossEntropyAddOp({ ...call, dhead: collected }) : crossEntropyOp(call)
  })
  const { loss, nll, dhidden, dhead } = made
  tape.add({
    name: 'cross_entropy',
    inputs: [hidden, head],
    outputs: [loss],
    saved: dhead ? [dhidden, dhead] : [dhidden],
    backward([dloss]) {
      if (dloss!.unit) return [dhidden, dhead]
      if (!collected) return [scaled(dhidden, dloss!), dhead && scaled(dhead, dloss!)]
      throw new CaravanError('ERR_INTERNAL', 'cross_entropy: the tape promised a seed of 1 and got another', {
        hint: 'record with unitSeed: false, or seed backward() with a tensor marked `unit`',
      })
    },
  })
  return { loss, nll }
}

/** x times the number in `factor` [1], rounded once to the dtype of x. */
function scaled(x: Tensor, factor: Tensor): Tensor {
  return x.dtype === factor.dtype ? mul(x, factor) : cast(mul(cast(x, factor.dtype), factor), x.dtype)
}
