// The published rules for final answers, against golden rows of the reference code.
import { describe, expect, it } from 'vitest'
import {
  hendrycksEqual,
  lastBoxed,
  minervaAnswer,
  normalizeFinalAnswer,
  stripString,
  unboxed,
} from '../../lib/verify/math_published.js'
import { goldenRows } from './verifier_cases.js'

const golden = goldenRows('tulu3_verifiers')
type Text = string | null

describe('golden rows', () => {
  it.each(golden.boxed as [string, Text, Text][])('the box of %j', (text, box, content) => {
    expect(lastBoxed(text) ?? null).toBe(box)
    const wanted = content === '<AssertionError>' ? null : content
    expect((box === null ? undefined : unboxed(box)) ?? null).toBe(wanted)
  })

  it.each(golden.minerva as [string, string, string][])('the final line of %j', (text, answer, normalized) => {
    const given = minervaAnswer(text) ?? '[invalidanswer]'
    expect(given).toBe(answer)
    expect(normalizeFinalAnswer(given)).toBe(normalized)
  })

  it.each(golden.normalize_final_answer as [string, string][])('the normal form of %j', (text, normalized) => {
    expect(normalizeFinalAnswer(text)).toBe(normalized)
  })

  it.each(golden.strip_string as [string, string][])('the stripped form of %j', (text, stripped) => {
    expect(stripString(text)).toBe(stripped.startsWith('raises ') ? undefined : stripped)
  })

  it.each(golden.hendrycks_is_equiv as [Text, Text, boolean][])('%j and %j: %s', (a, b, equal) => {
    expect(hendrycksEqual(a ?? undefined, b ?? undefined)).toBe(equal)
  })
})

describe('the final line', () => {
  it.each([
    ['Final Answer: The final answer is 3. ', '3'],
    ['Final Answer: The final answer is 3', undefined],
    ['Final Answer: The final answer is 3\nFinal Answer: The final answer is 4. I hope it is correct.', '4'],
    ['Final Answer: The final answer is 3! I hope it is correct.', '3'],
  ])('of %j is %j', (text, answer) => expect(minervaAnswer(text)).toBe(answer))
})
