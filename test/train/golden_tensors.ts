// Tensors of the reference files in test/golden, as typed arrays.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseSafetensors } from '../../lib/data/safetensors.js'

const root = fileURLToPath(new URL('../golden/', import.meta.url))

export interface GoldenTensor {
  shape: number[]
  data: Float32Array | Float64Array | Int32Array | Uint8Array
}

/** All tensors of test/golden/`path`. */
export function goldenTensors(path: string): Map<string, GoldenTensor> {
  const bytes = readFileSync(root + path)
  const found = new Map<string, GoldenTensor>()
  for (const [name, { dtype, shape, byteOffset, byteLength }] of parseSafetensors(path, bytes).tensors) {
    const part = bytes.buffer.slice(bytes.byteOffset + byteOffset, bytes.byteOffset + byteOffset + byteLength)
    const make = { F64: Float64Array, F32: Float32Array, I32: Int32Array, U8: Uint8Array }[
      dtype as 'F64' | 'F32' | 'I32' | 'U8'
    ]
    found.set(name, { shape: [...shape], data: new make(part) })
  }
  return found
}

/** test/golden/`path`. */
export function goldenJson<T>(path: string): T {
  return JSON.parse(readFileSync(root + path, 'utf8')) as T
}

export const goldenModel = (name: string) => `${root}models/${name}`

/** Largest absolute difference; infinite where one is NaN or the lengths differ. */
export function largestDifference(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) return Number.POSITIVE_INFINITY
  let largest = 0
  for (let i = 0; i < got.length; i++) {
    const difference = Math.abs(got[i]! - wanted[i]!)
    if (Number.isNaN(difference)) return Number.POSITIVE_INFINITY
    largest = Math.max(largest, difference)
  }
  return largest
}

/** Largest absolute value. */
export function largest(values: ArrayLike<number>): number {
  let peak = 0
  for (let i = 0; i < values.length; i++) peak = Math.max(peak, Math.abs(values[i]!))
  return peak
}
