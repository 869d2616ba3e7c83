// One token a row from softmax(hidden head^T) after the filters of decoding, and its log-probability without them.
//   logits = hidden head^T;  logp = log softmax(logits)[token]: bit for bit that of linear_logprob for the same row
//   z = repetition penalty(logits);  w = e^((z - max z) / temperature), 0 for what top-k, top-p and min-p remove
//   token ~ w / sum w (temperature 0: the largest z, lowest id on a tie);  drawn_logp = log(w[token] / sum w)
// Filters run in the order of transformers' processors and agree with them on ties at the k-th value, which all stay;
// among ties at the edge of top-p the lowest ids stay. Thresholds come from a radix descent over the bits of the float,
// three sweeps instead of a sort. The random number of a row depends on its key (seed, sample, position) alone and sums
// have a fixed order, so a token depends on nothing but its own row.
//
// The product is that of linear_logprob, in f32 also for bf16 weights, by chunks of whole rows of at most 32 MiB. Cost:
// the head is read once a chunk; two to four sweeps over a row of logits in cache.
#include <math.h>

#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "kernels/dispatch.h"
#include "kernels/linear_logprob_rows.h"
#include "kernels/philox.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace sample_file {

using namespace linear_logprob_detail;

constexpr int64_t kChunkBytes = int64_t{32} << 20;
constexpr float kMinusInfinity = -__builtin_inff();
/** Upper word of the stream that a sample draws from: no other stream of a seed has it. */
constexpr uint64_t kStreamFamily = 0x73;

struct Settings {
  double temperature, top_k, top_p, min_p, penalty;
};

Settings settings_of(const View& settings, int64_t row) {
  const double* s = settings.as<double>() + row * 5;
  const Settings read = {s[0], s[1], s[2], s[3], s[4]};
  const bool sound = read.temperature >= 0 && read.top_k >= 0 && read.top_p > 0 && read.top_p <= 1 && read.min_p >= 0 &&
                     read.min_p <= 1 && read.penalty > 0;
  if (!sound) {
    fail("ERR_DATA",
         "sample: settings[%lld] = (%g, %g, %g, %g, %g) must be temperature >= 0, top_k >= 0 (0: off), 0 < top_p <= 1, "
         "0 <= min_p <= 1, repetition penalty > 0",
         static_cast<long long>(row), s[0], s[1], s[2], s[3], s[4]);
  }
  return read;
}

/** Tokens [begin, end) of `previous` that row `row` has seen. */
struct Seen {
  const int32_t* ids;
  int64_t count;
};

Seen seen_by(const Args& a, int64_t row, int64_t vocabulary) {
  const View &previous = a.in[4], &ends = a.in[5];
  if (!previous.present() || !ends.present()) return {nullptr, 0};
  const int64_t begin = row == 0 ? 0 : ends.as<int32_t>()[row - 1], end = ends.as<int32_t>()[row];
  if (begin < 0 || end < begin || end > previous.shape[0]) {
    fail("ERR_SHAPE", "sample: previous_ends[%lld] = %lld must be from %lld to M=%lld", static_cast<long long>(row),
         static_cast<long long>(end), static_cast<long long>(begin), static_cast<long long>(previous.shape[0]));
  }
  for (int64_t i = begin; i < end; i++) {
    const int32_t id = previous.as<int32_t>()[i];
    if (id >= 0 && id < vocabulary) continue;
    fail("ERR_DATA", "sample: previous[%lld] must be a token below V=%lld; got %d", static_cast<long long>(i),
         static_cast<long long>(vocabulary), id);
  }
  return {previous.as<int32_t>() + begin, end - begin};
}

/** A uniform number in [0, 1) with 53 bits. */
double uniform(const int32_t* key) {
  const uint64_t low = static_cast<uint32_t>(key[0]), high = static_cast<uint32_t>(key[1]);
  const uint64_t stream = kStreamFamily << 32 | static_cast<uint32_t>(key[2]);
  uint32_t block[4];
  philox({high << 32 | low, stream}, static_cast<uint32_t>(key[3]), block);
  return (static_cast<double>(block[0] >> 5) * 67108864.0 + static_cast<double>(block[1] >> 6)) * 0x1p-53;
}

