// Element types. The numbers are those of native/core/types.h.

export type DType = 'f32' | 'bf16' | 'f64' | 'i32' | 'u8' | 'f16'

export const dtypeCode: Record<DType, number> = { f32: 0, bf16: 1, f64: 2, i32: 3, u8: 4, f16: 5 }

export const dtypeBytes: Record<DType, number> = { f32: 4, bf16: 2, f64: 8, i32: 4, u8: 1, f16: 2 }

export const dtypeNames = Object.keys(dtypeCode) as DType[]

/** The dtype with native code `code`. */
export function dtypeOf(code: number): DType {
  return dtypeNames[code]!
}

/** True for types that hold real numbers, so that a gradient exists. */
export function isFloating(dtype: DType): boolean {
  return dtype !== 'i32' && dtype !== 'u8'
}
