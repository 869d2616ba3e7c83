// attention_backward, as attention_backward.cc: p is recomputed from lse, and with delta = sum of do o per row
//   dv = p^T do     ds = p (do v^T - delta)     dq = scale ds k     dk = scale ds^T q
// Two kernels that are one: dk and dv of 128 keys over all rows that see them, the heads of the group included, then dq
// of 128 rows over their keys (64 for heads of 64). Seven products instead of five, in exchange for sums without
// atomics in a fixed order and no workspace but delta. bf16 heads of 64 and 128 run on mma.m16n8k16: a warp keeps its
// 16 keys (rows) of k and v (q and do) as fragments in registers beside their gradients, the other side comes through
// shared memory, 64 rows (keys) at a time, the next ones under way; p and ds go from one product's registers to the
// next one's, rounded to bf16. Other calls are attention_general.cu, those of compute capability 9.0
// attention_backward_hopper.cu. Traffic: own side once, other side once per 128,
// from L2 for the most part.
#include "core/scratch.h"
#include "cuda/attention_form.h"
#include "kernels/attention_backward_hopper.h"
#include "kernels/attention_general.h"
#include "kernels/dispatch.h"

namespace caravan::cuda {
namespace {

using namespace attention_detail;

using Problem = BackwardProblem;

/** Warps of a block. Wide heads: as many as share a step's tiles best; narrow ones: so few that three blocks fit. */
template <int C>
constexpr int kWarps = C == 64 ? 4 : 8;
template <int C>
constexpr int kThreads = kWarps<C> * kWarp;
template <int C>
constexpr int kOwn = kWarps<C> * 16;  // keys or rows of a block
constexpr int kOther = 64;            // rows or keys of a step

/** Shared memory, in elements of bf16: two stages of the other side, which the own side passes through first, then what
 *  a row has beside its vectors. */
template <int C>
struct Shared {
  static constexpr int kTile = kOther * C, kStage = 2 * kTile;
  static constexpr int kRowData = 2 * kOther;  // own rows, or two stages of other rows
  static_assert(kOwn<C> <= kRowData && kOwn<C> * C <= kStage);
  static constexpr size_t kBytes = sizeof(bf16) * 2 * kStage + (2 * sizeof(float) + sizeof(Range)) * kRowData;
  bf16* stages;
  float *lse, *delta;  // lse in base 2
  Range* keys_of_row;
  __device__ explicit Shared(bf16* memory)
      : stages(memory),
        lse(reinterpret_cast<float*>(memory + 2 * kStage)),
        delta(lse + kRowData),
        keys_of_row(reinterpret_cast<Range*>(delta + kRowData)) {}
};

/** The piece of a sequence that a block works on. */
struct Piece {
  Segment segment;
  int kv_head;
  int first, count;  // of own keys or rows
  Range others;
};

/** Numbers and visible keys of the rows [row, row + count) to shared memory, from `at` on; rows beyond see nothing. */
template <int C>
__device__ __forceinline__ void load_row_data(const Problem& p, const Piece& piece, const Shared<C>& shared, int row,
                                              int count, int at, int capacity) {
  for (int i = threadIdx.x; i < capacity; i += kThreads<C>) {
    const bool exists = i < count;
    const int64_t index = exists ? row_index(p.geometry, piece.segment, piece.kv_head, row + i) : 0;
    shared.lse[at + i] = exists ? p.lse[index] * kLog2E : 0.0f;
    shared.delta[at + i] = exists ? p.delta[index] : 0.0f;
    shared.keys_of_row[at + i] =
        exists ? piece.segment.keys_of((row + i) / p.geometry.group, p.geometry.window) : Range{0, 0};
  }
}

/** p and ds of a 16 x 16 tile, in place of its scores and of do v^T. e(n, i) gives the number of the row of element i
 * of fragment n in the shared arrays; visible(n, i) whether it sees the key. */
template <int C, typename RowOf, typename Visible>
__device__ __forceinline__ void softmax_gradient(float (&s)[2][4], float (&ds)[2][4], const Shared<C>& shared,
                                                 float exponent, const RowOf& row_of, const Visible& visible) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = row_of(n, i);
      const float weight = exp2_fast(fmaf(s[n][i], exponent, -shared.lse[row]));
      const float slope = weight * (ds[n][i] - shared.delta[row]);
      const bool seen = visible(n, i);
      s[n][i] = seen ? weight : 0.0f;
      ds[n][i] = seen ? slope : 0.0f;
    }
  }
}

