// Runs CUDA kernels on the host. Every CUDA thread is a fiber with its own stack; blocks run one after another, and
// within a block the fibers take turns, changing only at barriers. A missing barrier therefore shows as a result that
// depends on the order of the threads, which can be reversed; a divergent one ends with a message. Shared memory is
// static storage, dynamic shared memory an exactly sized poisoned heap block, so AddressSanitizer sees overruns.
// Tensor-core work is emulated from the documented fragment layouts; asynchronous copies land only at the wait that
// covers them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace simt {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/** What the running fiber sees of itself. */
struct Place {
  Index thread, block, block_size, grid_size;
};
inline Place place;
inline Place& current() { return place; }

/** Order in which the threads of a block are resumed (CARAVAN_SIMT_ORDER). Results that depend on it have a race. */
enum class Order { kForward, kReverse };

/** What the threads of a launch run. An interface and not a std::function: every kernel file includes this. */
struct Body {
  virtual ~Body() = default;
  virtual void operator()() const = 0;
};
template <typename F>
struct BodyOf final : Body {
  F call;
  explicit BodyOf(const F& f) : call(f) {}
  void operator()() const override { call(); }
};

/** Runs `body` as every thread of a grid. Throws std::runtime_error for a divergent or missing barrier. */
void run(const Index& grid, const Index& block, size_t shared_bytes, const Body& body);

/** Start of the dynamic shared memory of the running block. */
void* dynamic_shared();
size_t dynamic_shared_bytes();
int lane();
int warp();
int thread_of_block();

/** What a thread waits for that other threads bring about, or copies under way. */
struct Condition {
  virtual ~Condition() = default;
  virtual bool holds() const = 0;
};
/** Waits until a condition holds; ends the launch when nothing can make it hold any more. */
void park(const Condition& condition);
/** Lets all other threads go on as far as they can. */
void step_aside();
/** Whether asynchronous copies land as late as they may, or at once: as the order of the launch is. */
bool lands_late();

void block_barrier();
void warp_barrier(unsigned mask);
unsigned ballot(unsigned mask, bool flag);

/** Publishes `bytes` bytes, waits for the lanes of `mask`, and copies what lane `from` published to `out`. */
void exchange_bytes(unsigned mask, const void* value, size_t bytes, int from, void* out);

template <typename T>
T exchange(unsigned mask, const T& value, int from) {
  T out;
  exchange_bytes(mask, &value, sizeof(T), from, &out);
  return out;
}

/** What every lane of the warp published: `value` is gathered to all[32 * bytes]. Full mask. */
void gather_bytes(const void* value, size_t bytes, void* all);

// ---- asynchronous copies and tensor cores (behind native/cuda/tensor_core.h)
// -----------------------------------------

void cp_async16(void* shared, const void* global, bool valid);
void cp_async_commit();
/** Until at most `pending` of the newest groups of this thread have not landed. */
void cp_async_wait(int pending);
/** For the scheduler: forgets all copies; whether a thread has some under way. */
void begin_copies(int threads);
bool copies_left(int thread);
/** Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8. */
void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed);
/** d[16,8] += a[16,16] b[16,8], bf16 operands and f32 sums, in the fragment layout of mma.m16n8k16. */
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

/** Says which block and thread did something that a GPU would not survive, and ends the launch. */
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simt
