// Answers laid end to end on their way into a model.
import type { AnswerRows } from '../data/answer_layout.js'
import { type PackedRows, readRows } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { Tensor } from '../tensor/index.js'

/** `rows` as the decoder takes them. `reads`: the rows whose hidden state is asked for; default: those with a
 *  target. */
export function answerRows(
  device: Device,
  { inputIds, positions, segments, keyRows, labels }: AnswerRows,
  reads = (row: number) => labels[row]! >= 0,
): PackedRows {
  const N = inputIds.length
  return {
    ids: Tensor.from(device, inputIds, [N]),
    positions: Tensor.from(device, positions, [N]),
    segments: Tensor.from(device, segments, [segments.length / 4, 4]),
    keyRows: keyRows && Tensor.from(device, keyRows, [keyRows.length]),
    read: readRows(device, segments, reads),
  }
}
