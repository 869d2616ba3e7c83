// The own matrix products. bf16 with rows that 16-byte copies can move: 128 x 128 tiles of mma.m16n8k16 fed by cp.async
// through three stages of shared memory. Everything else (f32, f64, odd sizes): 64 x 64 tiles of fused multiply-adds.
// One accumulator per element walks K from the front, whatever M is and whichever tile the row falls into.
#include "cuda/gemm_epilogue.h"
#include "cuda/tensor_core.h"

namespace caravan::cuda {
namespace {

// ---- multiply-adds --------------------------------------------------------------------------------------------------

constexpr int kFmaTile = 64, kFmaDepth = 16, kFmaThreads = 256;

template <typename T>
struct SumType {
  using Type = float;
};
template <>
struct SumType<double> {
  using Type = double;
};

/** One tile of an operand, as tile[k][row], zero outside the matrix. Neighbouring threads read neighbouring memory. */
template <typename T, typename Sum>
__device__ void load_fma_tile(Sum (&tile)[kFmaDepth][kFmaTile + 4], const T* data, const int64_t (&extent)[2],
                              const int64_t (&from)[2], int64_t leading, bool depth_major) {
  for (int i = threadIdx.x; i < kFmaDepth * kFmaTile; i += kFmaThreads) {
    const int row = depth_major ? i % kFmaTile : i / kFmaDepth;
    const int k = depth_major ? i / kFmaTile : i % kFmaDepth;
    const int64_t r = from[0] + row, d = from[1] + k;
    const bool inside = r < extent[0] && d < extent[1];
    tile[k][row] = inside ? static_cast<Sum>(widen(data[depth_major ? d * leading + r : r * leading + d])) : Sum(0);
  }
}

struct FmaShape {
  int64_t M, N, K;
  int64_t a_leading, b_leading, a_batch, b_batch;
  bool a_depth_major, b_depth_major;
};

template <typename T, typename Out>
__global__ void __launch_bounds__(kFmaThreads) fma_gemm(FmaShape s, const T* a, const T* b, const T* bias, Epilogue e) {
  using Sum = typename SumType<T>::Type;
  __shared__ Sum left[kFmaDepth][kFmaTile + 4];
  __shared__ Sum right[kFmaDepth][kFmaTile + 4];
  const int64_t batch = blockIdx.z;
  const int64_t row0 = int64_t{blockIdx.y} * kFmaTile, column0 = int64_t{blockIdx.x} * kFmaTile;
  const int tr = threadIdx.x / 16 * 4, tc = threadIdx.x % 16 * 4;
  Sum sum[4][4] = {};
  for (int64_t k0 = 0; k0 < s.K; k0 += kFmaDepth) {
    load_fma_tile(left, a + batch * s.a_batch, {s.M, s.K}, {row0, k0}, s.a_leading, s.a_depth_major);
    load_fma_tile(right, b + batch * s.b_batch, {s.N, s.K}, {column0, k0}, s.b_leading, s.b_depth_major);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kFmaDepth; k++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += left[k][tr + i] * right[k][tc + j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 4; j++) {
      const int64_t row = row0 + tr + i, column = column0 + tc + j;
      if (row >= s.M || column >= s.N) continue;
      if (bias != nullptr) sum[i][j] += widen(bias[column]);
      put<Out>(e, row, column, batch, sum[i][j]);
    }
  }
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------

constexpr int kTile = 128, kDepth = 32, kStages = 3, kThreads = 256;
// Rows are padded by 16 bytes: eight rows that ldmatrix reads at once then lie in different banks.
constexpr int kPad = 8;
constexpr int kRowMajorLeading = kDepth + kPad;   // tile[row][k]
constexpr int kDepthMajorLeading = kTile + kPad;  // tile[k][row]
constexpr int kOperandElements =
    kTile * kRowMajorLeading > kDepth* kDepthMajorLeading ? kTile * kRowMajorLeading : kDepth * kDepthMajorLeading;
constexpr size_t kSharedBytes = sizeof(bf16) * kOperandElements * 2 * kStages;
constexpr int kSumLeading =
    kTile + 8;  // of sums on their way out; the fragments' 8 x 4 lanes fall into different banks
static_assert(sizeof(float) * kTile / 2 * kSumLeading <= kSharedBytes);

struct MmaOperand {
  const bf16* data;
  int64_t leading, batch_stride;
  int64_t rows;  // M or N
};

/** Starts the copies of one tile: kTile rows from row0, kDepth values of k from k0. */
template <bool kDepthMajor>
__device__ __forceinline__ void fetch(bf16* tile, const MmaOperand& from, const bf16* data, int64_t row0, int64_t k0,
                                      int64_t K) {
  constexpr int kChunks = kTile * kDepth / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kChunks; i += kThreads) {
    const int row = kDepthMajor ? i % (kTile / 8) * 8 : i / (kDepth / 8);
    const int k = kDepthMajor ? i / (kTile / 8) : i % (kDepth / 8) * 8;
    const bool valid = row0 + row < from.rows && k0 + k < K;
    const int64_t at = kDepthMajor ? (k0 + k) * from.leading + row0 + row : (row0 + row) * from.leading + k0 + k;
    bf16* to = tile + (kDepthMajor ? k * kDepthMajorLeading + row : row * kRowMajorLeading + k);
    cp_async16(to, data + (valid ? at : 0), valid);
  }
}

/** Fragments of 16 rows at k .. k + 16, as the left operand of mma. */
template <bool kDepthMajor>
__device__ __forceinline__ void left_fragment(uint32_t (&r)[4], const bf16* tile, int row, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (kDepthMajor) {
    ldmatrix_x4_transposed(r, tile + (k + lane % 8 + lane / 16 * 8) * kDepthMajorLeading + row + lane / 8 % 2 * 8);
  } else {
    ldmatrix_x4(r, tile + (row + lane % 16) * kRowMajorLeading + k + lane / 16 * 8);
  }
}

/** Fragments of 16 columns at k .. k + 16: the right operands of columns 0 to 7 and of 8 to 15. */
template <bool kDepthMajor>
__device__ __forceinline__ void right_fragments(uint32_t (&first)[2], uint32_t (&second)[2], const bf16* tile,
                                                int column, int k) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  if constexpr (kDepthMajor) {
    ldmatrix_x4_transposed(r, tile + (k + lane % 16) * kDepthMajorLeading + column + lane / 16 * 8);
  } else {
    ldmatrix_x4(r, tile + (column + lane % 8 + lane / 16 * 8) * kRowMajorLeading + k + lane / 8 % 2 * 8);
  }
  first[0] = r[0];
  first[1] = r[1];
  second[0] = r[2];
  second[1] = r[3];
}

struct TilePlace {
  int64_t row0, column0, rows, columns, batch;
};
using SumRow = float[kSumLeading];

/** Takes the sums out by way of shared memory, 64 rows at a time: rows are written whole, and by a loop of one element.
 *  From the registers of fragments it would be 64 pieces of code for every type of result. */
__device__ __forceinline__ void put_tile(SumRow* tile, const float (&sum)[4][4][4], const Epilogue& e, const bf16* bias,
                                         const TilePlace& at) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int half = 0; half < 2; half++) {
    __syncthreads();
    if (warp / 4 == half) {
#pragma unroll
      for (int n = 0; n < 64; n++) {
        const int i = n / 16, j = n / 4 % 4, q = n % 4;
        tile[i * 16 + q / 2 * 8 + lane / 4][warp % 4 * 32 + j * 8 + lane % 4 * 2 + q % 2] = sum[i][j][q];
      }
    }
    __syncthreads();
    const auto put_half = [&](auto type) {
      for (int n = threadIdx.x; n < kTile / 2 * kTile; n += kThreads) {
        const int64_t row = at.row0 + half * (kTile / 2) + n / kTile, column = at.column0 + n % kTile;
        if (row >= at.rows || column >= at.columns) continue;
        const float value = tile[n / kTile][n % kTile];
        put<decltype(type)>(e, row, column, at.batch, bias != nullptr ? value + widen(bias[column]) : value);
      }
    };
    e.out == DType::kBF16 ? put_half(bf16{}) : put_half(float{});
  }
}

