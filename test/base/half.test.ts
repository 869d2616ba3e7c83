import { describe, expect, it } from 'vitest'
import {
  bf16BitsToF32,
  bf16ToF32,
  f16BitsToF32,
  f16ToF32,
  f32ToBf16,
  f32ToBf16Bits,
  f32ToF16,
  f32ToF16Bits,
} from '../../lib/base/half.js'

/** The value of a 16-bit float by the definition of IEEE 754: sign, exponent, fraction. */
function valueOfBits(bits: number, exponentBits: number): number {
  const fractionBits = 15 - exponentBits
  const sign = bits >> 15 ? -1 : 1
  const exponent = (bits >> fractionBits) & (2 ** exponentBits - 1)
  const fraction = (bits & (2 ** fractionBits - 1)) / 2 ** fractionBits
  const bias = 2 ** (exponentBits - 1) - 1
  if (exponent === 2 ** exponentBits - 1) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias)
}

const formats = [
  { name: 'f16', exponentBits: 5, widen: f16BitsToF32, narrow: f32ToF16Bits, top: 0x7bff },
  { name: 'bf16', exponentBits: 8, widen: bf16BitsToF32, narrow: f32ToBf16Bits, top: 0x7f7f },
]

for (const { name, exponentBits, widen, narrow, top } of formats) {
  describe(name, () => {
    it('widens all 65536 bit patterns exactly, and narrows them back to themselves', () => {
      for (let bits = 0; bits < 65536; bits++) {
        const expected = valueOfBits(bits, exponentBits)
        if (Number.isNaN(expected)) {
          expect(widen(bits)).toBeNaN()
          expect(valueOfBits(narrow(widen(bits)), exponentBits)).toBeNaN()
          continue
        }
        if (!Object.is(widen(bits), expected) || narrow(expected) !== bits) {
          expect({ bits, widened: widen(bits), narrowed: narrow(expected) }).toEqual({
            bits,
            widened: expected,
            narrowed: bits,
          })
        }
      }
    })

    it('rounds to nearest, and a midpoint to the even neighbour, between all neighbours', () => {
      for (let bits = 0; bits < top; bits++) {
        const low = valueOfBits(bits, exponentBits)
        const high = valueOfBits(bits + 1, exponentBits)
        const middle = (low + high) / 2 // exact in f32: one more bit than either neighbour
        const even = bits % 2 === 0 ? bits : bits + 1
        const got = [narrow(middle), narrow(nextF32(middle, -1)), narrow(nextF32(middle, 1)), narrow(-middle)]
        const want = [even, bits, bits + 1, even | 0x8000]
        if (got.some((value, i) => value !== want[i])) expect({ bits, got }).toEqual({ bits, got: want })
      }
    })

    it('overflows to infinity from halfway above the largest finite value', () => {
      const largest = valueOfBits(top, exponentBits)
      const halfUlp = (largest - valueOfBits(top - 1, exponentBits)) / 2
      expect(narrow(largest + halfUlp)).toBe(top + 1)
      expect(narrow(nextF32(largest + halfUlp, -1))).toBe(top)
      expect(narrow(Number.NEGATIVE_INFINITY)).toBe((top + 1) | 0x8000)
    })
  })
}

/** The f32 next to `value` away from (1) or towards (-1) zero, for positive values. */
function nextF32(value: number, direction: 1 | -1): number {
  const view = new DataView(new ArrayBuffer(4))
  view.setFloat32(0, value)
  view.setUint32(0, view.getUint32(0) + direction)
  return view.getFloat32(0)
}

describe('array conversions', () => {
  const values = Float32Array.of(0, -0, 1, 0.1, 65504, 65520, 1e-7, Number.NaN, 3.14159274)

  it('give what the element functions give', () => {
    expect(Array.from(f32ToF16(values))).toEqual(Array.from(values, f32ToF16Bits))
    expect(Array.from(f32ToBf16(values))).toEqual(Array.from(values, f32ToBf16Bits))
    const bits = Uint16Array.of(0x3c00, 0x8001, 0x7c00, 0xfe00, 0x3f80)
    expect(Array.from(f16ToF32(bits))).toEqual(Array.from(bits, f16BitsToF32))
    expect(Array.from(bf16ToF32(bits))).toEqual(Array.from(bits, bf16BitsToF32))
  })

  it('know 0.1 and pi: 0x2e66 and 0x4248 in f16, 0x3dcd and 0x4049 in bf16', () => {
    expect(Array.from(f32ToF16(Float32Array.of(0.1, Math.PI)))).toEqual([0x2e66, 0x4248])
    expect(Array.from(f32ToBf16(Float32Array.of(0.1, Math.PI)))).toEqual([0x3dcd, 0x4049])
  })

  it('write into the target given, at its offset', () => {
    const target = new Uint16Array(8).subarray(3, 5)
    expect(f32ToF16(Float32Array.of(1, 2), target)).toBe(target)
    expect(Array.from(new Uint16Array(target.buffer))).toEqual([0, 0, 0, 0x3c00, 0x4000, 0, 0, 0])
  })
})
