// The least time that a call can take on this machine: its bytes at the speed at which memory was measured to move
// them, or its operations at the measured speed of a product, whichever is longer. A call whose data fit a cache is
// held against that cache, since it is timed again and again on the same data: main memory's speed would flatter it.
import type { Sample } from '../tensor/index.js'
import type { Peak } from './machine.js'

/** GB/s at a size of data: of a copy, in bytes read and written, and of reading alone, which is faster since what is
 *  written must be fetched first. */
export interface MemorySpeed {
  bytes: number
  copyGbps: number
  readGbps: number
}

/** Peaks, and the speeds of memory by the size of the data, the smallest first. */
export interface Roofs extends Peak {
  levels: readonly MemorySpeed[]
}

export interface Floor {
  seconds: number
  /** What takes this long. */
  bound: 'memory' | 'compute'
}

/** What a call moves and computes. `written` is part of `bytes`. */
export interface Work {
  bytes: number
  written: number
  flops?: number | undefined
}

/** The speeds for `bytes`: between two levels linear in the logarithm of the size, beyond the last those of the last. A
 *  smaller set of data is never slower than a larger one, so a level counts as at least as fast as those after it. */
export function speedAt({ levels }: Pick<Roofs, 'levels'>, bytes: number): Omit<MemorySpeed, 'bytes'> {
  const roof: MemorySpeed[] = []
  for (const level of [...levels].reverse()) {
    const after = roof[0] ?? level
    roof.unshift({
      bytes: level.bytes,
      copyGbps: Math.max(after.copyGbps, level.copyGbps),
      readGbps: Math.max(after.readGbps, level.readGbps),
    })
  }
  const above = roof.findIndex((level) => level.bytes >= bytes)
  if (above <= 0) return roof.at(above)!
  const [low, high] = [roof[above - 1]!, roof[above]!]
  const share = Math.log(bytes / low.bytes) / Math.log(high.bytes / low.bytes)
  const between = (a: number, b: number) => a + share * (b - a)
  return {
    copyGbps: between(low.copyGbps, high.copyGbps),
    readGbps: between(low.readGbps, high.readGbps),
  }
}

/** The floor of a call. A byte read takes 1 / read speed; a byte written what is left of a copy, which reads and writes
 *  one each, and never less than a byte read. */
export function floorOf({ bytes, written, flops = 0 }: Work, roofs: Roofs): Floor {
  const { copyGbps, readGbps } = speedAt(roofs, bytes)
  const [perRead, perCopied] = [1e-9 / Math.max(readGbps, copyGbps), 2e-9 / copyGbps]
  const memory = (bytes - written) * perRead + written * (perCopied - perRead)
  const compute = flops / (roofs.gflops * 1e9)
  return compute > memory ? { seconds: compute, bound: 'compute' } : { seconds: memory, bound: 'memory' }
}

/** Multiply-adds of attention by query, visible key, head and channel: two products forward; five backward, which makes
 *  the scores anew. */
const attentionProducts: { [op: string]: number } = { attention: 2, attention_paged: 2, attention_backward: 5 }

/** Operations of an attention op, which depend on the sequences of the sample; undefined for other ops. */
export function attentionFlops(op: string, sample: Sample): number | undefined {
  const products = attentionProducts[op]
  if (products === undefined) return undefined
  const [queries, keys] = [sample.queries as number[], sample.keys as number[]]
  const pairs = queries.reduce((sum, count, i) => sum + visiblePairs(count, keys[i]!, Number(sample.window)), 0)
  return 2 * products * pairs * Number(sample.H) * Number(sample.C)
}

/** Pairs of a query and a key that it sees: the last query sees all keys, or the last `window` of them when not 0. */
function visiblePairs(queries: number, keys: number, window: number): number {
  let pairs = 0
  for (let query = 0; query < queries; query++) {
    const seen = keys - queries + query + 1
    pairs += window > 0 ? Math.min(window, seen) : seen
  }
  return pairs
}
