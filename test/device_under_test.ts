// The device whose kernels the table tests check: the CPU, or with CARAVAN_TEST_DEVICE=cuda the GPU module, which on a
// machine without a GPU is the one emulated by test/native/simt (CARAVAN_CUDA_MODULE).
import type { DeviceOptions } from '../lib/runtime/index.js'

export const deviceUnderTest: DeviceOptions = {
  kind: process.env.CARAVAN_TEST_DEVICE === 'cuda' ? 'cuda' : 'cpu',
  threads: 2,
}

/** Whether bf16 products of this instruction set take bf16 operands alone, so that a gradient on its way into one is
 *  rounded to bf16 first. */
export const hasBf16Products = (isa: string): boolean => isa === 'avx512bf16' || isa.startsWith('sm_')
