// Rotary position embedding on the device, as rope.cc. One thread rotates the same pairs of up to four heads, so that
// cosines and sines are read once for four heads. Traffic per element of rope: 2 values and the table once.
#include "cuda/chain.h"
#include "cuda/packs.h"
#include "cuda/trigonometry.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 4;

__global__ void __launch_bounds__(kThreads)
    fill_table(const int32_t* positions, const double* frequencies, float* table, int64_t count, int64_t J) {
  await_earlier();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / J, j = i - row * J;
  const CosSin at = cos_sin(positions[row] * frequencies[j]);
  table[row * 2 * J + j] = static_cast<float>(at.cos);
  table[row * 2 * J + J + j] = static_cast<float>(at.sin);
}

template <typename T>
struct Rotation {
  const T* x;
  const float* table;
  T* y;
  int64_t rows;
  int heads, half;
  int spans;        // in half a head
  int head_groups;  // ceil(heads / kHeads); a thread takes the heads group, group + head_groups, ...
  int rows_each;    // rows of a block
  float direction;
};

/** A thread reads kWidth elements of the first half of a head and their partners in the second half. */
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) rotate(Rotation<T> p) {
  await_earlier();
  const int items = p.spans * p.head_groups;
  const int64_t first = int64_t{blockIdx.x} * p.rows_each;
  const int64_t left = p.rows - first;
  const int rows = left < p.rows_each ? static_cast<int>(left) : p.rows_each;
  for (int item = static_cast<int>(threadIdx.x); item < rows * items; item += kThreads) {
    const int row = item / items;
    const int group = (item - row * items) / p.spans;
    const int at = (item - row * items - group * p.spans) * kWidth;
    const float* cosines = p.table + (first + row) * 2 * p.half + at;
    const Span<float, kWidth> c = load_whole<kWidth>(cosines);
    Span<float, kWidth> s = load_whole<kWidth>(cosines + p.half);
#pragma unroll
    for (int k = 0; k < kWidth; k++) s.x[k] *= p.direction;
    const int64_t base = (first + row) * p.heads;
    Span<T, kWidth> low[kHeads], high[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; h++) {
      const int head = group + h * p.head_groups;
      if (head >= p.heads) break;
      const T* x = p.x + (base + head) * 2 * p.half + at;
      low[h] = load_whole<kWidth>(x);
      high[h] = load_whole<kWidth>(x + p.half);
    }
#pragma unroll
    for (int h = 0; h < kHeads; h++) {
      const int head = group + h * p.head_groups;
      if (head >= p.heads) break;
      float first_half[kWidth], second_half[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; k++) {
        const float l = widen(low[h].x[k]), u = widen(high[h].x[k]);
        first_half[k] = fmaf(l, c.x[k], -(u * s.x[k]));
        second_half[k] = fmaf(u, c.x[k], l * s.x[k]);
      }
      T* y = p.y + (base + head) * 2 * p.half + at;
      store_whole(y, narrow_span<T, kWidth>(first_half));
      store_whole(y + p.half, narrow_span<T, kWidth>(second_half));
    }
  }
}

template <typename T, int kWidth>
void rotate_by(const Args& a, Rotation<T> p) {
  p.spans = p.half / kWidth;
  p.head_groups = static_cast<int>(ceil_div(p.heads, kHeads));
  const int64_t items = int64_t{p.spans} * p.head_groups;
  if (items == 0) return;
  p.rows_each = items >= kThreads ? 1 : static_cast<int>(kThreads / items);
  launch_chained(a, {static_cast<unsigned>(ceil_div(p.rows, p.rows_each)), kThreads}, rotate<T, kWidth>, p);
}

template <typename T>
void run_rotation(const Args& a) {
  const View& x = a.in[0];
  const int64_t C = x.shape[2];
  if (C % 2 != 0) fail("ERR_SHAPE", "rope: the head width C must be even; got %lld", static_cast<long long>(C));
  Rotation<T> p = {.x = x.as<T>(),
                   .table = a.in[1].as<float>(),
                   .y = a.out[0].as<T>(),
                   .rows = x.shape[0],
                   .heads = static_cast<int>(x.shape[1]),
                   .half = static_cast<int>(C / 2),
                   .spans = 0,
                   .head_groups = 0,
                   .rows_each = 0,
                   .direction = a.attrs[0] < 0 ? -1.0f : 1.0f};
  // 8 bytes of bf16, 16 of f32: with 16 of bf16 the values of four heads would not fit into the registers.
  if (p.half % 4 == 0 && is_aligned(p.x, p.table, p.y)) {
    rotate_by<T, 4>(a, p);
  } else {
    rotate_by<T, 1>(a, p);
  }
}

CARAVAN_KERNEL(rope_table, cuda, "positions[N]:i32 frequencies[J]:f64 -> table[N,C]:f32 | C") {
  const int64_t J = a.in[1].shape[0];
  const View& table = a.out[0];
  if (table.last() != 2 * J) {
    fail("ERR_SHAPE", "rope_table: C must be 2 J = %lld for frequencies[J]; got %lld", static_cast<long long>(2 * J),
         static_cast<long long>(table.last()));
  }
  const int64_t count = table.rows() * J;
  launch_chained(a, {static_cast<unsigned>(ceil_div(count, kThreads)), kThreads}, fill_table, a.in[0].as<int32_t>(),
                 a.in[1].as<double>(), table.as<float>(), count, J);
}

CARAVAN_KERNEL(rope, cuda, "x[N,H,C] table[N,C]:f32 -> y[N,H,C] | direction") {
  with_f32_or_bf16("rope", a.in[0].dtype, [&]<typename T>(T) { run_rotation<T>(a); });
}

}  // namespace
}  // namespace caravan::cuda
