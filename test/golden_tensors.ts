// Reads the reference results under test/golden: safetensors files of F64, F32, I32 and U8 tensors.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseSafetensors } from '../lib/data/safetensors.js'

export interface GoldenTensor {
  shape: number[]
  values: Float64Array | Float32Array | Int32Array | Uint8Array
}

/** Path of a file under test/golden. */
export const goldenPath = (relative: string) => fileURLToPath(new URL(`golden/${relative}`, import.meta.url))

/** All tensors of a golden file, by name. */
export function readGolden(relative: string): Map<string, GoldenTensor> {
  const path = goldenPath(relative)
  const bytes = readFileSync(path)
  const tensors = new Map<string, GoldenTensor>()
  for (const [name, { dtype, shape, byteOffset, byteLength }] of parseSafetensors(path, bytes).tensors) {
    // A copy, because views of more than one byte must begin at a multiple of their size.
    const { buffer } = Uint8Array.from(bytes.subarray(byteOffset, byteOffset + byteLength))
    tensors.set(name, { shape, values: viewOf(dtype, buffer) })
  }
  return tensors
}

function viewOf(dtype: string, buffer: ArrayBuffer): GoldenTensor['values'] {
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer)
    case 'F32':
      return new Float32Array(buffer)
    case 'I32':
      return new Int32Array(buffer)
    case 'U8':
      return new Uint8Array(buffer)
    default:
      throw new Error(`golden tensors are F64, F32, I32 or U8; got ${dtype}`)
  }
}

export function readGoldenJson<T>(relative: string): T {
  return JSON.parse(readFileSync(goldenPath(relative), 'utf8')) as T
}
