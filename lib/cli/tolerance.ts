// How close is close enough. No hand-tuned epsilons: a kernel may be off from the f64 truth by twice what the naive
// composition of primitives in the same dtype is off, plus a rounding or two of the largest value.
import type { DType } from '../base/dtype.js'

/** Half the distance from 1 to the next larger number. */
export const unitRoundoff: { [dtype in DType]?: number } = { f32: 2 ** -24, bf16: 2 ** -8, f64: 2 ** -53 }

/** Largest and root-mean-square difference. Equal infinities do not differ; a NaN on one side differs without bound. */
export function difference(got: ArrayLike<number>, truth: ArrayLike<number>): { most: number; rms: number } {
  if (got.length !== truth.length) return { most: Infinity, rms: Infinity }
  let [most, squares] = [0, 0]
  for (let i = 0; i < got.length; i++) {
    if (Object.is(got[i], truth[i]) || got[i] === truth[i]) continue
    const distance = Math.abs(got[i]! - truth[i]!)
    most = Math.max(most, Number.isNaN(distance) ? Infinity : distance)
    squares += distance * distance
  }
  return { most, rms: Number.isNaN(squares) ? Infinity : Math.sqrt(squares / Math.max(1, got.length)) }
}

/** Largest finite magnitude; 0 for none. */
export function largestMagnitude(values: ArrayLike<number>): number {
  let most = 0
  for (let i = 0; i < values.length; i++) if (Number.isFinite(values[i])) most = Math.max(most, Math.abs(values[i]!))
  return most
}

export interface Comparison {
  got: ArrayLike<number>
  truth: ArrayLike<number>
  /** The naive composition's result. */
  naive: ArrayLike<number>
  /** Dtype in which the result is stored: sets the size of the absolute term. */
  dtype: DType
  /** Size of the terms that the result is the difference of; default: of the result. */
  terms?: number
  /** Roundings of the largest value that are free, where the usual number does not do. */
  freeRoundings?: number
}

/** Roundings of the largest value that are allowed on top of twice the naive error: that of the result as it is stored,
 * and in f32 those of a few intermediate values, which the composition may happen to have got exactly in a small
 * sample. */
const FREE_ROUNDINGS: { [dtype in DType]?: number } = { f32: 4, bf16: 1, f64: 4 }

export interface Closeness {
  mine: { most: number; rms: number }
  theirs: { most: number; rms: number }
  allowed: { most: number; rms: number }
}

/** Errors of a result and of the naive composition, and the error that the rule allows. Whole numbers must be equal. */
export function closeness({ got, truth, naive, dtype, terms, freeRoundings }: Comparison): Closeness {
  const mine = difference(got, truth)
  const theirs = difference(naive, truth)
  const roundoff = unitRoundoff[dtype]
  if (roundoff === undefined) return { mine, theirs, allowed: { most: 0, rms: 0 } }
  const roundings = freeRoundings ?? FREE_ROUNDINGS[dtype]!
  const free = roundings * roundoff * Math.max(largestMagnitude(truth), terms ?? 0)
  return { mine, theirs, allowed: { most: 2 * theirs.most + free, rms: 2 * theirs.rms + free } }
}
