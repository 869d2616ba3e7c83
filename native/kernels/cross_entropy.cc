// loss = sum over rows with a target of (lse - logits[target] + z_loss lse^2), logits = hidden head^T, with its
// gradient in the same pass: dlogits = p (1 + 2 z_loss lse) - [v = target], dhidden = dlogits head, dhead = dlogits^T
// hidden. Every row has coefficient 1 (the caller scales by 1 / count later), so nothing is recomputed: 6 N D V flops.
//
// Rows with a target are processed in chunks of R whole rows, logits tile [R,V] f32 <= chunk_bytes, in two sweeps over
// bands of 4096 columns: product and summary of each band, then gradient and both products of each band. Bytes a logit
// from memory: 16 D / R for head (read twice) and dhead (read and written) per chunk in f32 (12 D / R in bf16), and 8
// for the tile (written by the first sweep, read by the second), or none where the whole tile stays in L3.
// rows_per_chunk takes whichever is less: a tile of 8 MiB when D / R is small there (small vocabularies), else the
// largest allowed. A tile along V would move fewer bytes (linear_logprob.cc) but costs 2 N D V flops more: at V = 152k,
// D = 896, R = 102 the head traffic is 140 bytes beside 5376 flops a logit, which is still cheaper.
//
// e^(logit - part maximum) is kept in the tile when a row is summarised, so the gradient is one multiplication a logit.
// Sums are f32; the loss is summed in f64 in row order. dhead depends on N, V, D and chunk_bytes (the cut into chunks),
// never on the number of threads; nll and dhidden of a row depend on that row alone.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "kernels/dispatch.h"
#include "kernels/linear_logprob_rows.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace cross_entropy_file {

using namespace linear_logprob_detail;

constexpr int64_t kCacheBytes = int64_t{8} << 20;

int64_t rows_per_chunk(int64_t count, int64_t vocabulary, int64_t D, int64_t chunk_bytes) {
  const int64_t row_bytes = tile_floats(1, vocabulary) * 4;
  const int64_t most = larger(1, chunk_bytes / row_bytes);
  const int64_t cached = larger(1, smaller(chunk_bytes, kCacheBytes) / row_bytes);
  const bool cached_moves_less = 16 * D * (most - cached) < 8 * cached * most;  // 16 D / cached < 8 + 16 D / most
  const int64_t limit = cached_moves_less ? cached : most;
  const int64_t chunks = ceil_div(count, limit);
  return ceil_div(count, chunks);  // equal chunks: the last is never a sliver
}

struct Loss {
  const View& hidden;
  const View& head;
  const View& target;
  const View& loss;
  const View& nll;
  const View& dhidden;
  const View& dhead;
  float z_loss;
  int64_t chunk_bytes;
  bool add;  // to what dhead holds already
};

struct RowState {
  RowSummary summary;
  float target_logit;

  float nll() const { return logf(summary.sum) - (target_logit - summary.max); }
};

/** Summary of one band of a row, whose logits become e^(logit - maximum of the part). `target` counts from the band. */
void summarise_band(RowState* state, float* row, bool first, int64_t columns, int64_t target, float* part_max) {
  if (target >= 0 && target < columns) state->target_logit = row[target];
  state->summary = summarise<false, true>(state->summary, first, row, columns, part_max);
}

/** One band of a row after summarise_band to the gradient of the row's loss. */
template <typename T>
void differentiate_band(const RowState& state, float* row, int64_t columns, int64_t target, float z_loss,
                        const float* part_max) {
  const RowSummary& summary = state.summary;
  const float weight = 1.0f + 2.0f * z_loss * summary.log_sum_exp();
  for (int64_t part = 0; part < columns; part += kPartColumns) {
    const F32 factor = set1(exp_scalar(part_max[part / kPartColumns] - summary.max) / summary.sum * weight);
    replace_row<T>(row, part, smaller(part + kPartColumns, columns), [&](F32 e) { return e * factor; });
  }
  if (target >= 0 && target < columns) {
    const float p = exp_scalar(state.target_logit - summary.max) / summary.sum;
    put_gradient<T>(row, target, p * weight - 1.0f);
  }
}

