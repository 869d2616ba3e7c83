// Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011): a value depends on (seed, stream, index) alone, so
// a stream is saved by saving two integers and the native kernels draw the very same numbers.

const M0 = 0xd2511f53
const M1 = 0xcd9e8d57
const W0 = 0x9e3779b9
const W1 = 0xbb67ae85

/** Block `index` of stream (`seed`, `stream`): four independent uniform 32-bit integers. */
export function philox(seed: number, stream: number, index: number): [number, number, number, number] {
  let c0 = index >>> 0
  let c1 = Math.floor(index / 2 ** 32) >>> 0
  let c2 = stream >>> 0
  let c3 = Math.floor(stream / 2 ** 32) >>> 0
  let k0 = seed >>> 0
  let k1 = Math.floor(seed / 2 ** 32) >>> 0
  for (let round = 0; round < 10; round++) {
    const [h0, l0] = mulhilo(M0, c0)
    const [h1, l1] = mulhilo(M1, c2)
    c0 = (h1 ^ c1 ^ k0) >>> 0
    c1 = l1
    c2 = (h0 ^ c3 ^ k1) >>> 0
    c3 = l0
    k0 = (k0 + W0) >>> 0
    k1 = (k1 + W1) >>> 0
  }
  return [c0, c1, c2, c3]
}

function mulhilo(a: number, b: number): [number, number] {
  const aHigh = a >>> 16
  const aLow = a & 0xffff
  const bHigh = b >>> 16
  const bLow = b & 0xffff
  const low = aLow * bLow
  const middle1 = aHigh * bLow + (low >>> 16)
  const middle2 = aLow * bHigh + (middle1 & 0xffff)
  const high = aHigh * bHigh + Math.floor(middle1 / 0x10000) + Math.floor(middle2 / 0x10000)
  return [high >>> 0, Math.imul(a, b) >>> 0]
}

/** The saved form of a Random: everything that decides its future values. */
export interface RandomState {
  seed: number
  stream: number
  drawn: number
}

/** A sequence of random numbers. Two instances with equal state give equal values for ever. */
export class Random {
  #block: [number, number, number, number] | undefined
  #blockIndex = -1

  constructor(
    readonly seed: number,
    readonly stream = 0,
    private drawn = 0,
  ) {}

  static fromState(state: RandomState): Random {
    return new Random(state.seed, state.stream, state.drawn)
  }

  state(): RandomState {
    return { seed: this.seed, stream: this.stream, drawn: this.drawn }
  }

  /** A uniform integer in [0, 2^32). */
  uint32(): number {
    const index = Math.floor(this.drawn / 4)
    if (index !== this.#blockIndex) {
      this.#block = philox(this.seed, this.stream, index)
      this.#blockIndex = index
    }
    return this.#block![this.drawn++ % 4]!
  }

  /** A uniform number in [0, 1) with 32 bits. */
  uniform(): number {
    return this.uint32() / 2 ** 32
  }

  /** A uniform integer in [low, high), without modulo bias. */
  integer(low: number, high: number): number {
    const range = high - low
    const limit = Math.floor(2 ** 32 / range) * range
    for (;;) {
      const value = this.uint32()
      if (value < limit) return low + (value % range)
    }
  }

  /** A normally distributed number, mean 0 and standard deviation 1 (Box-Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()))
    return radius * Math.cos(2 * Math.PI * this.uniform())
  }

  chance(probability: number): boolean {
    return this.uniform() < probability
  }

  choice<T>(items: readonly T[]): T {
    return items[this.integer(0, items.length)]!
  }

  /** Index drawn in proportion to `weights`. */
  weighted(weights: readonly number[]): number {
    let total = 0
    for (const weight of weights) total += weight
    let left = this.uniform() * total
    for (let i = 0; i < weights.length; i++) {
      left -= weights[i]!
      if (left < 0) return i
    }
    return weights.length - 1
  }

  /** A uniformly random order of 0 .. count-1 (Fisher-Yates). */
  permutation(count: number): Uint32Array {
    const order = new Uint32Array(count)
    for (let i = 0; i < count; i++) order[i] = i
    for (let i = count - 1; i > 0; i--) {
      const j = this.integer(0, i + 1)
      const held = order[i]!
      order[i] = order[j]!
      order[j] = held
    }
    return order
  }

  shuffle<T>(items: readonly T[]): T[] {
    const shuffled: T[] = []
    for (const i of this.permutation(items.length)) shuffled.push(items[i]!)
    return shuffled
  }
}
