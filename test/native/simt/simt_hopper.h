// Compute capability 9.0 on the host, after the PTX ISA: barriers in shared memory, the copy engine, named barriers and
// products of warpgroups. What is asynchronous happens as late as it may: a product at the wait for it, from the
// registers and the shared memory of that moment; a copy when nothing else can go on, the newest first. With the
// threads in reverse order a copy lands at once, and who arrives at a barrier lets all others go on first, which shows
// a tile that is given back or asked for too early.
#pragma once
#include <cuda.h>

#include "simt.h"

namespace simt {

/** Address in the window of shared memory; faults for memory that is not the block's dynamic one. */
unsigned shared_address(const void* p);

void mbarrier_init(uint64_t* barrier, int arrivals);
/** One arrival, and `bytes` more that the phase waits for. */
void mbarrier_arrive(uint64_t* barrier, int bytes);
void mbarrier_wait(uint64_t* barrier, unsigned parity);
void named_barrier(int id, int threads);
void set_registers(int count);
void bulk_tensor_2d(void* to, const CUtensorMap* map, int column, int row, uint64_t* done);

void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);
/** d[64,64] (+)= a[64,16] b[16,64]; d[32] and a are a thread's fragments, b a matrix descriptor, `transposed` the last
 *  immediate of the instruction. */
void wgmma_m64n64k16_bf16(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate, bool transposed);

/** The same with a from shared memory, rows side by side in k. */
void wgmma_m64n64k16_bf16_shared(float* d, uint64_t a, uint64_t b, bool accumulate);

// ---- for the scheduler ----------------------------------------------------------------------------------------------

void begin_hopper_block();
/** Lands a copy that is under way; false if there is none. */
bool land_copy();
/** What a block left undone, or null. */
const char* left_undone();

}  // namespace simt
