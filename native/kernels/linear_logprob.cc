// logits = hidden head^T; lse = log sum e^logits; logp = logits[target] - lse; entropy = -sum p log p, p = e^(logits -
// lse). Rows without a target (target < 0) are dropped before the product and give 0. No [N,V] tensor exists: forward
// visits tiles [R,C] of at most min(chunk_bytes, 8 MiB), which stay in L3, and keeps three numbers a row. 2 N D V
// flops.
//
// Backward recomputes the logits (8 N D V flops forward and backward together) because the coefficient of a row is
// known only after the forward pass of the whole loss; cross_entropy.cc is the form for coefficients known up front.
//   dlogits[v] = dlogp ([v = target] - p[v]) - dentropy p[v] (log p[v] + entropy)
//   dhidden = dlogits head, dhead = dlogits^T hidden.
// Without dentropy the saved lse is all that a tile needs, so it is cut along V as well: R rows x one band of 4096,
// which never leaves L3 (16 MiB). Bytes a logit from memory: 16 D / R for head and dhead (R = 1024) and 12 D / 4096 for
// hidden and dhidden. With dentropy the entropy of a row comes first, so a tile holds whole rows and is swept twice,
// band by band. Sums are f32; logp is (logit - max) - log(sum), which keeps its digits when logits are large.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "kernels/dispatch.h"
#include "kernels/linear_logprob_rows.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace linear_logprob_file {

using namespace linear_logprob_detail;

constexpr int64_t kForwardRows = 512;
constexpr int64_t kForwardBytes = int64_t{8} << 20;
constexpr int64_t kGradientBytes = int64_t{16} << 20;

struct Tile {
  int64_t rows;
  int64_t columns;
};

Tile forward_tile(int64_t rows, int64_t vocabulary, int64_t chunk_bytes) {
  const int64_t floats = smaller(chunk_bytes, kForwardBytes) / 4;
  const int64_t tile_rows = larger(1, smaller(smaller(rows, kForwardRows), floats / tile_stride(kPartColumns)));
  const int64_t parts = larger(1, floats / tile_rows / kPartColumns - 1);
  return {tile_rows, smaller(vocabulary, parts * kPartColumns)};
}

Tile gradient_tile(int64_t rows, int64_t vocabulary, int64_t chunk_bytes, bool whole_rows) {
  const int64_t columns = whole_rows ? vocabulary : smaller(vocabulary, kBandColumns);
  const int64_t floats = (whole_rows ? chunk_bytes : smaller(chunk_bytes, kGradientBytes)) / 4;
  return {larger(1, smaller(rows, floats / tile_floats(1, columns))), columns};
}

// ---- forward --------------------------------------------------------------------------------------------------------

struct RowState {
  RowSummary summary;
  float target_logit;
};

template <bool kEntropy>
void visit_tile(ThreadPool& pool, float* tile, int64_t stride, int64_t rows, int64_t first_column, int64_t columns,
                const int32_t* target, const int64_t* index, RowState* states) {
  parallel_ranges(pool, rows, rows_per_pass(columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      float* logits = tile + r * stride;
      const int64_t wanted = target[index[r]] - first_column;
      if (wanted >= 0 && wanted < columns) states[r].target_logit = logits[wanted];
      states[r].summary = summarise<kEntropy, false>(states[r].summary, first_column == 0, logits, columns, nullptr);
    }
  });
}

template <typename T>
void forward(const Args& a) {
  const View& hidden = a.in[0];
  const View& head = a.in[1];
  const int32_t* target = a.in[2].as<int32_t>();
  const int64_t N = hidden.shape[0], D = hidden.shape[1], V = head.shape[0];
  float* logp = a.out[0].as<float>();
  float* lse = a.out[1].as<float>();
  float* entropy = a.out[2].present() ? a.out[2].as<float>() : nullptr;
  ThreadPool& pool = pool_of(a);

  Scratch index_memory(a.device, static_cast<size_t>(N) * sizeof(int64_t));
  int64_t* index = index_memory.as<int64_t>();
  const int64_t count = supervised_rows("linear_logprob", a.in[2], V, a.attrs[2], index);
  for (const View* out = a.out; out < a.out + a.out_count; out++) {
    if (out->present()) fill_zero(pool, out->data, out->bytes());
  }
  if (count == 0) return;

  const Tile shape = forward_tile(count, V, static_cast<int64_t>(a.attrs[1]));
  const int64_t stride = tile_stride(shape.columns);
  Scratch tile_memory(a.device, static_cast<size_t>(shape.rows * stride) * sizeof(float));
  Scratch copy_memory(a.device, static_cast<size_t>(shape.rows * D) * sizeof(T));
  Scratch state_memory(a.device, static_cast<size_t>(shape.rows) * sizeof(RowState));
  float* tile = tile_memory.as<float>();
  RowState* states = state_memory.as<RowState>();
  for (int64_t row = 0; row < count; row += shape.rows) {
    const int64_t rows = smaller(shape.rows, count - row);
    const int64_t* chunk = index + row;
    const T* x = gather_rows(pool, hidden.as<T>(), chunk, rows, D, copy_memory.as<T>());
    for (int64_t column = 0; column < V; column += shape.columns) {
      const int64_t columns = smaller(shape.columns, V - column);
      logits_product(x, head.as<T>() + column * D, rows, columns, D, tile, stride, a);
      const auto visit = entropy != nullptr ? visit_tile<true> : visit_tile<false>;
      visit(pool, tile, stride, rows, column, columns, target, chunk, states);
    }
    for (int64_t r = 0; r < rows; r++) {
      const RowSummary& summary = states[r].summary;
      logp[chunk[r]] = (states[r].target_logit - summary.max) - logf(summary.sum);
      lse[chunk[r]] = summary.log_sum_exp();
      if (entropy != nullptr) entropy[chunk[r]] = summary.entropy();
    }
  }
}