/** Bits of a float in the order of its value. */
uint32_t ordered_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// ---- where a filter cuts --------------------------------------------------------------------------------------------

constexpr int kDigitBits = 11;
constexpr int64_t kBuckets = int64_t{1} << kDigitBits;

struct Cut {
  uint32_t key;  // the smallest that stays
  double below;  // weight of all smaller keys
};

/** Going up the values: the first one with which the weight so far exceeds `limit`; the largest when none does.
 *  weight(i) is not negative; what weighs nothing does not exist. `mass` holds kBuckets numbers. */
template <typename Weight>
Cut first_above(const float* values, int64_t count, double limit, double* mass, const Weight& weight) {
  Cut cut = {0, 0};
  for (int shift = 32 - kDigitBits, digit = kDigitBits; digit > 0;) {
    __builtin_memset(mass, 0, static_cast<size_t>(kBuckets) * sizeof(double));
    const uint32_t decided = shift + digit == 32 ? 0 : ~uint32_t{0} << (shift + digit);
    for (int64_t i = 0; i < count; i++) {
      const uint32_t bits = ordered_bits(values[i]);
      if ((bits & decided) == cut.key) mass[bits >> shift & ((1u << digit) - 1)] += weight(i);
    }
    uint32_t chosen = 0;
    double before = cut.below;
    for (uint32_t b = 0; b < uint32_t{1} << digit; b++) {
      if (mass[b] <= 0) continue;
      chosen = b;
      cut.below = before;
      before += mass[b];
      if (before > limit) break;
    }
    cut.key |= chosen << shift;
    digit = shift < kDigitBits ? shift : kDigitBits;
    shift -= digit;
  }
  return cut;
}

/** Keeps the k largest z and all that equal the k-th. */
void keep_top_k(const float* z, float* weights, int64_t count, double k, double* mass) {
  const Cut cut = first_above(z, count, static_cast<double>(count) - k, mass, [](int64_t) { return 1.0; });
  for (int64_t i = 0; i < count; i++) {
    if (ordered_bits(z[i]) < cut.key) weights[i] = 0.0f;
  }
}

/** Removes, from the smallest up, what together has at most 1 - p of the weight. */
void keep_top_p(float* weights, int64_t count, double p, double* mass) {
  double total = 0;
  for (int64_t i = 0; i < count; i++) total += weights[i];
  const double limit = (1 - p) * total;
  const Cut cut = first_above(weights, count, limit, mass, [&](int64_t i) { return weights[i]; });
  int64_t ties = 0;
  float value = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t bits = ordered_bits(weights[i]);
    if (bits == cut.key) {
      value = weights[i];
      ties++;
    }
    if (bits < cut.key) weights[i] = 0.0f;
  }
  const int64_t fitting = value > 0 ? static_cast<int64_t>((limit - cut.below) / value) : 0;
  int64_t kept = ties - larger(0, smaller(fitting, ties - 1));
  for (int64_t i = 0; i < count; i++) {
    if (ordered_bits(weights[i]) == cut.key && kept-- <= 0) weights[i] = 0.0f;
  }
}

void keep_min_p(float* weights, int64_t count, double p) {
  for (int64_t i = 0; i < count; i++) {
    if (weights[i] < p) weights[i] = 0.0f;
  }
}

// ---- one row --------------------------------------------------------------------------------------------------------

struct Drawn {
  int64_t token;
  double total;  // 0: there is no distribution to draw from
};

float largest(const float* z, int64_t count) {
  F32 top = set1(kMinusInfinity);
  for_lanes(
      count, [&](int64_t i) { top = max(load(z + i), top); },
      [&](int64_t i, int n) { top = max(load_logits(z + i, n), top); });
  return reduce_max(top);
}

/** The first that equals `value`, which is among them. */
int64_t index_of(const float* z, int64_t count, float value) {
  int64_t i = 0;
  while (i + 1 < count && z[i] != value) i++;
  return i;
}