/** sum[16, C] += weights[16, 16] times rows k .. k + 16 of a tile. */
template <int C>
__device__ __forceinline__ void add_product(float (&sum)[C / 8][4], const uint32_t (&weights)[4], const bf16* tile,
                                            int k) {
#pragma unroll
  for (int n = 0; n < C / 8; n += 2) {
    const RightPair right = right_fragments_across<C>(tile, k, n * 8);
    mma_bf16(sum[n], weights, right.first);
    mma_bf16(sum[n + 1], weights, right.second);
  }
}

/** t[16, 16] = own[16, C] times rows `row` .. row + 16 of a tile, transposed. */
template <int C>
__device__ __forceinline__ void score_product(float (&t)[2][4], const uint32_t (&own)[C / 16][4], const bf16* tile,
                                              int row) {
#pragma unroll
  for (int k = 0; k < C / 16; k++) {
    const RightPair right = right_fragments<C>(tile, row, k * 16);
    mma_bf16(t[0], own[k], right.first);
    mma_bf16(t[1], own[k], right.second);
  }
}

/** With kKeys own vectors are those of keys (k, v) and the others those of rows (q, do), else the other way round. */
template <int C, bool kKeys>
__device__ __forceinline__ void gradient_piece(const Problem& p, const Piece& piece, const Shared<C>& shared) {
  const Geometry& g = p.geometry;
  const Segment& segment = piece.segment;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto row_offset = [&](int row) { return row_index(g, segment, piece.kv_head, row) * C; };
  const auto key_offset = [&](int key) { return ((int64_t{segment.k_begin} + key) * g.K + piece.kv_head) * C; };
  const int key_stride = g.K * C;

  // Own vectors, by way of the stages, to registers.
  if constexpr (kKeys) {
    const int64_t from = key_offset(piece.first);
    fetch_adjacent<C, kOwn<C>, kThreads<C>>(shared.stages, p.k + from, key_stride, piece.count);
    fetch_adjacent<C, kOwn<C>, kThreads<C>>(shared.stages + Shared<C>::kStage, p.v + from, key_stride, piece.count);
  } else {
    fetch_rows<C, kOwn<C>, kThreads<C>>({{shared.stages, p.q}, {shared.stages + Shared<C>::kStage, p.d_o}},
                                        [&](int i) { return i < piece.count ? row_offset(piece.first + i) : -1; });
  }
  cp_async_commit();
  if (!kKeys) load_row_data(p, piece, shared, piece.first, piece.count, 0, kOwn<C>);
  cp_async_wait<0>();
  __syncthreads();
  uint32_t own_left[C / 16][4], own_right[C / 16][4];
#pragma unroll
  for (int k = 0; k < C / 16; k++) {
    left_fragment<C>(own_left[k], shared.stages, warp * 16, k * 16);
    left_fragment<C>(own_right[k], shared.stages + Shared<C>::kStage, warp * 16, k * 16);
  }
  __syncthreads();

  const auto start = [&](int other, int turn) {
    if (other < piece.others.end) {
      bf16* stage = shared.stages + turn * Shared<C>::kStage;
      const int count = piece.others.end - other;
      if constexpr (kKeys) {
        fetch_rows<C, kOther, kThreads<C>>({{stage, p.q}, {stage + Shared<C>::kTile, p.d_o}},
                                           [&](int i) { return i < count ? row_offset(other + i) : -1; });
        load_row_data(p, piece, shared, other, min(kOther, count), turn * kOther, kOther);
      } else {
        const int64_t from = key_offset(other);
        fetch_adjacent<C, kOther, kThreads<C>>(stage, p.k + from, key_stride, count);
        fetch_adjacent<C, kOther, kThreads<C>>(stage + Shared<C>::kTile, p.v + from, key_stride, count);
      }
    }
    cp_async_commit();
  };
  start(piece.others.first, 0);

  // What this warp's 16 keys (rows) have in common: the others that any of them sees (is seen by), and that all do.
  const int own = piece.first + warp * 16, owned = min(16, piece.count - warp * 16);
  float d_left[C / 8][4] = {}, d_right[C / 8][4] = {};
  int turn = 0;
  for (int other = piece.others.first; other < piece.others.end; other += kOther, turn ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    start(other + kOther, turn ^ 1);
    if (owned <= 0) continue;
    const bf16 *left = shared.stages + turn * Shared<C>::kStage, *right = left + Shared<C>::kTile;
#pragma unroll 1
    for (int j = 0; j < kOther; j += 16) {
      const int others = min(16, piece.others.end - other - j);
      if (others <= 0) break;
      // The rows of this 16 x 16 tile see keys from `low` to `high`, those that all of them see lie between.
      const int first_row = kKeys ? turn * kOther + j : warp * 16;
      const Range top = shared.keys_of_row[first_row];
      const Range bottom = shared.keys_of_row[first_row + (kKeys ? others : owned) - 1];
      const int key = kKeys ? own : other + j;
      if (key >= bottom.end || key + 16 <= top.first) continue;
      const bool whole = others == 16 && owned == 16 && key >= bottom.first && key + 16 <= top.end;
      float s[2][4] = {}, ds[2][4] = {};
      score_product<C>(s, own_left, left, j);
      score_product<C>(ds, own_right, right, j);
      // Element i of fragment n: own lane / 4 + i / 2 * 8, other n * 8 + lane % 4 * 2 + i % 2.
      const auto row_of = [&](int n, int i) {
        return first_row + (kKeys ? n * 8 + lane % 4 * 2 + i % 2 : lane / 4 + i / 2 * 8);
      };
      const auto key_of = [&](int n, int i) {
        return key + (kKeys ? lane / 4 + i / 2 * 8 : n * 8 + lane % 4 * 2 + i % 2);
      };
      if (whole) {
        softmax_gradient(s, ds, shared, p.exponent, row_of, [](int, int) { return true; });
      } else {
        softmax_gradient(s, ds, shared, p.exponent, row_of, [&](int n, int i) {
          const Range seen = shared.keys_of_row[row_of(n, i)];
          return key_of(n, i) >= seen.first && key_of(n, i) < seen.end;
        });
      }
      uint32_t weights[4];
      if constexpr (kKeys) {
        as_left_fragment(weights, s[0], s[1]);
        add_product<C>(d_right, weights, right, j);
      }
      as_left_fragment(weights, ds[0], ds[1]);
      add_product<C>(d_left, weights, left, j);
    }
  }
  cp_async_wait<0>();
  __syncthreads();

  bf16* staging = shared.stages + warp * 16 * C;
  const auto store = [&](bf16* tensor, const float (&sum)[C / 8][4], float factor) {
    store_rows<C>(staging, sum, {factor, factor}, [&](int i) -> bf16* {
      if (i >= owned) return nullptr;
      const int64_t row = kKeys ? (int64_t{segment.k_begin} + own + i) * g.K + piece.kv_head
                                : row_index(g, segment, piece.kv_head, own + i);
      return tensor + row * C;
    });
  };
  store(kKeys ? p.dk : p.dq, d_left, p.scale);
  if constexpr (kKeys) store(p.dv, d_right, 1.0f);
}

