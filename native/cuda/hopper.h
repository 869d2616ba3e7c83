// What compute capability 9.0 has beyond tensor_core.h: barriers in shared memory that count bytes, tiles fetched by
// the copy engine from a tensor map, products of whole warpgroups whose right operand lies in shared memory, and
// registers that warpgroups pass to each other. One PTX instruction each; under the SIMT harness the layouts and the
// rules of the PTX ISA are emulated. Files that include this are compiled for sm_90a alone.
#pragma once
#include <cuda.h>

#include "cuda/launch.h"
#ifdef CARAVAN_SIMT
#include "simt_hopper.h"
#endif

namespace caravan::cuda {

constexpr int kWarpGroup = 128;

/** Address in the window of shared memory. */
__device__ __forceinline__ unsigned shared_address(const void* p) {
#ifdef CARAVAN_SIMT
  return simt::shared_address(p);
#else
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
#endif
}

// ---- barriers in shared memory --------------------------------------------------------------------------------------

/** Phases end when all have arrived and all expected bytes are there. The first has parity 0. */
using Barrier = uint64_t;

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
#ifdef CARAVAN_SIMT
  simt::mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

/** Shows barriers that this thread has made to the copy engine; a __syncthreads shows them to the other threads. */
__device__ __forceinline__ void barriers_made() {
#ifndef CARAVAN_SIMT
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
#ifdef CARAVAN_SIMT
  simt::mbarrier_arrive(barrier, 0);
#else
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
#endif
}

/** Arrives, and says that `bytes` more will come before the phase may end. */
__device__ __forceinline__ void barrier_arrive_expecting(Barrier* barrier, int bytes) {
#ifdef CARAVAN_SIMT
  simt::mbarrier_arrive(barrier, bytes);
#else
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}

/** Waits until the phase of this parity has ended: the one under way, or the one before it, which has. */
__device__ __forceinline__ void barrier_wait(Barrier* barrier, unsigned parity) {
#ifdef CARAVAN_SIMT
  simt::mbarrier_wait(barrier, parity);
#else
  unsigned over = 0;
  while (over == 0) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  }
#endif
}

/** Barrier `id` (1 to 15) of `threads` of the block, in whole warps. */
__device__ __forceinline__ void sync_threads_of(int id, int threads) {
#ifdef CARAVAN_SIMT
  simt::named_barrier(id, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- tiles by the copy engine ---------------------------------------------------------------------------------------

/** Starts copying the box at (column, row) of a tensor; its bytes are counted by `done`. Called by one thread. */
__device__ __forceinline__ void fetch_box(void* to, const CUtensorMap* map, int column, int row, Barrier* done) {
#ifdef CARAVAN_SIMT
  simt::bulk_tensor_2d(to, map, column, row, done);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(done))
      : "memory");
#endif
}

