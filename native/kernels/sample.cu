// sample: one token a row from softmax(hidden head^T) after the filters of decoding, as sample.cc: the same random
// numbers, the same order of filters, the same choice up to rounding; logp is bit for bit that of linear_logprob.
//
// The product writes f32 logits in chunks of whole rows (256 MiB), a warp a part summarises them for logp, and one
// block a row draws. Nothing is sorted and no weights are stored: a weight is a function of its logit and of the
// thresholds that the filters found, so every sweep reads 4 bytes a logit. Temperature 1 takes none: the sums of the
// parts are known, and the part that the random number falls into is walked through. Any other temperature takes one
// (the sums), a repetition penalty one more (the maximum), top-k and top-p two or three each: a radix descent over the
// bits of the float, 2048 buckets a step, whose last step needs the row no more once few enough keys are left. Weights
// are added in fixed point there, where the order of atomic additions does not show. Beyond the maximum and these
// integers every sum is over one part, or over parts in order: a row's token does not depend on what runs beside it.
#include "core/scratch.h"
#include "kernels/dispatch.h"
#include "kernels/logits_summary.h"
#include "kernels/philox.h"
#include "kernels/sample_cut.h"

namespace caravan::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{256} << 20;
/** Upper word of the stream that a sample draws from: no other stream of a seed has it. */
constexpr uint64_t kStreamFamily = 0x73;
constexpr int kSettings = 5;

struct Settings {
  double temperature, top_k, top_p, min_p, penalty;
};

constexpr Rule kSettingsRule = {
    "settings", "temperature >= 0, top_k >= 0 (0: off), 0 < top_p <= 1, 0 <= min_p <= 1, repetition penalty > 0"};

/** The settings of a row; those of plain sampling, with a note, when they are out of range. */
__device__ Settings settings_of(const double* settings, int64_t row, const FaultReport& faults, const Rule& rule) {
  const double* s = settings + row * kSettings;
  const Settings read = {s[0], s[1], s[2], s[3], s[4]};
  const bool sound = read.temperature >= 0 && read.top_k >= 0 && read.top_p > 0 && read.top_p <= 1 && read.min_p >= 0 &&
                     read.min_p <= 1 && read.penalty > 0;
  if (sound) return read;
  if (threadIdx.x == 0) faults.note_broken(rule, row, s, kSettings);
  return {1, 0, 1, 0, 1};
}

/** Tokens that rows have seen: those of row n end at ends[n]. */
struct Previous {
  const int32_t* ids;   // [M], or null
  const int32_t* ends;  // [N]
  int64_t M;
  float* logits;  // [M]: their logits before the penalty
};

struct Seen {
  int64_t begin, count;
};

__device__ Seen seen_by(const Previous& previous, int64_t row, const FaultReport& faults) {
  if (previous.ids == nullptr) return {0, 0};
  const int64_t begin = row == 0 ? 0 : previous.ends[row - 1], end = previous.ends[row];
  if (begin >= 0 && begin <= end && end <= previous.M) return {begin, end - begin};
  if (threadIdx.x == 0) faults.note(FaultKind::kSegment, row, end, previous.M);
  return {0, 0};
}

/** A uniform number in [0, 1) with 53 bits. */
__device__ double uniform(const int32_t* key) {
  const uint64_t low = static_cast<uint32_t>(key[0]), high = static_cast<uint32_t>(key[1]);
  const uint64_t stream = kStreamFamily << 32 | static_cast<uint32_t>(key[2]);
  uint32_t block[4];
  philox({high << 32 | low, stream}, static_cast<uint32_t>(key[3]), block);
  return (static_cast<double>(block[0] >> 5) * 67108864.0 + static_cast<double>(block[1] >> 6)) * 0x1p-53;
}

struct Inputs {
  const RowSummary* summaries;  // of the chunk's rows, by parts
  const double* settings;
  const int32_t* keys;
  Previous previous;
  Rule rule;
};

struct Results {
  int32_t* token;
  float *logp, *drawn_logp;
  float* probs;  // [N,V] or null
};

/** Seen logits are kept aside, then penalised, so that a repeated token is penalised once. */
__device__ void penalise(float* z, int V, const Previous& previous, const Seen& seen, double penalty,
                         const FaultReport& faults) {
  const float factor = static_cast<float>(penalty);
  for (int64_t i = threadIdx.x; i < seen.count; i += blockDim.x) {
    const int64_t at = seen.begin + i;
    previous.logits[at] = z[faults.checked_index(at, previous.ids[at], V)];
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < seen.count; i += blockDim.x) {
    const int32_t id = previous.ids[seen.begin + i];
    const float logit = previous.logits[seen.begin + i];
    if (id >= 0 && id < V) z[id] = logit < 0 ? logit * factor : logit / factor;
  }
  __syncthreads();
}