/** part_sums[p] = sum of value(i) over the vectors of part p, value(i) being what is stored at `weights`. */
template <typename Value>
void sum_parts(int64_t count, double* part_sums, const Value& value) {
  for (int64_t begin = 0; begin < count; begin += kPartColumns) {
    F32 sum = zero();
    for_lanes(
        smaller(kPartColumns, count - begin), [&](int64_t i) { sum = sum + value(begin + i, F32::kLanes); },
        [&](int64_t i, int n) { sum = sum + value(begin + i, n); });
    *part_sums++ = static_cast<double>(reduce_sum(sum));
  }
}

/** weights = e^((z - peak) / temperature), and their sums by parts. */
void weigh(const float* z, int64_t count, float peak, double temperature, float* weights, double* part_sums) {
  const F32 shift = set1(peak), divisor = set1(static_cast<float>(temperature));
  const bool divides = static_cast<float>(temperature) != 1.0f;
  sum_parts(count, part_sums, [&](int64_t i, int n) {
    const bool whole = n == F32::kLanes;
    F32 x = (whole ? load(z + i) : load_logits(z + i, n)) - shift;
    if (divides) x = x / divisor;
    const F32 weight = exp_bounded(x);
    if (whole) {
      store(weights + i, weight);
    } else {
      store_first(weights + i, weight, n);
    }
    return weight;
  });
}

/** The first token whose cumulated weight exceeds u times the total. */
Drawn draw(const float* weights, int64_t count, const double* part_sums, double u) {
  double total = 0;
  for (int64_t part = 0; part * kPartColumns < count; part++) total += part_sums[part];
  const double wanted = u * total;
  double so_far = 0;
  int64_t token = 0;
  for (int64_t begin = 0; begin < count; begin += kPartColumns) {
    const int64_t end = smaller(count, begin + kPartColumns);
    const double part = part_sums[begin / kPartColumns];
    if (part <= 0) continue;
    double inside = so_far;
    so_far += part;
    // Rounding may leave the wanted number beyond the last one: then the last token with a weight is it.
    if (so_far <= wanted && end < count) continue;
    for (int64_t i = begin; i < end; i++) {
      if (weights[i] <= 0) continue;
      token = i;
      inside += weights[i];
      if (inside > wanted) break;
    }
    return {token, total};
  }
  for (int64_t i = count - 1; i > 0 && token == 0; i--) {
    if (weights[i] > 0) token = i;
  }
  return {token, total};
}

/** The memory of one thread. */
struct Workspace {
  float* z;           // [V]
  float* weights;     // [V]
  double* mass;       // [kBuckets]
  double* part_sums;  // one for kPartColumns weights
};

void penalise(float* z, const float* logits, const Seen& seen, double penalty) {
  const float factor = static_cast<float>(penalty);
  for (int64_t i = 0; i < seen.count; i++) {
    const int32_t id = seen.ids[i];
    z[id] = logits[id] < 0 ? logits[id] * factor : logits[id] / factor;
  }
}

/** `peak` is the largest logit. */
Drawn choose(const float* logits, float peak, int64_t V, const Settings& s, const Seen& seen, const int32_t* key,
             const Workspace& w) {
  const float* z = logits;
  if (s.penalty != 1 && seen.count > 0) {
    __builtin_memcpy(w.z, logits, static_cast<size_t>(V) * sizeof(float));
    penalise(w.z, logits, seen, s.penalty);
    z = w.z;
    peak = largest(z, V);
  }
  if (s.temperature == 0) {
    const int64_t best = index_of(z, V, peak);
    __builtin_memset(w.weights, 0, static_cast<size_t>(V) * sizeof(float));
    w.weights[best] = 1.0f;
    return {best, 1.0};
  }
  weigh(z, V, peak, s.temperature, w.weights, w.part_sums);
  const bool top_k = s.top_k >= 1 && s.top_k < static_cast<double>(V);
  if (top_k) keep_top_k(z, w.weights, V, s.top_k, w.mass);
  if (s.top_p < 1) keep_top_p(w.weights, V, s.top_p, w.mass);
  if (s.min_p > 0) keep_min_p(w.weights, V, s.min_p);
  if (top_k || s.top_p < 1 || s.min_p > 0) {
    sum_parts(V, w.part_sums,
              [&](int64_t i, int n) { return n == F32::kLanes ? load(w.weights + i) : load_first(w.weights + i, n); });
  }
  return draw(w.weights, V, w.part_sums, uniform(key));
}