/** Shows what this thread has written to shared memory to the copy engine and to warpgroup products. */
__device__ __forceinline__ void fence_async_proxy() {
#ifndef CARAVAN_SIMT
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- registers ------------------------------------------------------------------------------------------------------

/** Every warp of a warpgroup: from here on a thread has kRegisters, fewer than before. */
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
#ifdef CARAVAN_SIMT
  simt::set_registers(kRegisters);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
/** The same, more than before. */
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#ifdef CARAVAN_SIMT
  simt::set_registers(kRegisters);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// ---- products of warpgroups -----------------------------------------------------------------------------------------

/** Of a tile of 64-element rows of 16-bit numbers, 128 bytes each, whose 16-byte chunks are swizzled: the chunk's
 *  number is combined by XOR with the row's last three bits. The tile begins at a multiple of 1024 bytes, and
 *  descriptors of its parts are this one plus multiples of 16 bytes. This is the lower half of a descriptor; the upper
 *  one, kTileLayout, is the same for all tiles: arithmetic on all 64 bits takes two instructions each time. Called by
 *  whole warps: what comes from one lane the compiler knows to be the same in all, and keeps once a warp. */
__device__ __forceinline__ uint32_t tile_descriptor(const void* tile) {
  return __shfl_sync(0xffffffffu, 1u << 16 | (shared_address(tile) & 0x3ffff) >> 4, 0);
}
/** Swizzles of 128 bytes, eight rows after 1024 bytes. */
#define CARAVAN_TILE_LAYOUT 0x40000040
constexpr uint64_t kTileLayout = uint64_t{CARAVAN_TILE_LAYOUT} << 32;

/** Before the first product of a group: orders it after what was done with the registers it uses. */
__device__ __forceinline__ void products_begin() {
#ifdef CARAVAN_SIMT
  simt::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/** Closes a group of products. */
__device__ __forceinline__ void products_commit() {
#ifdef CARAVAN_SIMT
  simt::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/** Waits until at most kPending of the newest groups are under way. */
template <int kPending>
__device__ __forceinline__ void products_wait() {
#ifdef CARAVAN_SIMT
  simt::wgmma_wait(kPending);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

/** Keeps the compiler from moving what it does with these registers across this point: between the commit of a product
 *  that uses them and the wait for it they are not the thread's own. */
template <typename T>
__device__ __forceinline__ void settle(T& registers) {
  if constexpr (std::is_array_v<T>) {
#pragma unroll
    for (auto& x : registers) settle(x);
  } else {
#ifndef CARAVAN_SIMT
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers)::"memory");
    } else {
      asm volatile("" : "+r"(registers)::"memory");
    }
#endif
  }
}

#ifndef CARAVAN_SIMT
/** The 32 sums of a thread as operands of an instruction. */
#define CARAVAN_EIGHT(d, n)                                                                                            \
  "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3]), "+f"(d[n + 1][0]), "+f"(d[n + 1][1]), "+f"(d[n + 1][2]), \
      "+f"(d[n + 1][3])
#define CARAVAN_SQUARE(d) CARAVAN_EIGHT(d, 0), CARAVAN_EIGHT(d, 2), CARAVAN_EIGHT(d, 4), CARAVAN_EIGHT(d, 6)
#endif

/** d[64,64] (+)= a[64,16] b[16,64] by a warpgroup, asynchronously. Warp w holds rows 16 w .. 16 w + 16 of a and d in
 * the fragments of mma_bf16, d[n] its columns 8 n .. 8 n + 8. b is part of a tile: rows are its columns, or, with
 * kAcross, its rows. */
template <bool kAcross>
__device__ __forceinline__ void warpgroup_product(float (&d)[8][4], const uint32_t (&a)[4], uint32_t b,
                                                  bool accumulate) {
#ifdef CARAVAN_SIMT
  simt::wgmma_m64n64k16_bf16(&d[0][0], a, kTileLayout | b, accumulate, kAcross);
#else
  // clang-format off
  asm volatile(
      "{ .reg .pred p; .reg .b64 b; setp.ne.b32 p, %37, 0; mov.b64 b, {%36, " CARAVAN_TEXT(CARAVAN_TILE_LAYOUT) "}; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, {%32,%33,%34,%35}, b, p, 1, 1, %38; }"
      : CARAVAN_SQUARE(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(accumulate)), "n"(kAcross ? 1 : 0));
  // clang-format on
#endif
}

/** The same with a from a tile, 16 of its columns. */
__device__ __forceinline__ void warpgroup_product_of_tiles(float (&d)[8][4], uint32_t a, uint32_t b, bool accumulate) {
#ifdef CARAVAN_SIMT
  simt::wgmma_m64n64k16_bf16_shared(&d[0][0], kTileLayout | a, kTileLayout | b, accumulate);
#else
  // clang-format off
  asm volatile(
      "{ .reg .pred p; .reg .b64 a, b; setp.ne.b32 p, %34, 0; "
      "mov.b64 a, {%32, " CARAVAN_TEXT(CARAVAN_TILE_LAYOUT) "}; "
      "mov.b64 b, {%33, " CARAVAN_TEXT(CARAVAN_TILE_LAYOUT) "}; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, a, b, p, 1, 1, 0, 0; }"
      : CARAVAN_SQUARE(d)
      : "r"(a), "r"(b), "r"(static_cast<int>(accumulate)));
  // clang-format on
#endif
}

#ifndef CARAVAN_SIMT
#undef CARAVAN_SQUARE
#undef CARAVAN_EIGHT
#endif

}  // namespace caravan::cuda