/** The logit of `token` before the penalty. Every thread gets it. */
__device__ float own_logit(const float* z, int token, const Previous& previous, const Seen& seen) {
  __shared__ float logit;
  if (threadIdx.x == 0) logit = z[token];
  __syncthreads();
  for (int64_t i = threadIdx.x; i < seen.count; i += blockDim.x) {
    // Repeats hold the same number.
    if (previous.ids[seen.begin + i] == token) logit = previous.logits[seen.begin + i];
  }
  __syncthreads();
  return logit;
}

/** What the filters leave of the distribution of a row. */
__device__ Filter filter_of(const RowOfLogits& row, float peak, const Settings& s) {
  Filter filter = {peak, static_cast<float>(s.temperature), s.min_p, 0, 0, row.count};
  if (s.temperature == 0) return filter;
  if (s.top_k >= 1 && s.top_k < row.count) {
    const uint64_t limit = static_cast<uint64_t>(row.count - s.top_k);
    const auto key = [](float z) { return ordered_bits(z); };
    const auto one = [](uint32_t) { return uint64_t{1}; };
    filter.least_logit = first_above(row, key, one, [=](uint64_t) { return limit; }).key;
  }
  if (s.top_p < 1) {
    Filter by_k = filter;
    by_k.min_p = 0;
    const auto weight = [=](float z) { return by_k.weight(z, 0); };
    const auto mass = [](uint32_t bits) { return fixed_point(__uint_as_float(bits & 0x7fffffffu)); };
    const auto limit = [=](uint64_t total) {
      return static_cast<uint64_t>((1 - s.top_p) * static_cast<double>(total));
    };
    const Cut cut = first_above(row, [=](float z) { return ordered_bits(weight(z)); }, mass, limit);
    filter.least_weight = cut.key;
    // Of the ties at the edge as many go as fit; the lowest ids stay, at least one.
    const uint64_t each = mass(cut.key);
    const uint64_t ties = each > 0 ? cut.mass / each : 1;
    const uint64_t fitting = each > 0 && cut.limit > cut.below ? (cut.limit - cut.below) / each : 0;
    const uint64_t kept = fitting < ties ? ties - fitting : 1;
    if (kept < ties) {
      const auto is_tie = [=](float z, int) { return ordered_bits(weight(z)) == cut.key ? 1.0f : 0.0f; };
      sum_parts(row, is_tie);
      filter.last_tie = pick(row, is_tie, [=](double) { return static_cast<double>(kept - 1); }).index;
    }
  }
  return filter;
}

/** Draws for one row: its token, and the sum of the weights. `summaries`: of its parts, where the weights are those of
 *  the softmax itself, whose sums are known then; else null. */
__device__ Picked draw(const RowOfLogits& row, const Filter& filter, const Settings& s, const int32_t* key,
                       const RowSummary* summaries) {
  if (s.temperature == 0) return {index_of(row, filter.peak), 1.0};
  const auto weight = [&](float z, int v) { return filter.weight(z, v); };
  if (summaries == nullptr) {
    sum_parts(row, weight);
  } else {
    for (int part = threadIdx.x; part * kPartColumns < row.count; part += blockDim.x) {
      row.part_sums[part] = summaries[part].sum * expf(summaries[part].max - filter.peak);
    }
    __syncthreads();
  }
  const double u = uniform(key);
  return pick(row, weight, [=](double total) { return u * total; });
}

__device__ void put_nan(const Results& results, int64_t n, int V) {
  const float nan = __uint_as_float(0x7fc00000u);
  if (threadIdx.x == 0) {
    results.token[n] = 0;
    results.logp[n] = results.drawn_logp[n] = nan;
  }
  for (int v = threadIdx.x; results.probs != nullptr && v < V; v += blockDim.x) results.probs[n * V + v] = nan;
}

constexpr int kMostThreads = 1024;

