// linear_logprob: log-probabilities of targets, and its gradients, as linear_logprob.cc; the chunks are those of
// linear_logprob_chunks.h. Forward keeps 12 bytes a row for every 1024 logits. Backward recomputes the logits and needs
// the saved lse alone, or, under a gradient of the entropy, the sums of each row first.
#include "core/scratch.h"
#include "kernels/dispatch.h"
#include "kernels/linear_logprob_chunks.h"

namespace caravan::cuda {
namespace {

/** What a row's log-probability is read from. */
struct RowResults {
  float *logp, *lse, *entropy;  // entropy may be null
};

template <bool kEntropy, typename Rows>
__global__ void __launch_bounds__(kRowThreads) finish_rows(Rows rows, RowResults results) {
  const int64_t r = own_row();
  if (r >= rows.live) return;
  const RowSummary summary = merged<kEntropy>(rows.summaries + r * rows.parts, rows.parts);
  if (threadIdx.x % kWarp != 0) return;
  const int32_t n = rows.index[r];
  if (n < 0) return;
  results.logp[n] = (rows.target_logit[r] - summary.max) - logf(summary.sum);
  results.lse[n] = summary.log_sum_exp();
  if constexpr (kEntropy) results.entropy[n] = summary.entropy();
}

template <typename T, bool kEntropy>
void forward(const Args& a, const int32_t* index, int64_t count) {
  HeadChunks<T> chunks(a, a.in[0], a.in[1], a.in[2], index, count, static_cast<int64_t>(a.attrs[1]));
  const RowResults results = {a.out[0].as<float>(), a.out[1].as<float>(), a.out[2].as<float>()};
  chunks.for_each([&](int64_t) {
    chunks.template summarise_rows<kEntropy>();
    const auto rows = chunks.rows();
    launch(a, warp_each(rows.live), finish_rows<kEntropy, decltype(rows)>, rows, results);
  });
}

CARAVAN_KERNEL(linear_logprob, cuda,
               "hidden[N,D] head[V,D] target[N]:i32 -> logp[N]:f32 lse[N]:f32 entropy[N]:f32? | with_entropy "
               "chunk_bytes targets") {
  with_f32_or_bf16("linear_logprob", a.in[0].dtype, [&]<typename T>(T) {
    Scratch index(a.device, a.in[2].bytes());
    const int64_t count =
        supervised_rows(a, "linear_logprob", a.in[2], a.in[1].shape[0], targets_of(a, 2), index.as<int32_t>());
    for (const View* out = a.out; out < a.out + a.out_count; out++) zero(a, *out);
    if (count == 0) return;
    if (a.out[2].present()) return forward<T, true>(a, index.as<int32_t>(), count);
    forward<T, false>(a, index.as<int32_t>(), count);
  });
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

/** From the saved log-sum-exp: p = e^(logit - lse). */
template <typename Rows>
__global__ void __launch_bounds__(kRowThreads) slopes_from_lse(Rows rows, const float* dlogp, const float* lse) {
  const int64_t r = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (r >= rows.live) return;
  const int32_t n = rows.index[r];
  rows.gradients[r] = n < 0 ? RowGradient{} : RowGradient{lse[n], 1.0f, dlogp[n], dlogp[n], 0.0f, 0.0f};
}

/** dlogp + dentropy (log p + entropy), log p = x - log sum. */
template <typename Rows>
__global__ void __launch_bounds__(kRowThreads)
    slopes_with_entropy(Rows rows, const float* dlogp, const float* dentropy) {
  const int64_t r = own_row();
  if (r >= rows.live) return;
  const RowSummary summary = merged<true>(rows.summaries + r * rows.parts, rows.parts);
  if (threadIdx.x % kWarp != 0) return;
  const int32_t n = rows.index[r];
  if (n < 0) {
    rows.gradients[r] = {};
    return;
  }
  rows.gradients[r] = {summary.max, 1.0f / summary.sum, dlogp[n],
                       dlogp[n],    dentropy[n],        logf(summary.sum) - summary.entropy()};
}

template <typename T>
void backward(const Args& a, const Backward& b) {
  Scratch index(a.device, b.target.bytes());
  const int64_t V = b.head.shape[0];
  const int64_t count =
      supervised_rows(a, "linear_logprob_backward", b.target, V, targets_of(a, 1), index.as<int32_t>());
  if (count < b.target.shape[0]) zero(a, b.dhidden);
  if (count == 0) {
    if (!b.add) zero(a, b.dhead);
    return;
  }
  HeadChunks<T> chunks(a, b.hidden, b.head, b.target, index.as<int32_t>(), count, b.chunk_bytes);
  chunks.for_each([&](int64_t first) {
    const auto rows = chunks.rows();
    using Rows = decltype(chunks.rows());
    float* dhead = b.dhead.as<float>();
    const bool add = b.add || first > 0;
    if (b.dentropy.present()) {
      chunks.template summarise_rows<true>();
      launch(a, warp_each(rows.live), slopes_with_entropy<Rows>, rows, b.dlogp.as<float>(), b.dentropy.as<float>());
      chunks.template differentiate_rows<true>(b.dhidden, dhead, add);
    } else {
      launch(a, {static_cast<unsigned>(ceil_div(rows.live, kRowThreads)), kRowThreads}, slopes_from_lse<Rows>, rows,
             b.dlogp.as<float>(), b.lse.as<float>());
      chunks.template differentiate_rows<false>(b.dhidden, dhead, add);
    }
  });
}

void backward_of_dtype(const Args& a, const Backward& b) {
  with_f32_or_bf16("linear_logprob_backward", b.hidden.dtype, [&]<typename T>(T) { backward<T>(a, b); });
}

CARAVAN_KERNEL(linear_logprob_backward, cuda,
               "dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> "
               "dhidden[N,D] dhead[V,D]:f32 | chunk_bytes targets") {
  backward_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.in[3], a.in[4], a.in[5], a.out[0], a.out[1],
                        static_cast<int64_t>(a.attrs[0]), false});
}

CARAVAN_KERNEL(linear_logprob_backward_add, cuda,
               "dhead[V,D]:f32! dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> "
               "dhidden[N,D] | chunk_bytes targets") {
  backward_of_dtype(a, {a.in[1], a.in[2], a.in[3], a.in[4], a.in[5], a.in[6], a.out[0], a.in[0],
                        static_cast<int64_t>(a.attrs[0]), true});
}

CARAVAN_KERNEL(linear_logprob_backward_frozen, cuda,
               "dlogp[N]:f32 dentropy[N]:f32? hidden[N,D] head[V,D] target[N]:i32 lse[N]:f32 -> dhidden[N,D] | "
               "chunk_bytes targets") {
  const View no_dhead;
  backward_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.in[3], a.in[4], a.in[5], a.out[0], no_dhead,
                        static_cast<int64_t>(a.attrs[0]), false});
}

}  // namespace
}  // namespace caravan::cuda
