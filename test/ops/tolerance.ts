// How close is close enough. No hand-tuned epsilons: a kernel may be off from the f64 truth by twice what the naive
// composition of primitives in the same dtype is off, plus a rounding or two of the largest value.
import { expect } from 'vitest'
import type { DType } from '../../lib/base/dtype.js'

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

export function largestMagnitude(values: ArrayLike<number>): number {
  let most = 0
  for (let i = 0; i < values.length; i++) if (Number.isFinite(values[i])) most = Math.max(most, Math.abs(values[i]!))
  return most
}

export interface Comparison {
  what: string
  got: ArrayLike<number>
  truth: ArrayLike<number>
  /** The naive composition's result. */
  naive: ArrayLike<number>
  /** Dtype in which the result is stored: sets the size of the absolute term. */
  dtype: DType
  /** Size of the terms that the result is the difference of; default: of the result. */
  terms?: number
}

/** Roundings of the largest value that are allowed on top of twice the naive error: that of the result as it is stored,
 * and in f32 those of a few intermediate values, which the composition may happen to have got exactly in a small
 * sample. */
const FREE_ROUNDINGS: { [dtype in DType]?: number } = { f32: 4, bf16: 1, f64: 4 }

/** Asserts the tolerance rule. */
export function expectWithinNaive({ what, got, truth, naive, dtype, terms }: Comparison): void {
  const mine = difference(got, truth)
  const theirs = difference(naive, truth)
  const free = FREE_ROUNDINGS[dtype]! * unitRoundoff[dtype]! * Math.max(largestMagnitude(truth), terms ?? 0)
  const allowed = { most: 2 * theirs.most + free, rms: 2 * theirs.rms + free }
  const text = `${what}: off by ${mine.most} (rms ${mine.rms}), the naive composition by ${theirs.most} (rms ${theirs.rms})`
  expect(mine.most, text).toBeLessThanOrEqual(allowed.most)
  expect(mine.rms, text).toBeLessThanOrEqual(allowed.rms)
}

/** Asserts |got - truth| <= roundings * roundoff(dtype) * scale, element by element; infinities must be equal. */
export function expectRounded(
  what: string,
  { got, truth, scale }: { got: ArrayLike<number>; truth: ArrayLike<number>; scale: ArrayLike<number> },
  { dtype, roundings }: { dtype: DType; roundings: number },
): void {
  expect(got.length, `${what}: number of elements`).toBe(truth.length)
  const unit = unitRoundoff[dtype]!
  for (let i = 0; i < got.length; i++) {
    if (got[i] === truth[i]) continue
    const allowed = roundings * unit * scale[i]!
    if (!(Math.abs(got[i]! - truth[i]!) <= allowed)) {
      expect.fail(`${what}: element ${i} is ${got[i]}, expected ${truth[i]} within ${allowed}`)
    }
  }
}
