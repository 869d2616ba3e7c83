// cross_entropy: loss and gradients in one pass, as cross_entropy.cc, in the chunks of linear_logprob_chunks.h. Every
// row has coefficient 1, so with tiles of whole rows nothing is computed twice: 6 N D V flops. The loss is summed in
// f64 over the rows with a target, in a tree that their number fixes.
#include "core/scratch.h"
#include "kernels/dispatch.h"
#include "kernels/linear_logprob_chunks.h"

namespace caravan::cuda {
namespace {

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

/** dlogits = p (1 + 2 z_loss lse) - [v = target]. `terms`: of the loss, for the rows of the chunk. */
template <typename Rows>
__global__ void __launch_bounds__(kRowThreads) finish_losses(Rows rows, float z_loss, float* nll, double* terms) {
  const int64_t r = own_row();
  if (r >= rows.live) return;
  const RowSummary summary = merged<false>(rows.summaries + r * rows.parts, rows.parts);
  if (threadIdx.x % kWarp != 0) return;
  if (rows.index[r] < 0) {
    rows.gradients[r] = {};
    terms[r] = 0;
    return;
  }
  const float lse = summary.log_sum_exp();
  const float own = logf(summary.sum) - (rows.target_logit[r] - summary.max);
  rows.gradients[r] = {summary.max, 1.0f / summary.sum, -(1.0f + 2.0f * z_loss * lse), -1.0f, 0.0f, 0.0f};
  nll[rows.index[r]] = own;
  terms[r] = own + static_cast<double>(z_loss) * lse * lse;
}

constexpr int kSumThreads = 512;

__global__ void __launch_bounds__(kSumThreads) sum_terms(const double* terms, int64_t count, float* loss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += terms[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

template <typename T>
void cross_entropy(const Args& a, const Loss& op) {
  Scratch index(a.device, op.target.bytes());
  const int64_t V = op.head.shape[0];
  const int64_t count = supervised_rows(a, "cross_entropy", op.target, V, targets_of(a, 2), index.as<int32_t>());
  if (count < op.target.shape[0]) {
    zero(a, op.nll);
    zero(a, op.dhidden);
  }
  if (count == 0) {
    zero(a, op.loss);
    if (!op.add) zero(a, op.dhead);
    return;
  }
  Scratch terms(a.device, static_cast<size_t>(count) * sizeof(double));
  HeadChunks<T> chunks(a, op.hidden, op.head, op.target, index.as<int32_t>(), count, op.chunk_bytes);
  chunks.for_each([&](int64_t first) {
    chunks.template summarise_rows<false>();
    const auto rows = chunks.rows();
    launch(a, warp_each(rows.live), finish_losses<decltype(chunks.rows())>, rows, op.z_loss, op.nll.as<float>(),
           terms.as<double>() + first);
    chunks.template differentiate_rows<false>(op.dhidden, op.dhead.as<float>(), op.add || first > 0);
  });
  launch(a, {1, kSumThreads}, sum_terms, terms.as<double>(), count, op.loss.as<float>());
}

void cross_entropy_of_dtype(const Args& a, const Loss& op) {
  with_f32_or_bf16("cross_entropy", op.hidden.dtype, [&]<typename T>(T) { cross_entropy<T>(a, op); });
}

CARAVAN_KERNEL(cross_entropy, cuda,
               "hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] dhead[V,D]:f32 | "
               "z_loss chunk_bytes targets") {
  cross_entropy_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.out[0], a.out[1], a.out[2], a.out[3],
                             static_cast<float>(a.attrs[0]), static_cast<int64_t>(a.attrs[1]), false});
}

CARAVAN_KERNEL(cross_entropy_add, cuda,
               "dhead[V,D]:f32! hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] | "
               "z_loss chunk_bytes targets") {
  cross_entropy_of_dtype(a, {a.in[1], a.in[2], a.in[3], a.out[0], a.out[1], a.out[2], a.in[0],
                             static_cast<float>(a.attrs[0]), static_cast<int64_t>(a.attrs[1]), true});
}

CARAVAN_KERNEL(
    cross_entropy_frozen, cuda,
    "hidden[N,D] head[V,D] target[N]:i32 -> loss[1]:f32 nll[N]:f32 dhidden[N,D] | z_loss chunk_bytes targets") {
  const View no_dhead;
  cross_entropy_of_dtype(a, {a.in[0], a.in[1], a.in[2], a.out[0], a.out[1], a.out[2], no_dhead,
                             static_cast<float>(a.attrs[0]), static_cast<int64_t>(a.attrs[1]), false});
}

}  // namespace
}  // namespace caravan::cuda
