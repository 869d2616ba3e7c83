// A row of a matrix shared out to a group of threads: half a warp, a warp or a block, by the width of the row alone, so
// that a row has the same bits in any batch. Thread t of a group of n owns the packs t, t + n, ... of 16 bytes and
// keeps them in registers, so that a row is read once; only rows too wide for that are read again.
#pragma once
#include "cuda/numbers.h"
#include "cuda/reduce.h"

namespace caravan::cuda {

constexpr int kRowBlock = 256;
template <typename T>
constexpr int kPackOf = 16 / sizeof(T);

/** kThreads threads a row, each with up to kPacks packs in registers; kPacks = 0: any number, read again when needed.
 *  kVector: packs are whole and aligned, else they are read element by element and end with the row. */
template <typename Element, int threads, int packs, bool vector>
struct RowShape {
  using T = Element;
  static constexpr int kThreads = threads;
  static constexpr int kPacks = packs;
  static constexpr bool kVector = vector;
  static constexpr bool kHeld = packs > 0;
  static constexpr int kSlots = packs > 0 ? packs : 1;
  static constexpr int kElements = kPackOf<T>;
  static constexpr int kBlock = threads < kRowBlock ? kRowBlock : threads;
  static constexpr int kGroups = kBlock / threads;  // rows at a time in a block
  // Blocks that a multiprocessor must have registers for: enough bytes on their way from memory.
  static constexpr int kResident = packs == 1 ? 4 : packs == 2 ? 3 : packs == 4 ? 2 : 1;
};

/** body(shape) with the shape for rows of `width` elements; `vector`: whether packs_fit. */
template <typename T, typename Body>
void with_row_shape(int64_t width, bool vector, const Body& body) {
  const int64_t packs = ceil_div(width, kPackOf<T>);
  if (!vector) {
    if (packs <= 128) return body(RowShape<T, 32, 4, false>{});
    return body(RowShape<T, 512, 0, false>{});
  }
  if (packs <= 16) return body(RowShape<T, 16, 1, true>{});
  if (packs <= 128) return body(RowShape<T, 32, 4, true>{});
  if (packs <= 256) return body(RowShape<T, 256, 1, true>{});
  if (packs <= 512) return body(RowShape<T, 256, 2, true>{});
  if (packs <= 1024) return body(RowShape<T, 256, 4, true>{});
  body(RowShape<T, 512, 0, true>{});
}

/** Sum over the threads of a group, given to each; all threads of the block must call it together. */
template <typename S>
__device__ __forceinline__ float group_sum(float x) {
  if constexpr (S::kThreads <= kWarp) {
#pragma unroll
    for (int bits = S::kThreads / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(kAllLanes, x, bits);
    return x;
  } else {
    return block_sum(x);
  }
}

/** What one thread owns of a row: step(slot, first element) for each of its packs. */
template <typename S, typename Step>
__device__ __forceinline__ void for_packs(int width, const Step& step) {
  const int own = static_cast<int>(threadIdx.x) % S::kThreads * S::kElements;
  constexpr int kStride = S::kThreads * S::kElements;
  if constexpr (S::kHeld) {
#pragma unroll
    for (int slot = 0; slot < S::kPacks; slot++) {
      if (own + slot * kStride < width) step(slot, own + slot * kStride);
    }
  } else {
    for (int at = own; at < width; at += kStride) step(0, at);
  }
}

/** Some elements of a row as numbers to compute with. */
template <typename S>
struct RowValues {
  float x[S::kElements];
};

/** Sixteen bytes of f32 or bf16 as the words they lie in. */
template <typename S>
struct alignas(16) RowWords {
  uint32_t word[4];

  __device__ __forceinline__ RowValues<S> values() const {
    RowValues<S> v;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (sizeof(typename S::T) == 4) {
        v.x[i] = __uint_as_float(word[i]);
      } else {
        v.x[2 * i] = __uint_as_float(word[i] << 16);
        v.x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
      }
    }
    return v;
  }
  static __device__ __forceinline__ RowWords of(const RowValues<S>& v) {
    RowWords words;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (sizeof(typename S::T) == 4) {
        words.word[i] = __float_as_uint(v.x[i]);
      } else {
        words.word[i] = pack_bf16(v.x[2 * i], v.x[2 * i + 1]);
      }
    }
    return words;
  }
  /** From `at` on of a row of `width` elements; zeros beyond its end. */
  static __device__ __forceinline__ RowWords load(const typename S::T* row, int width, int at) {
    if constexpr (S::kVector) {
      return *reinterpret_cast<const RowWords*>(row + at);
    } else {
      RowValues<S> v;
#pragma unroll
      for (int k = 0; k < S::kElements; k++) v.x[k] = at + k < width ? widen(row[at + k]) : 0.0f;
      return of(v);
    }
  }
  __device__ __forceinline__ void store(typename S::T* row, int width, int at) const {
    if constexpr (S::kVector) {
      *reinterpret_cast<RowWords*>(row + at) = *this;
    } else {
      const RowValues<S> v = values();
#pragma unroll
      for (int k = 0; k < S::kElements; k++) {
        if (at + k < width) row[at + k] = narrow<typename S::T>(v.x[k]);
      }
    }
  }
  /** Makes the compiler forget what it has computed from the words. Else it keeps their widened copies, which for bf16
   *  take twice the registers and widen again at no cost. */
  __device__ __forceinline__ void forget() {
#if defined(__CUDA_ARCH__)
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+r"(word[i]));
#endif
  }
};