CARAVAN_KERNEL(linear_logprob, cpu,
               "hidden[N,D] head[V,D] target[N]:i32 -> logp[N]:f32 lse[N]:f32 entropy[N]:f32? | with_entropy "
               "chunk_bytes targets") {
  with_f32_or_bf16("linear_logprob", a.in[0].dtype, [&](auto type) { forward<decltype(type)>(a); });
}

// ---- backward -------------------------------------------------------------------------------------------------------

struct Backward {
  const View& dlogp;
  const View& dentropy;
  const View& hidden;
  const View& head;
  const View& target;
  const View& lse;
  const View& dhidden;
  const View& dhead;
  int64_t chunk_bytes;
  bool add;  // to what dhead holds already
};

/** dlogits of one row's columns from the saved lse. `wanted` is the target's column in this tile or outside of it. */
template <typename T>
void differentiate(float* row, int64_t columns, int64_t wanted, float dlogp, float lse) {
  const bool here = wanted >= 0 && wanted < columns;
  const float p_target = here ? exp_scalar(row[wanted] - lse) : 0.0f;
  const F32 shift = set1(lse);
  const F32 factor = set1(-dlogp);
  replace_row<T>(row, 0, columns, [&](F32 logit) { return factor * exp(logit - shift); });
  if (here) put_gradient<T>(row, wanted, dlogp - dlogp * p_target);
}

/** The same for one band with the gradient of the row's entropy. */
template <typename T>
void differentiate_with_entropy(const RowSummary& summary, float* row, int64_t columns, int64_t wanted, float dlogp,
                                float dentropy) {
  const F32 shift = set1(summary.max);
  const F32 inverse_sum = set1(1.0f / summary.sum);
  const F32 offset = set1(logf(summary.sum) - summary.entropy());
  const auto value = [&](F32 logit) {
    F32 x = bounded(logit - shift);
    F32 slope = fma(set1(dentropy), x - offset, set1(dlogp));  // dlogp + dentropy (log p + entropy)
    return -(exp(x) * inverse_sum * slope);
  };
  const bool here = wanted >= 0 && wanted < columns;
  float at_target[F32::kLanes];
  store(at_target, value(set1(here ? row[wanted] : 0.0f)));
  replace_row<T>(row, 0, columns, value);
  if (here) put_gradient<T>(row, wanted, dlogp + at_target[0]);
}

/** The rows of one chunk: everything but the loops over bands. */
template <typename T>
struct BackwardChunk {
  const Args& a;
  const Backward& b;
  const int64_t* index;  // of its rows in [0, N)
  float* tile;
  RowSummary* summaries;
  GradientChunk<T> gradient;