void run_row(const Args& a, int64_t row, float* logits, const Workspace& w) {
  const int64_t V = a.in[1].shape[0];
  const RowSummary summary = summarise<false, false>({}, true, logits, V, nullptr);
  int32_t* token = a.out[0].as<int32_t>() + row;
  float* logp = a.out[1].as<float>() + row;
  float* drawn_logp = a.out[2].as<float>() + row;
  float* probabilities = a.out[3].present() ? a.out[3].as<float>() + row * V : nullptr;
  if (!(summary.sum > 0)) {  // NaN: a logit is NaN or +inf, or all are -inf
    *token = 0;
    *logp = *drawn_logp = __builtin_nanf("");
    for (int64_t i = 0; probabilities != nullptr && i < V; i++) probabilities[i] = __builtin_nanf("");
    return;
  }
  const Drawn drawn =
      choose(logits, summary.max, V, settings_of(a.in[2], row), seen_by(a, row, V), a.in[3].as<int32_t>() + row * 4, w);
  *token = static_cast<int32_t>(drawn.token);
  *logp = (logits[drawn.token] - summary.max) - logf(summary.sum);
  *drawn_logp = static_cast<float>(::log(static_cast<double>(w.weights[drawn.token]) / drawn.total));
  for (int64_t i = 0; probabilities != nullptr && i < V; i++) {
    probabilities[i] = static_cast<float>(static_cast<double>(w.weights[i]) / drawn.total);
  }
}

/** Bad settings are reported before any row is computed: a task of the pool may not throw. */
void check_rows(const Args& a) {
  for (int64_t row = 0; row < a.in[0].shape[0]; row++) {
    settings_of(a.in[2], row);
    seen_by(a, row, a.in[1].shape[0]);
  }
}

template <typename T>
void sample(const Args& a) {
  const View &hidden = a.in[0], &head = a.in[1];
  const int64_t N = hidden.shape[0], D = hidden.shape[1], V = head.shape[0];
  if (N == 0) return;
  if (V == 0) fail("ERR_SHAPE", "sample: head[V,D] has no rows, so there is no token to draw");
  check_rows(a);
  ThreadPool& pool = pool_of(a);
  const int64_t stride = tile_stride(V);
  const int64_t most_rows = larger(1, smaller(N, kChunkBytes / 4 / stride));
  Scratch tile_memory(a.device, static_cast<size_t>(most_rows * stride) * sizeof(float));
  Scratch row_memory(a.device, static_cast<size_t>(pool.threads() * 2 * stride) * sizeof(float));
  const int64_t doubles = kBuckets + ceil_div(V, kPartColumns);
  Scratch sums_memory(a.device, static_cast<size_t>(pool.threads() * doubles) * sizeof(double));
  float* tile = tile_memory.as<float>();
  for (int64_t row = 0; row < N; row += most_rows) {
    const int64_t rows = smaller(most_rows, N - row);
    logits_product(hidden.as<T>() + row * D, head.as<T>(), rows, V, D, tile, stride, a);
    parallel_for(pool, rows, [&](int64_t r, int worker) {
      float* own = row_memory.as<float>() + worker * 2 * stride;
      double* sums = sums_memory.as<double>() + worker * doubles;
      run_row(a, row + r, tile + r * stride, {own, own + stride, sums, sums + kBuckets});
    });
  }
}

CARAVAN_KERNEL(sample, cpu,
               "hidden[N,D] head[V,D] settings[N,5]:f64 keys[N,4]:i32 previous[M]:i32? previous_ends[N]:i32? -> "
               "token[N]:i32 logp[N]:f32 drawn_logp[N]:f32 probs[N,V]:f32? | with_probs") {
  with_f32_or_bf16("sample", a.in[0].dtype, [&](auto type) { sample<decltype(type)>(a); });
}

}  // namespace sample_file
}  // namespace
}  // namespace caravan::CARAVAN_ISA