/** The packs of a row that a thread owns. */
template <typename S>
class RowOf {
 public:
  using T = typename S::T;

  /** From a row of `width` elements, the same that for_packs is given. */
  __device__ __forceinline__ void load(const T* row, int width) {
    row_ = row;
    width_ = width;
    if constexpr (S::kHeld) {
      for_packs<S>(width, [&](int slot, int at) { held_[slot] = RowWords<S>::load(row, width, at); });
    }
  }
  __device__ __forceinline__ RowValues<S> get(int slot, int at) const {
    if constexpr (S::kHeld) {
      return held_[slot].values();
    } else {
      return RowWords<S>::load(row_, width_, at).values();
    }
  }
  /** Stores values and holds them as they were stored. */
  __device__ __forceinline__ RowValues<S> put(T* row, int width, int slot, int at, const RowValues<S>& v) {
    row_ = row;
    width_ = width;
    const RowWords<S> words = RowWords<S>::of(v);
    words.store(row, width, at);
    if constexpr (S::kHeld) held_[slot] = words;
    return words.values();
  }
  /** See RowWords::forget; to be called where registers are wanted for something else. */
  __device__ __forceinline__ void forget() {
    if constexpr (S::kHeld) {
#pragma unroll
      for (int slot = 0; slot < S::kSlots; slot++) held_[slot].forget();
    }
  }

 private:
  const T* row_ = nullptr;
  int width_ = 0;
  RowWords<S> held_[S::kSlots] = {};
};

/** Rows that a group takes one after another, so that what all rows share is loaded once: few where there are few. */
inline int rows_each(int64_t rows) { return rows >= 16384 ? 4 : rows >= 8192 ? 2 : 1; }

/** Blocks for `rows` rows. */
template <typename S>
unsigned row_blocks(int64_t rows, int each) {
  return static_cast<unsigned>(ceil_div(rows, int64_t{S::kGroups} * each));
}

/** body(row, exists) for the rows [begin, end) of a block, kGroups at a time. All groups go through all rounds, as they
 *  meet at barriers; a row that does not exist is row 0 with exists = false. */
template <typename S, typename Body>
__device__ __forceinline__ void for_rows(int64_t begin, int64_t end, int rounds, const Body& body) {
  const int group = static_cast<int>(threadIdx.x) / S::kThreads;
  for (int round = 0; round < rounds; round++) {
    const int64_t row = begin + round * S::kGroups + group;
    body(row < end ? row : 0, row < end);
  }
}

}  // namespace caravan::cuda