template <typename T>
void cross_entropy(const Args& a, const Loss& op) {
  const int64_t N = op.hidden.shape[0], D = op.hidden.shape[1], V = op.head.shape[0];
  const int32_t* target = op.target.as<int32_t>();
  ThreadPool& pool = pool_of(a);
  Scratch index_memory(a.device, static_cast<size_t>(N) * sizeof(int64_t));
  int64_t* index = index_memory.as<int64_t>();
  const int64_t count = supervised_rows("cross_entropy", op.target, V, a.attrs[2], index);
  fill_zero(pool, op.nll.data, op.nll.bytes());
  if (count < N) fill_zero(pool, op.dhidden.data, op.dhidden.bytes());
  op.loss.as<float>()[0] = 0.0f;
  if (count == 0) {
    if (op.dhead.present() && !op.add) fill_zero(pool, op.dhead.data, op.dhead.bytes());
    return;
  }
  const int64_t limit = rows_per_chunk(count, V, D, op.chunk_bytes);
  const int64_t parts = ceil_div(V, kPartColumns);
  Scratch tile_memory(a.device, static_cast<size_t>(tile_floats(limit, V)) * sizeof(float));
  Scratch copy_memory(a.device, static_cast<size_t>(limit * D) * sizeof(T));
  Scratch dhidden_memory(a.device, static_cast<size_t>(limit * D) * sizeof(float));
  Scratch state_memory(a.device, static_cast<size_t>(limit) * sizeof(RowState));
  Scratch part_memory(a.device, static_cast<size_t>(limit * parts) * sizeof(float));
  float* tile = tile_memory.as<float>();
  float* part_max = part_memory.as<float>();
  RowState* states = state_memory.as<RowState>();
  double loss = 0;
  for (int64_t row = 0; row < count; row += limit) {
    const int64_t rows = smaller(limit, count - row);
    const int64_t* chunk = index + row;
    const T* x = gather_rows(pool, op.hidden.as<T>(), chunk, rows, D, copy_memory.as<T>());
    const GradientChunk<T> gradient = {
        rows, D, x, op.head.as<T>(), dhidden_memory.as<float>(), op.dhead.as<float>(), op.add || row > 0};
    const auto for_rows = [&](int64_t columns, const auto& body) {
      parallel_ranges(pool, rows, rows_per_pass(columns), [&](int64_t from, int64_t to, int) {
        for (int64_t r = from; r < to; r++) body(r);
      });
    };
    for_bands(V, [&](int64_t begin, int64_t columns) {
      float* band = band_of(tile, rows, begin);
      const int64_t stride = tile_stride(columns);
      logits_product(x, op.head.as<T>() + begin * D, rows, columns, D, band, stride, a);
      for_rows(columns, [&](int64_t r) {
        summarise_band(states + r, band + r * stride, begin == 0, columns, target[chunk[r]] - begin,
                       part_max + r * parts + begin / kPartColumns);
      });
    });
    for_bands(V, [&](int64_t begin, int64_t columns) {
      float* band = band_of(tile, rows, begin);
      for_rows(columns, [&](int64_t r) {
        differentiate_band<T>(states[r], band + r * tile_stride(columns), columns, target[chunk[r]] - begin, op.z_loss,
                              part_max + r * parts + begin / kPartColumns);
      });
      gradient_products(gradient, band, begin, columns, a);
    });
    scatter_rows(pool, dhidden_memory.as<float>(), chunk, rows, D, op.dhidden.as<T>());
    for (int64_t r = 0; r < rows; r++) {
      const double lse = states[r].summary.log_sum_exp();
      op.nll.as<float>()[chunk[r]] = states[r].nll();
      loss += states[r].nll() + op.z_loss * lse * lse;
    }
  }
  op.loss.as<float>()[0] = static_cast<float>(loss);
}

void cross_entropy_of_dtype(const Args& a, const Loss& op) {
  with_f32_or_bf16("cross_entropy", op.hidden.dtype, [&](auto type) { cross_entropy<decltype(type)>(a, op); });
}

CARAVAN_KERNEL(cross_entropy, cpu,
               "hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] dhead[V,D]:f32 | "
               "z_loss chunk_bytes targets") {
  cross_entropy_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.out[0], a.out[1], a.out[2], a.out[3],
                             static_cast<float>(a.attrs[0]), static_cast<int64_t>(a.attrs[1]), false});
}

CARAVAN_KERNEL(cross_entropy_add, cpu,
               "dhead[V,D]:f32! hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] | "
               "z_loss chunk_bytes targets") {
  cross_entropy_of_dtype(a, {a.in[1], a.in[2], a.in[3], a.out[0], a.out[1], a.out[2], a.in[0],
                             static_cast<float>(a.attrs[0]), static_cast<int64_t>(a.attrs[1]), true});
}

CARAVAN_KERNEL(
    cross_entropy_frozen, cpu,
    "hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] | z_loss chunk_bytes targets") {
  const View no_dhead;
  cross_entropy_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.out[0], a.out[1], a.out[2], no_dhead,
                             static_cast<float>(a.attrs[0]), static_cast<int64_t>(a.attrs[1]), false});
}

}  // namespace cross_entropy_file
}  // namespace
}  // namespace caravan::CARAVAN_ISA
