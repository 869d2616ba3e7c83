// The device whose kernels the table tests check: the CPU, or with CARAVAN_TEST_DEVICE=cuda the GPU module, which on a
// machine without a GPU is the one emulated by test/native/simt (CARAVAN_CUDA_MODULE).
import type { DeviceOptions } from '../lib/runtime/index.js'

export const deviceUnderTest: DeviceOptions = {
  kind: process.env.CARAVAN_TEST_DEVICE === 'cuda' ? 'cuda' : 'cpu',
  threads: 2,
}
