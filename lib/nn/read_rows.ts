// Which hidden rows are read, by a loss or to draw tokens. The last block of a decoder computes them alone: prompts
// take part in its keys and values only.
import type { Device } from '../runtime/index.js'
import { Tensor } from '../tensor/index.js'
import type { ReadRows } from './attention.js'

/** Of the queries of each of `segments` [S,4] those from the first row on that `reads` names, and the last one at
 *  least, since a segment without queries would leave its keys without a gradient. Undefined where that is nearly all
 *  rows, and taking them apart would cost more than it saves. */
export function readRows(device: Device, segments: Int32Array, reads: (row: number) => boolean): ReadRows | undefined {
  const rows: number[] = []
  const ofRead = Int32Array.from(segments)
  let all = 0
  for (let s = 0; s < segments.length; s += 4) {
    const end = segments[s + 1]!
    let row = segments[s]!
    all += end - row
    while (row < end - 1 && !reads(row)) row++
    ofRead[s] = rows.length
    for (; row < end; row++) rows.push(row)
    ofRead[s + 1] = rows.length
  }
  if (rows.length > MOST_READ * all) return undefined
  return {
    rows: Tensor.from(device, Int32Array.from(rows), [rows.length]),
    segments: Tensor.from(device, ofRead, [ofRead.length / 4, 4]),
  }
}

const MOST_READ = 0.9