/** The type of the result is asked at the end: a kernel for each would take twice the time to compile. */
template <bool kADepthMajor, bool kBDepthMajor>
__global__ void __launch_bounds__(kThreads, 1)
    mma_gemm(MmaOperand a, MmaOperand b, int64_t K, const bf16* bias, Epilogue e) {
  CARAVAN_SHARED(bf16, shared);
  const int64_t batch = blockIdx.z;
  const int64_t row0 = int64_t{blockIdx.y} * kTile, column0 = int64_t{blockIdx.x} * kTile;
  const bf16* a_data = a.data + batch * a.batch_stride;
  const bf16* b_data = b.data + batch * b.batch_stride;
  const int64_t steps = (K + kDepth - 1) / kDepth;
  auto start = [&](int64_t step) {
    if (step < steps) {
      bf16* stage = shared + step % kStages * 2 * kOperandElements;
      fetch<kADepthMajor>(stage, a, a_data, row0, step * kDepth, K);
      fetch<kBDepthMajor>(stage + kOperandElements, b, b_data, column0, step * kDepth, K);
    }
    cp_async_commit();
  };
  for (int stage = 0; stage + 1 < kStages; stage++) start(stage);

  const int warp = threadIdx.x / 32;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
  float sum[4][4][4] = {};
  for (int64_t step = 0; step < steps; step++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    start(step + kStages - 1);
    const bf16* left = shared + step % kStages * 2 * kOperandElements;
    const bf16* right = left + kOperandElements;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t fa[4][4], fb[4][2];
#pragma unroll
      for (int i = 0; i < 4; i++) left_fragment<kADepthMajor>(fa[i], left, warp_row + i * 16, k);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        right_fragments<kBDepthMajor>(fb[j], fb[j + 1], right, warp_column + j * 8, k);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) mma_bf16(sum[i][j], fa[i], fb[j]);
      }
    }
  }
  cp_async_wait<0>();
  put_tile(reinterpret_cast<SumRow*>(shared), sum, e, bias, {row0, column0, a.rows, b.rows, batch});
}