template <int C, bool kKeys>
__global__ void __launch_bounds__(kThreads<C>) gradient(Problem p, UnitList::Given list) {
  CARAVAN_SHARED(bf16, memory);
  const Geometry& g = p.geometry;
  Unit unit;
  if (!unit_of_block(list, g, &unit)) return;
  const Segment segment = p.sequences.at(unit.segment);
  const int first = unit.tile * kOwn<C>, count = min(kOwn<C>, (kKeys ? segment.keys : segment.rows(g)) - first);
  Range others;
  if (kKeys) {
    others = segment.rows_of(g, first, count);
  } else {
    others = {segment.keys_of(first / g.group, g.window).first,
              segment.keys_of((first + count - 1) / g.group, g.window).end};
  }
  const Piece piece = {segment, static_cast<int>(blockIdx.x) % g.K, first, count, others};
  gradient_piece<C, kKeys>(p, piece, Shared<C>(memory));
}

// ---- delta, gaps ----------------------------------------------------------------------------------------------------

constexpr int kDeltaThreads = 256;

/** delta = sum of do o, a row to `lanes` lanes (a power of two), kPack neighbouring columns at a time. */
template <typename T, int kPack>
__global__ void __launch_bounds__(kDeltaThreads)
    dot_outputs(const T* d_o, const T* o, int64_t rows, int C, int lanes, float* delta) {
  const int64_t row = (int64_t{blockIdx.x} * kDeltaThreads + threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  float sum = 0.0f;
  if (row < rows) {
    for (int c = lane * kPack; c < C; c += lanes * kPack) {
      if constexpr (kPack == 1) {
        sum = fmaf(widen(d_o[row * C + c]), widen(o[row * C + c]), sum);
      } else {
        const Pack<T> left = load_pack(d_o + row * C + c), right = load_pack(o + row * C + c);
#pragma unroll
        for (int i = 0; i < kPack; i++) sum = fmaf(widen(left.x[i]), widen(right.x[i]), sum);
      }
    }
  }
  for (int bits = lanes / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bits);
  if (row < rows && lane == 0) delta[row] = sum;
}

template <typename T>
void compute_delta(const Args& a, float* delta) {
  const View &d_o = a.in[0], &o = a.in[4];
  const int64_t rows = d_o.rows(), C = d_o.last();
  constexpr int kPack = Pack<T>::kCount;
  const bool packs = packs_fit<T>(C, d_o.as<T>(), o.as<T>());
  int lanes = 1;
  while (lanes < kWarp && lanes * (packs ? kPack : 1) < C) lanes *= 2;
  const Launch at = {dim3(static_cast<unsigned>(ceil_div(rows * lanes, kDeltaThreads))), dim3(kDeltaThreads)};
  launch(a, at, packs ? dot_outputs<T, kPack> : dot_outputs<T, 1>, d_o.as<T>(), o.as<T>(), rows, static_cast<int>(C),
         lanes, delta);
}

constexpr int kGapThreads = 128;

/** Rows of `width` elements outside all segments become zero; second may be null. */
template <typename T>
__global__ void __launch_bounds__(kGapThreads)
    clear_gaps(Sequences sequences, int column, int64_t rows, int width, T* first, T* second) {
  const int64_t row = int64_t{blockIdx.x} * kGapRows;
  fill_gap_rows(sequences, column, row, rows, first, width, width, T{});
  if (second != nullptr) fill_gap_rows(sequences, column, row, rows, second, width, width, T{});
}

template <typename T>
void clear_all_gaps(const Args& a, const Sequences& sequences, const Geometry& g, int C) {
  const View &dq = a.out[0], &dk = a.out[1], &dv = a.out[2];
  const auto grid = [](const View& x) { return Launch{dim3(gap_blocks(x.shape[0])), dim3(kGapThreads)}; };
  launch(a, grid(dq), clear_gaps<T>, sequences, 0, dq.shape[0], g.H * C, dq.as<T>(), nullptr);
  launch(a, grid(dk), clear_gaps<T>, sequences, 2, dk.shape[0], g.K * C, dk.as<T>(), dv.as<T>());
}

// ---- the call -------------------------------------------------------------------------------------------------------

template <int C>
void backward_mma(const Args& a, const Sequences& sequences, const Geometry& g, const float* delta) {
  const float scale = static_cast<float>(a.attrs[0]);
  const Problem p = {
      sequences,           g,     a.in[0].as<bf16>(),  a.in[1].as<bf16>(),  a.in[2].as<bf16>(),  a.in[3].as<bf16>(),
      a.in[5].as<float>(), delta, a.out[0].as<bf16>(), a.out[1].as<bf16>(), a.out[2].as<bf16>(), scale,
      scale * kLog2E};
  if (sequences.keys > 0 && attention_form().wgmma_backward) return backward_hopper(a, p, C);
  {
    const UnitList units(a, sequences, g, {true, kOwn<C>, 0});
    launch(a, {dim3(units.blocks(g)), dim3(kThreads<C>), Shared<C>::kBytes}, gradient<C, true>, p, units.given());
  }
  const UnitList units(a, sequences, g, {false, kOwn<C>, 1});
  launch(a, {dim3(units.blocks(g)), dim3(kThreads<C>), Shared<C>::kBytes}, gradient<C, false>, p, units.given());
}

CARAVAN_KERNEL(attention_backward, cuda,
               "do[N,H,C] q[N,H,C] k[M,K,C] v[M,K,C] o[N,H,C] lse[N,H]:f32 segments[S,4]:i32 -> "
               "dq[N,H,C] dk[M,K,C] dv[M,K,C] | scale window") {
  const Tables tables = {a.in[1], a.in[2], a.in[6], nullptr};
  const Sequences sequences = sequences_of(a, "attention_backward", tables, true);
  const Geometry g = geometry_of("attention_backward", tables, a.attrs[1]);
  const int64_t C = a.in[1].shape[2];
  const bool mma = a.in[1].dtype == DType::kBF16 && mma_fits(C, a.in[0].data, a.in[1].data, a.in[2].data, a.in[3].data,
                                                             a.out[0].data, a.out[1].data, a.out[2].data);
  if (!mma) check_width("attention_backward", C);
  Scratch delta(a.device, static_cast<size_t>(a.in[0].rows()) * sizeof(float));
  with_f32_or_bf16("attention_backward", a.in[1].dtype, [&](auto type) {
    using T = decltype(type);
    clear_all_gaps<T>(a, sequences, g, static_cast<int>(C));
    if (g.H == 0) return;
    compute_delta<T>(a, delta.as<float>());
    if (!mma) return attend_backward_general<T>(a, sequences, g, delta.as<float>());
    if (C == 64) {
      backward_mma<64>(a, sequences, g, delta.as<float>());
    } else {
      backward_mma<128>(a, sequences, g, delta.as<float>());
    }
  });
}

}  // namespace
}  // namespace caravan::cuda