  template <typename Body>
  void for_rows(float* band, int64_t columns, const Body& body) const {
    parallel_ranges(pool_of(a), gradient.rows, rows_per_pass(columns), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++) body(r, index[r], band + r * tile_stride(columns));
    });
  }

  void logits(float* band, int64_t column, int64_t columns) const {
    logits_product(gradient.hidden, gradient.head + column * gradient.D, gradient.rows, columns, gradient.D, band,
                   tile_stride(columns), a);
  }

  /** The tile holds one band at a time. */
  void run_bands(int64_t vocabulary) const {
    for_bands(vocabulary, [&](int64_t begin, int64_t columns) {
      logits(tile, begin, columns);
      for_rows(tile, columns, [&](int64_t, int64_t n, float* row) {
        differentiate<T>(row, columns, b.target.as<int32_t>()[n] - begin, b.dlogp.as<float>()[n], b.lse.as<float>()[n]);
      });
      gradient_products(gradient, tile, begin, columns, a);
    });
  }

  /** The tile holds all bands: the entropy of its rows first, then the gradient. */
  void run_whole_rows(int64_t vocabulary) const {
    for_bands(vocabulary, [&](int64_t begin, int64_t columns) {
      float* band = band_of(tile, gradient.rows, begin);
      logits(band, begin, columns);
      for_rows(band, columns, [&](int64_t r, int64_t, float* row) {
        summaries[r] = summarise<true, false>(summaries[r], begin == 0, row, columns, nullptr);
      });
    });
    for_bands(vocabulary, [&](int64_t begin, int64_t columns) {
      float* band = band_of(tile, gradient.rows, begin);
      for_rows(band, columns, [&](int64_t r, int64_t n, float* row) {
        differentiate_with_entropy<T>(summaries[r], row, columns, b.target.as<int32_t>()[n] - begin,
                                      b.dlogp.as<float>()[n], b.dentropy.as<float>()[n]);
      });
      gradient_products(gradient, band, begin, columns, a);
    });
  }
};

template <typename T>
void backward(const Args& a, const Backward& b) {
  const int64_t N = b.hidden.shape[0], D = b.hidden.shape[1], V = b.head.shape[0];
  ThreadPool& pool = pool_of(a);
  Scratch index_memory(a.device, static_cast<size_t>(N) * sizeof(int64_t));
  int64_t* index = index_memory.as<int64_t>();
  const int64_t count = supervised_rows("linear_logprob_backward", b.target, V, a.attrs[1], index);
  if (count < N) fill_zero(pool, b.dhidden.data, b.dhidden.bytes());
  if (count == 0) {
    if (b.dhead.present() && !b.add) fill_zero(pool, b.dhead.data, b.dhead.bytes());
    return;
  }
  const Tile shape = gradient_tile(count, V, b.chunk_bytes, b.dentropy.present());
  Scratch tile_memory(a.device, static_cast<size_t>(tile_floats(shape.rows, shape.columns)) * sizeof(float));
  Scratch copy_memory(a.device, static_cast<size_t>(shape.rows * D) * sizeof(T));
  Scratch dhidden_memory(a.device, static_cast<size_t>(shape.rows * D) * sizeof(float));
  Scratch summary_memory(a.device, static_cast<size_t>(shape.rows) * sizeof(RowSummary));
  float* tile = tile_memory.as<float>();
  float* dhidden = dhidden_memory.as<float>();
  for (int64_t row = 0; row < count; row += shape.rows) {
    const int64_t rows = smaller(shape.rows, count - row);
    const T* x = gather_rows(pool, b.hidden.as<T>(), index + row, rows, D, copy_memory.as<T>());
    const BackwardChunk<T> chunk = {a,
                                    b,
                                    index + row,
                                    tile,
                                    summary_memory.as<RowSummary>(),
                                    {rows, D, x, b.head.as<T>(), dhidden, b.dhead.as<float>(), b.add || row > 0}};
    if (b.dentropy.present()) {
      chunk.run_whole_rows(V);
    } else {
      chunk.run_bands(V);
    }
    scatter_rows(pool, dhidden, index + row, rows, D, b.dhidden.as<T>());
  }
}

void backward_of_dtype(const Args& a, const Backward& b) {
  with_f32_or_bf16("linear_logprob_backward", b.hidden.dtype, [&](auto type) { backward<decltype(type)>(a, b); });
}

CARAVAN_KERNEL(linear_logprob_backward, cpu,
               "dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> "
               "dhidden[N,D] dhead[V,D]:f32 | chunk_bytes targets") {
  backward_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.in[3], a.in[4], a.in[5], a.out[0], a.out[1],
                        static_cast<int64_t>(a.attrs[0]), false});
}

CARAVAN_KERNEL(linear_logprob_backward_add, cpu,
               "dhead[V,D]:f32! dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> "
               "dhidden[N,D] | chunk_bytes targets") {
  backward_of_dtype(a, {a.in[1], a.in[2], a.in[3], a.in[4], a.in[5], a.in[6], a.out[0], a.in[0],
                        static_cast<int64_t>(a.attrs[0]), true});
}

CARAVAN_KERNEL(linear_logprob_backward_frozen, cpu,
               "dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> dhidden[N,D] | "
               "chunk_bytes targets") {
  const View no_dhead;
  backward_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.in[3], a.in[4], a.in[5], a.out[0], no_dhead,
                        static_cast<int64_t>(a.attrs[0]), false});
}

}  // namespace linear_logprob_file
}  // namespace
}  // namespace caravan::CARAVAN_ISA
