// A row of packed examples on its way through a model, and what the model thinks of its targets.
import type { PackedBatch } from '../data/pack.js'
import { type CausalLm, type PackedRows, readRows } from '../models/index.js'
import { linearLogprob, selfSegments, targetsOn } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { type Checkpointing, Tensor } from '../tensor/index.js'

/** The rows of `micro` as the decoder takes them, the hidden states of those with a target being asked for. */
export function packedRows(device: Device, { inputIds, positions, cuSeqlens, labels }: PackedBatch): PackedRows {
  const N = inputIds.length
  const { data, shape } = selfSegments(cuSeqlens)
  return {
    ids: Tensor.from(device, inputIds, [N]),
    positions: Tensor.from(device, positions, [N]),
    segments: Tensor.from(device, data, shape),
    read: readRows(device, data, (row) => labels[row]! >= 0),
  }
}

/** Log-probability of each row's target, [N] f32; 0 where a row has none. */
export function packedLogprobs(policy: CausalLm, micro: PackedBatch, checkpoint: Checkpointing = 'none'): Tensor {
  const { device } = policy
  const hidden = policy.hidden(packedRows(device, micro), { checkpoint })
  return linearLogprob(hidden, policy.head, targetsOn(device, micro.labels)).logp
}
