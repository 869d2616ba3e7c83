// Conversion between element types, and tensors made from numbers (fill, iota). f32 and bf16 convert by vectors, all
// other pairs one by one through f64. To i32 rounds to nearest even, limits to the range and turns NaN into 0. Traffic
// per element: cast both types once, fill and iota the output once.
#include "core/kernel_registry.h"
#include "cpu/thread_pool.h"
#include "kernels/number_convert.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace cast_detail {

template <typename S, typename T>
void convert(const S* x, T* y, int64_t count) {
  for (int64_t i = 0; i < count; i++) round_to(to_f64(x[i]), y + i);
}
/** f32 holds every f16, so these two (the loading of f16 checkpoints) also round at most once. */
void convert(const f16* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = to_f32(x[i]);
}
void convert(const f16* x, bf16* y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = to_bf16(to_f32(x[i]));
}
void convert(const float* x, bf16* y, int64_t count) {
  for_vectors(count, [&](int64_t i, auto vector) { vector.store(y + i, vector.load(x + i)); });
}
void convert(const bf16* x, float* y, int64_t count) {
  for_vectors(count, [&](int64_t i, auto vector) { vector.store(y + i, vector.load(x + i)); });
}
/** The same type: the bits as they are, NaN payloads too. */
template <typename T>
void convert(const T* x, T* y, int64_t count) {
  __builtin_memcpy(y, x, static_cast<size_t>(count) * sizeof(T));
}

/** The unsigned integer of a size: compilers vectorise a store of it, and not that of a struct like bf16. */
template <size_t kBytes>
struct Bits;
template <>
struct Bits<2> {
  using Type = uint16_t;
};
template <>
struct Bits<4> {
  using Type = uint32_t;
};
template <>
struct Bits<8> {
  using Type = uint64_t;
};

}  // namespace cast_detail

CARAVAN_KERNEL(cast, cpu, "x[...] -> y[...]:dtype | dtype") {
  const View& x = a.in[0];
  const View& y = a.out[0];
  with_number_type("cast", x.dtype, [&]<typename S>(S) {
    with_number_type("cast", y.dtype, [&]<typename T>(T) {
      parallel_ranges(pool_of(a), x.count(), rows_per_task(sizeof(S) + sizeof(T)),
                      [&](int64_t begin, int64_t end, int) {
                        cast_detail::convert(x.as<S>() + begin, y.as<T>() + begin, end - begin);
                      });
    });
  });
}

CARAVAN_KERNEL(fill, cpu, "-> y[...]:dtype | value dtype") {
  const View& y = a.out[0];
  with_number_type("fill", y.dtype, [&]<typename T>(T) {
    using Word = typename cast_detail::Bits<sizeof(T)>::Type;
    const T value = rounded<T>(a.attrs[0]);
    Word word;
    __builtin_memcpy(&word, &value, sizeof(T));
    parallel_ranges(pool_of(a), y.count(), rows_per_task(sizeof(T)), [&](int64_t begin, int64_t end, int) {
      Word* to = y.as<Word>() + begin;
      for (int64_t i = 0; i < end - begin; i++) to[i] = word;
    });
  });
}

// y[i] = start + i * step, computed in f64 and rounded once.
CARAVAN_KERNEL(iota, cpu, "-> y[N]:dtype | N start step dtype") {
  const View& y = a.out[0];
  const double start = a.attrs[1];
  const double step = a.attrs[2];
  with_number_type("iota", y.dtype, [&]<typename T>(T) {
    parallel_ranges(pool_of(a), y.count(), rows_per_task(sizeof(T)), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) round_to(start + static_cast<double>(i) * step, y.as<T>() + i);
    });
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