/** One block a row of the chunk, which starts at row `first`. */
__global__ void __launch_bounds__(kMostThreads)
    draw_rows(LogitsTile tile, int64_t first, Inputs in, Results results, FaultReport faults) {
  CARAVAN_SHARED(double, part_sums);
  const int64_t n = first + blockIdx.x;
  const int V = static_cast<int>(tile.columns);
  float* z = tile.data + int64_t{blockIdx.x} * tile.stride;
  const int parts = static_cast<int>((V + kPartColumns - 1) / kPartColumns);
  const RowSummary* summaries = in.summaries + int64_t{blockIdx.x} * parts;
  const RowSummary summary = merged<false>(summaries, parts);  // by every warp
  const Settings settings = settings_of(in.settings, n, faults, in.rule);
  Seen seen = seen_by(in.previous, n, faults);
  if (settings.penalty == 1) seen.count = 0;
  if (!(summary.sum > 0)) {  // NaN: a logit is NaN or +inf, or all are -inf
    put_nan(results, n, V);
    return;  // the whole block: every thread has the same summary
  }
  const RowOfLogits row = {z, V, part_sums};
  float peak = summary.max;
  if (seen.count > 0) {
    penalise(z, V, in.previous, seen, settings.penalty, faults);
    peak = largest(row);
  }
  const Filter filter = filter_of(row, peak, settings);
  const bool plain = settings.temperature == 1 && filter.keeps_all() && seen.count == 0;
  const Picked drawn = draw(row, filter, settings, in.keys + n * 4, plain ? summaries : nullptr);
  const auto weight = [&](float logit, int v) {
    if (settings.temperature == 0) return v == drawn.index ? 1.0f : 0.0f;
    return filter.weight(logit, v);
  };
  const float logit = own_logit(z, drawn.index, in.previous, seen);
  if (threadIdx.x == 0) {
    results.token[n] = drawn.index;
    results.logp[n] = (logit - summary.max) - logf(summary.sum);
    results.drawn_logp[n] = static_cast<float>(::log(weight(z[drawn.index], drawn.index) / drawn.total));
  }
  for (int v = threadIdx.x; results.probs != nullptr && v < V; v += blockDim.x) {
    results.probs[n * V + v] = static_cast<float>(weight(z[v], v) / drawn.total);
  }
}

template <typename T>
void sample(const Args& a) {
  const View &hidden = a.in[0], &head = a.in[1], &previous = a.in[4];
  const int64_t N = hidden.shape[0], D = hidden.shape[1], V = head.shape[0];
  if (N == 0) return;
  if (V == 0 || V > kMostTokens) {
    fail("ERR_SHAPE", "sample: head[V,D] must have 1 to %lld rows on CUDA; got V=%lld",
         static_cast<long long>(kMostTokens), static_cast<long long>(V));
  }
  const int64_t stride = logits_stride(V), parts = logits_parts(V);
  const int64_t fitting = kChunkBytes / 4 / stride;
  const int64_t most_rows = fitting < 1 ? 1 : fitting < N ? fitting : N;
  Scratch tile_memory(a.device, static_cast<size_t>(most_rows * stride) * sizeof(float));
  Scratch summary_memory(a.device, static_cast<size_t>(most_rows * parts) * sizeof(RowSummary));
  const bool sees = previous.present() && a.in[5].present();
  const int64_t M = sees ? previous.shape[0] : 0;
  Scratch kept_memory(a.device, static_cast<size_t>(M) * sizeof(float));
  const Previous seen = {sees ? previous.as<int32_t>() : nullptr, a.in[5].as<int32_t>(), M, kept_memory.as<float>()};
  const Inputs in = {summary_memory.as<RowSummary>(), a.in[2].as<double>(), a.in[3].as<int32_t>(), seen, kSettingsRule};
  const Results results = {a.out[0].as<int32_t>(), a.out[1].as<float>(), a.out[2].as<float>(),
                           a.out[3].present() ? a.out[3].as<float>() : nullptr};
  for (int64_t row = 0; row < N; row += most_rows) {
    const int64_t rows = N - row < most_rows ? N - row : most_rows;
    const LogitsTile tile = {tile_memory.as<float>(), stride, rows, 0, V};
    logits_product(a, hidden.as<T>() + row * D, head.as<T>(), D, tile);
    summarise<false>(a, tile, parts, {nullptr, nullptr}, summary_memory.as<RowSummary>());
    // What is drawn does not depend on the size of a block: small vocabularies do not fill a large one, and more rows
    // than multiprocessors run two at a time on each.
    const unsigned large = rows > multiprocessors(a) ? kMostThreads / 2 : kMostThreads;
    const unsigned threads = parts == 1 ? kWarp : parts < 8 ? kMostThreads / 8 : large;
    launch(a, {static_cast<unsigned>(rows), threads, static_cast<size_t>(parts) * sizeof(double)}, draw_rows, tile, row,
           in, results, fault_report(a, "sample"));
  }
}

CARAVAN_KERNEL(sample, cuda,
               "hidden[N,D] head[V,D] settings[N,5]:f64 keys[N,4]:i32 previous[M]:i32? previous_ends[N]:i32? -> "
               "token[N]:i32 logp[N]:f32 drawn_logp[N]:f32 probs[N,V]:f32? | with_probs") {
  with_f32_or_bf16("sample", a.in[0].dtype, [&]<typename T>(T) { sample<T>(a); });
}

}  // namespace
}  // namespace caravan::cuda
