// Answers laid end to end on their way into a model.
import type { AnswerRows } from '../data/answer_layout.js'
import type { PackedRows } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { Tensor } from '../tensor/index.js'

/** `rows` as the decoder takes them. */
export function answerRows(device: Device, { inputIds, positions, segments, keyRows }: AnswerRows): PackedRows {
  const N = inputIds.length
  return {
    ids: Tensor.from(device, inputIds, [N]),
    positions: Tensor.from(device, positions, [N]),
    segments: Tensor.from(device, segments, [segments.length / 4, 4]),
    keyRows: keyRows && Tensor.from(device, keyRows, [keyRows.length]),
  }
}