/** Whether 16-byte copies can move the operand: its rows start at multiples of 16 bytes and hold whole chunks. */
bool chunks_fit(const Product::Operand& x, int64_t contiguous) {
  return contiguous % 8 == 0 && x.leading % 8 == 0 && x.batch_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

template <typename T, typename Out>
void run_fma(const Args& args, const Product& p) {
  const FmaShape shape = {
      p.M, p.N, p.K, p.a.leading, p.b.leading, p.a.batch_stride, p.b.batch_stride, p.a.transposed, !p.b.transposed};
  const dim3 grid(static_cast<unsigned>(ceil_div(p.N, kFmaTile)), static_cast<unsigned>(ceil_div(p.M, kFmaTile)),
                  static_cast<unsigned>(p.batch));
  launch(args, {grid, dim3(kFmaThreads)}, fma_gemm<T, Out>, shape, static_cast<const T*>(p.a.data),
         static_cast<const T*>(p.b.data), static_cast<const T*>(p.bias), epilogue_of(p));
}

template <bool kA, bool kB>
void run_mma(const Args& args, const Product& p) {
  const MmaOperand a = {static_cast<const bf16*>(p.a.data), p.a.leading, p.a.batch_stride, p.M};
  const MmaOperand b = {static_cast<const bf16*>(p.b.data), p.b.leading, p.b.batch_stride, p.N};
  const dim3 grid(static_cast<unsigned>(ceil_div(p.N, kTile)), static_cast<unsigned>(ceil_div(p.M, kTile)),
                  static_cast<unsigned>(p.batch));
  launch(args, {grid, dim3(kThreads), kSharedBytes}, mma_gemm<kA, kB>, a, b, p.K, static_cast<const bf16*>(p.bias),
         epilogue_of(p));
}

void run_bf16(const Args& args, const Product& p) {
  const bool copies = chunks_fit(p.a, p.a.transposed ? p.M : p.K) && chunks_fit(p.b, p.b.transposed ? p.K : p.N);
  if (!copies) return p.out == DType::kBF16 ? run_fma<bf16, bf16>(args, p) : run_fma<bf16, float>(args, p);
  if (p.a.transposed) return p.b.transposed ? run_mma<true, false>(args, p) : run_mma<true, true>(args, p);
  return p.b.transposed ? run_mma<false, false>(args, p) : run_mma<false, true>(args, p);
}

}  // namespace

void own_gemm(const Args& args, const Product& p) {
  constexpr int64_t kMostBatches = 65535;  // the third dimension of a grid
  if (p.batch > kMostBatches) {
    const auto at = [](auto* data, int64_t elements, DType dtype) {
      const size_t bytes = static_cast<size_t>(elements) * size_of(dtype);
      return data == nullptr ? data : reinterpret_cast<decltype(data)>(reinterpret_cast<uintptr_t>(data) + bytes);
    };
    for (int64_t first = 0; first < p.batch; first += kMostBatches) {
      Product part = p;
      part.batch = p.batch - first < kMostBatches ? p.batch - first : kMostBatches;
      part.a.data = at(p.a.data, first * p.a.batch_stride, p.in);
      part.b.data = at(p.b.data, first * p.b.batch_stride, p.in);
      part.c = at(p.c, first * p.c_batch_stride, p.out);
      part.add = at(p.add, first * p.c_batch_stride, p.out);
      own_gemm(args, part);
    }
    return;
  }
  if (p.in == DType::kF64) return run_fma<double, double>(args, p);
  if (p.in == DType::kBF16) return run_bf16(args, p);
  if (p.out == DType::kBF16) return run_fma<float, bf16>(args, p);
  return run_fma<float, float>(args, p);
}

}  // namespace caravan::cuda
