// Conversions between f32 and the two 16-bit float formats, on whole arrays. Half-width values are held as their bit
// patterns in Uint16Array: JavaScript of this version has no Float16Array, and bits are what files and kernels want.

const floatView = new Float32Array(1)
const bitsView = new Uint32Array(floatView.buffer)

/** Bits of the bfloat16 nearest to `value` (f32 semantics, ties to even; a NaN stays a quiet NaN of the same sign). */
export function f32ToBf16Bits(value: number): number {
  floatView[0] = value
  return bf16FromBits(bitsView[0]!)
}

/** The number that the bfloat16 `bits` stands for (exact). */
export function bf16BitsToF32(bits: number): number {
  bitsView[0] = (bits & 0xffff) << 16
  return floatView[0]!
}

/** Bits of the IEEE binary16 nearest to `value` (rounded to f32 first; ties to even; overflow gives infinity). */
export function f32ToF16Bits(value: number): number {
  floatView[0] = value
  return f16FromBits(bitsView[0]!)
}

/** The number that the IEEE binary16 `bits` stands for (exact). */
export function f16BitsToF32(bits: number): number {
  bitsView[0] = f16ToBits(bits & 0xffff)
  return floatView[0]!
}

/** Rounds every element of `source` to bfloat16; writes into `target` (same length) when given. */
export function f32ToBf16(source: Float32Array, target = new Uint16Array(source.length)): Uint16Array {
  const bits = new Uint32Array(source.buffer, source.byteOffset, source.length)
  for (let i = 0; i < bits.length; i++) target[i] = bf16FromBits(bits[i]!)
  return target
}

/** Widens bfloat16 bit patterns to f32; writes into `target` (same length) when given. */
export function bf16ToF32(source: Uint16Array, target = new Float32Array(source.length)): Float32Array {
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length)
  for (let i = 0; i < source.length; i++) bits[i] = source[i]! << 16
  return target
}

/** Rounds every element of `source` to IEEE binary16; writes into `target` (same length) when given. */
export function f32ToF16(source: Float32Array, target = new Uint16Array(source.length)): Uint16Array {
  const bits = new Uint32Array(source.buffer, source.byteOffset, source.length)
  for (let i = 0; i < bits.length; i++) target[i] = f16FromBits(bits[i]!)
  return target
}

/** Widens IEEE binary16 bit patterns to f32; writes into `target` (same length) when given. */
export function f16ToF32(source: Uint16Array, target = new Float32Array(source.length)): Float32Array {
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length)
  for (let i = 0; i < source.length; i++) bits[i] = f16ToBits(source[i]!)
  return target
}

function bf16FromBits(bits: number): number {
  const magnitude = (bits & 0x7fffffff) >>> 0
  if (magnitude > 0x7f800000) return (bits >>> 16) | 0x40
  // Adding just under half an ulp, plus the lowest kept bit, rounds ties to even; a carry into infinity is right.
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff
}

function f16FromBits(bits: number): number {
  const sign = (bits >>> 16) & 0x8000
  const magnitude = bits & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff)
  const halfOfMaximum = 0x477ff000 // 65520: from here on the nearest half is infinity
  if (magnitude >= halfOfMaximum) return sign | 0x7c00
  const smallestNormal = 0x38800000 // 2^-14
  if (magnitude >= smallestNormal) {
    const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1)
    return sign | ((rounded - 0x38000000) >>> 13)
  }
  return sign | subnormalF16(magnitude)
}

/** A magnitude below 2^-14 as a count of 2^-24, ties to even. */
function subnormalF16(magnitude: number): number {
  const shift = 126 - (magnitude >>> 23) // how far the 24-bit mantissa lies above the last place of a subnormal half
  if (shift > 24) return 0
  const mantissa = (magnitude & 0x7fffff) | 0x800000
  const kept = mantissa >>> shift
  const lost = mantissa & ((1 << shift) - 1)
  const half = 1 << (shift - 1)
  return lost > half || (lost === half && (kept & 1) === 1) ? kept + 1 : kept
}

function f16ToBits(half: number): number {
  const sign = (half & 0x8000) << 16
  const exponent = (half >>> 10) & 0x1f
  const mantissa = half & 0x3ff
  if (exponent === 0x1f) return (sign | 0x7f800000 | (mantissa << 13)) >>> 0
  if (exponent !== 0) return (sign | ((exponent + 112) << 23) | (mantissa << 13)) >>> 0
  if (mantissa === 0) return sign >>> 0
  const shift = Math.clz32(mantissa) - 21 // moves the leading bit to the hidden place
  return (sign | ((113 - shift) << 23) | (((mantissa << shift) & 0x3ff) << 13)) >>> 0
}
