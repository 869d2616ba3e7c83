// A batch of pairs on its way into a model.
import type { PairBatch } from '../data/pairs.js'
import type { PackedRows } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { Tensor } from '../tensor/index.js'

/** The rows of `micro` as the decoder takes them. */
export function pairRows(device: Device, micro: PairBatch): PackedRows {
  const { inputIds, positions, segments, keyRows } = micro
  const N = inputIds.length
  return {
    ids: Tensor.from(device, inputIds, [N]),
    positions: Tensor.from(device, positions, [N]),
    segments: Tensor.from(device, segments, [segments.length / 4, 4]),
    keyRows: keyRows && Tensor.from(device, keyRows, [keyRows.length]),
  }
}
