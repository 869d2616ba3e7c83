// The few instructions between shared memory and the tensor cores, one PTX instruction each; under the SIMT harness the
// documented fragment layouts are emulated. sm_80 and later.
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

/** Starts copying 16 bytes to shared memory; where `valid` is false they become zeros and `global` is not read. */
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
#ifdef CARAVAN_SIMT
  simt::cp_async16(shared, global, valid);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}

/** Closes the group of the copies that this thread started since the last commit. */
__device__ __forceinline__ void cp_async_commit() {
#ifdef CARAVAN_SIMT
  simt::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/** Waits until at most `kPending` of this thread's newest groups are under way. Other threads' copies need a barrier.
 */
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef CARAVAN_SIMT
  simt::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

/** Loads four 8x8 matrices of bf16 from shared memory: lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef CARAVAN_SIMT
  simt::ldmatrix_x4(r, row, false);
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
#endif
}

/** The same with every 8x8 matrix transposed. */
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
#ifdef CARAVAN_SIMT
  simt::ldmatrix_x4(r, row, true);
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
#endif
}

/** d[16,8] += a[16,16] b[16,8]. With g = lane / 4 and t = lane % 4: a holds rows g, g+8 at k = 2t, 2t+1 (a[0], a[1])
 * and k + 8 (a[2], a[3]); b holds column g at k = 2t, 2t+1 (b[0]) and k + 8 (b[1]); d holds row g, columns 2t, 2t+1
 * (d[0], d[1]) and row g+8 (d[2], d[3]). */
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef CARAVAN_SIMT
  simt::mma_m16n8k16_bf16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace caravan::cuda
