// The tolerance rule of lib/cli/tolerance.ts as assertions.
import { expect } from 'vitest'
import type { DType } from '../../lib/base/dtype.js'
import { type Comparison, closeness, difference, largestMagnitude, unitRoundoff } from '../../lib/cli/tolerance.js'

export { difference, largestMagnitude, unitRoundoff }

/** Asserts the tolerance rule. */
export function expectWithinNaive({ what, ...comparison }: Comparison & { what: string }): void {
  const { mine, theirs, allowed } = closeness(comparison)
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
