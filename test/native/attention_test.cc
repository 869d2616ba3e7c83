// attention and attention_backward against f64 loops over the definition, and the promises about bits: a query alone,
// in a chunk, in a batch and on any number of threads gives the same o and lse; gradients do not depend on threads.
#include <algorithm>
#include <cinttypes>

#include "test/native/kernel_call.h"

namespace {

using caravan::CpuDevice;
using caravan::DType;
using check::Call;
using check::kBudgetBytes;
using check::Tensor;

struct Segment {
  int q_begin, q_end, k_begin, k_end;
};

struct Case {
  int64_t N, M, H, K, C;
  std::vector<Segment> segments;
  int window;
  double scale;
  DType dtype = DType::kF32;
  double spread = 1.0;  // of q and k
};

struct Inputs {
  Tensor q, k, v, d_o, segments;
};

struct Outputs {
  Tensor o, lse, dq, dk, dv;
};

Tensor segment_tensor(const std::vector<Segment>& rows) {
  std::vector<double> values;
  for (const Segment& s : rows)
    values.insert(values.end(), {1.0 * s.q_begin, 1.0 * s.q_end, 1.0 * s.k_begin, 1.0 * s.k_end});
  return Tensor::of(DType::kI32, {static_cast<int64_t>(rows.size()), 4}, values);
}

Tensor scaled(Tensor x, double factor) {
  for (int64_t i = 0; i < x.count(); i++) x.set(i, x.at(i) * factor);
  return x;
}

Inputs make_inputs(const Case& c) {
  return {scaled(Tensor::random(c.dtype, {c.N, c.H, c.C}, 1), c.spread),
          scaled(Tensor::random(c.dtype, {c.M, c.K, c.C}, 2), c.spread), Tensor::random(c.dtype, {c.M, c.K, c.C}, 3),
          Tensor::random(c.dtype, {c.N, c.H, c.C}, 4), segment_tensor(c.segments)};
}

Call forward_call(const Case& c, const Inputs& in) {
  return {"attention",
          {in.q, in.k, in.v, in.segments},
          {Tensor(c.dtype, {c.N, c.H, c.C}), Tensor(DType::kF32, {c.N, c.H})},
          {c.scale, static_cast<double>(c.window)}};
}

Call backward_call(const Case& c, const Inputs& in, const Tensor& o, const Tensor& lse) {
  return {"attention_backward",
          {in.d_o, in.q, in.k, in.v, o, lse, in.segments},
          {Tensor(c.dtype, {c.N, c.H, c.C}), Tensor(c.dtype, {c.M, c.K, c.C}), Tensor(c.dtype, {c.M, c.K, c.C})},
          {c.scale, static_cast<double>(c.window)}};
}

Outputs run_both(CpuDevice& device, const Case& c, const Inputs& in) {
  const Call forward = check::run(device, forward_call(c, in));
  const Call backward = check::run(device, backward_call(c, in, forward.out[0], forward.out[1]));
  return {forward.out[0], forward.out[1], backward.out[0], backward.out[1], backward.out[2]};
}

struct Reference {
  std::vector<double> o, lse, dq, dk, dv;
};

/** The definition, one query at a time, in f64. Gradients use the exact o, not the rounded one. */
Reference reference(const Case& c, const Inputs& in) {
  const auto q = in.q.values(), k = in.k.values(), v = in.v.values(), d_o = in.d_o.values();
  Reference r;
  r.o.assign(q.size(), 0);
  r.dq.assign(q.size(), 0);
  r.dk.assign(k.size(), 0);
  r.dv.assign(k.size(), 0);
  r.lse.assign(static_cast<size_t>(c.N * c.H), -INFINITY);
  const size_t C = static_cast<size_t>(c.C);
  for (const Segment& s : c.segments) {
    const int queries = s.q_end - s.q_begin, keys = s.k_end - s.k_begin;
    for (int i = 0; i < queries; i++) {
      for (int64_t h = 0; h < c.H; h++) {
        const size_t query = static_cast<size_t>((s.q_begin + i) * c.H + h);
        std::vector<size_t> rows;
        std::vector<double> p;
        double top = -INFINITY;
        for (int j = 0; j < keys; j++) {
          const int last = i + keys - queries;
          if (j > last || (c.window > 0 && j <= last - c.window)) continue;
          const size_t row = static_cast<size_t>((s.k_begin + j) * c.K + h / (c.H / c.K));
          double score = 0;
          for (size_t x = 0; x < C; x++) score += q[query * C + x] * k[row * C + x];
          rows.push_back(row);
          p.push_back(score * c.scale);
          top = std::max(top, p.back());
        }
        if (rows.empty()) continue;
        double sum = 0;
        for (double& x : p) sum += x = std::exp(x - top);
        r.lse[query] = top + std::log(sum);
        double delta = 0;
        std::vector<double> dp(p.size());
        for (size_t j = 0; j < p.size(); j++) {
          p[j] /= sum;
          for (size_t x = 0; x < C; x++) {
            r.o[query * C + x] += p[j] * v[rows[j] * C + x];
            dp[j] += d_o[query * C + x] * v[rows[j] * C + x];
            r.dv[rows[j] * C + x] += p[j] * d_o[query * C + x];
          }
          delta += p[j] * dp[j];
        }
        for (size_t j = 0; j < p.size(); j++) {
          const double ds = p[j] * (dp[j] - delta) * c.scale;
          for (size_t x = 0; x < C; x++) {
            r.dq[query * C + x] += ds * k[rows[j] * C + x];
            r.dk[rows[j] * C + x] += ds * q[query * C + x];
          }
        }
      }
    }
  }
  return r;
}

double largest(const std::vector<double>& x) {
  double top = 0;
  for (double value : x) top = std::isfinite(value) ? std::max(top, std::fabs(value)) : top;
  return top;
}

void compare(const char* what, const Case& c, const Tensor& got, const std::vector<double>& want, double relative) {
  const double tolerance = relative * (largest(want) + 1e-2);
  for (int64_t i = 0; i < got.count(); i++) {
    const double expected = want[static_cast<size_t>(i)];
    const bool ok = got.at(i) == expected || std::fabs(got.at(i) - expected) <= tolerance;
    CHECK_CASE(ok, "%s[%" PRId64 "] of H=%" PRId64 " K=%" PRId64 " C=%" PRId64 " window=%d is %.9g, expected %.9g",
               what, i, c.H, c.K, c.C, c.window, got.at(i), expected);
    if (!ok) return;
  }
}

void check_case(const std::string& isa, const Case& c) {
  CpuDevice device(2, kBudgetBytes, isa);
  const Inputs in = make_inputs(c);
  const Outputs out = run_both(device, c, in);
  const Reference want = reference(c, in);
  const bool half = c.dtype == DType::kBF16;
  compare("o", c, out.o, want.o, half ? 6e-3 : 4e-6 * c.spread);
  compare("lse", c, out.lse, want.lse, 2e-6);
  compare("dq", c, out.dq, want.dq, half ? 1.2e-2 : 2e-5 * c.spread);
  compare("dk", c, out.dk, want.dk, half ? 1.2e-2 : 2e-5 * c.spread);
  compare("dv", c, out.dv, want.dv, half ? 6e-3 : 1e-5 * c.spread);
  CHECK(device.allocator().live_bytes() == 0);

  for (int threads : {1, 3, 4}) {
    CpuDevice other(threads, kBudgetBytes, isa);
    const Outputs again = run_both(other, c, in);
    CHECK(again.o.same_bits(out.o) && again.lse.same_bits(out.lse));
    CHECK(again.dq.same_bits(out.dq) && again.dk.same_bits(out.dk) && again.dv.same_bits(out.dv));
  }
}

std::vector<Case> cases() {
  const double scale = 1 / std::sqrt(24.0);
  return {
      {130, 130, 4, 2, 32, {{0, 130, 0, 130}}, 0, 0.2},
      {70, 70, 6, 2, 24, {{0, 1, 0, 1}, {1, 9, 1, 9}, {9, 70, 9, 70}}, 0, scale},
      {90, 90, 3, 1, 17, {{0, 90, 0, 90}}, 0, 0.25},
      {150, 150, 2, 2, 64, {{0, 150, 0, 150}}, 40, 0.125},
      {150, 150, 2, 1, 8, {{0, 80, 0, 80}, {80, 150, 80, 150}}, 1, 0.3},
      {40, 200, 4, 1, 16, {{0, 1, 0, 70}, {1, 2, 70, 71}, {2, 34, 71, 200}}, 0, 0.25},   // decode, chunk, and a gap
      {40, 200, 4, 1, 16, {{0, 1, 0, 70}, {5, 6, 75, 75}, {6, 34, 80, 200}}, 50, 0.25},  // no keys; windowed chunk
      {20, 12, 2, 1, 16, {{2, 18, 0, 10}}, 0, 0.25},                                     // more queries than keys
      {33, 33, 1, 1, 1, {{0, 33, 0, 33}}, 0, 1.0},
      {300, 300, 9, 3, 20, {{0, 300, 0, 300}}, 0, 0.2},
      {10, 10, 2, 2, 8, {}, 0, 1.0},
      {0, 0, 2, 1, 8, {}, 0, 1.0},
      {5, 7, 2, 1, 8, {{0, 0, 0, 7}}, 0, 1.0},
      {100, 100, 4, 2, 32, {{0, 60, 0, 60}, {60, 100, 60, 100}}, 0, 0.2, DType::kBF16},
      {129, 129, 7, 1, 31, {{0, 129, 0, 129}}, 20, 0.2, DType::kBF16},
      {150, 153, 3, 3, 20, {{0, 150, 0, 153}}, 0, 0.2, DType::kBF16},  // the first row that sees a block is odd
      {150, 153, 3, 1, 33, {{0, 150, 0, 153}}, 37, 0.2, DType::kBF16},
      {100, 100, 2, 1, 16, {{0, 100, 0, 100}}, 0, 1.0, DType::kF32, 8.0},  // scores of some hundreds
  };
}

/** `x` with its first rows replaced: `pad` rows of its own, then the rows of `rows`. */
Tensor with_rows(Tensor x, int64_t pad, const Tensor& rows) {
  const int64_t first = pad * x.shape()[1] * x.shape()[2];
  for (int64_t i = 0; i < rows.count(); i++) x.set(first + i, rows.at(i));
  return x;
}

/** Each query of a prefill, in chunks of `chunk` queries against the keys so far, gives the bits of the whole. */
void check_chunks(const std::string& isa, DType dtype, int window, int chunk) {
  const int T = 200, H = 6, K = 2, C = 24;
  const int pad = 3;  // another sequence stands before it, and its keys lie elsewhere in a cache
  const Case whole{T, T, H, K, C, {{0, T, 0, T}}, window, 0.2, dtype};
  CpuDevice device(2, kBudgetBytes, isa);
  const Inputs in = make_inputs(whole);
  const Call all = check::run(device, forward_call(whole, in));
  for (int begin = 0; begin < T; begin += chunk) {
    const int count = std::min(chunk, T - begin), keys = begin + count;
    const Case part{count + pad, T + pad, H,    K, C, {{0, pad, 0, pad}, {pad, pad + count, pad, pad + keys}},
                    window,      0.2,     dtype};
    Inputs moved = make_inputs(part);
    moved.q = with_rows(moved.q, pad, in.q.rows(begin, begin + count));
    moved.k = with_rows(moved.k, pad, in.k);
    moved.v = with_rows(moved.v, pad, in.v);
    const Call some = check::run(device, forward_call(part, moved));
    for (size_t i = 0; i < 2; i++) {
      CHECK_CASE(some.out[i].rows(pad, pad + count).same_bits(all.out[i].rows(begin, begin + count)),
                 "%s: output %zu, queries from %d", isa.c_str(), i, begin);
    }
  }
}

/** One head of a long sequence: on one thread the schedule with five products, on eight the one with seven. */
void check_schedules(const std::string& isa) {
  const Case c{700, 700, 2, 1, 16, {{0, 700, 0, 700}}, 0, 0.25};
  const Inputs in = make_inputs(c);
  CpuDevice alone(1, kBudgetBytes, isa), crowd(8, kBudgetBytes, isa);
  const Outputs one = run_both(alone, c, in), many = run_both(crowd, c, in);
  CHECK(one.dq.same_bits(many.dq));
  CHECK(one.dk.same_bits(many.dk));
  CHECK(one.dv.same_bits(many.dv));
}

void check_extremes(const std::string& isa) {
  CpuDevice device(1, kBudgetBytes, isa);
  // Scores of +-1e4: the softmax picks the largest, nothing overflows.
  const Case c{4, 4, 1, 1, 8, {{0, 4, 0, 4}}, 0, 1.0};
  Inputs in = make_inputs(c);
  for (int64_t i = 0; i < 4; i++) {
    for (int64_t x = 0; x < 8; x++) {
      in.q.set(i * 8 + x, x == 0 ? 100.0 : 0.0);
      in.k.set(i * 8 + x, x == 0 ? (i == 1 ? 100.0 : -100.0) : 0.0);
    }
  }
  const Outputs out = run_both(device, c, in);
  CHECK(out.lse.at(0) == -10000.0);
  CHECK(out.lse.at(3) == 10000.0);
  for (int64_t x = 0; x < 8; x++) CHECK(out.o.at(3 * 8 + x) == in.v.at(8 + x));
  for (int64_t i = 0; i < out.dq.count(); i++) CHECK(std::isfinite(out.dq.at(i)) && std::isfinite(out.dk.at(i)));
  // NaN in a key reaches the queries that see it and no others, though its block is shared.
  in.k.set(2 * 8, NAN);
  in.v.set(2 * 8, INFINITY);
  const Outputs poisoned = run_both(device, c, in);
  CHECK(std::isnan(poisoned.o.at(3 * 8)) && std::isnan(poisoned.lse.at(3)));
  CHECK(poisoned.lse.at(1) == 10000.0);
}

/** The same keys in pages that lie in any order give the same bits. */
void check_pages(const std::string& isa, DType dtype, int window) {
  CpuDevice device(3, kBudgetBytes, isa);
  const Case c{5, 200, 4, 2, 24, {{0, 1, 0, 130}, {1, 5, 130, 200}}, window, 0.3, dtype};
  const Inputs in = make_inputs(c);
  const Call beside = check::run(device, forward_call(c, in));
  // Pages 4, 1, 3 hold the first sequence, 0 and 2 the second.
  const std::vector<double> pages = {4, 1, 3, 0, 2};
  const int64_t row = c.K * c.C;
  const auto paged = [&](const Tensor& x) {
    Tensor y = Tensor::random(dtype, {5, 64, c.K, c.C}, 9);
    for (int64_t i = 0; i < c.M * row; i++) {
      const int64_t key = i / row, own = key < 130 ? key : key - 130, first = key < 130 ? 0 : 3;
      const int64_t page = static_cast<int64_t>(pages[static_cast<size_t>(first + own / 64)]);
      y.set((page * 64 + own % 64) * row + i % row, x.at(i));
    }
    return y;
  };
  Call call = forward_call(c, in);
  call.op = "attention_paged";
  call.in = {in.q, paged(in.k), paged(in.v), segment_tensor({{0, 1, 0, 130}, {1, 5, 3, 70}}),
             Tensor::of(DType::kI32, {5}, pages)};
  const Call done = check::run(device, call);
  CHECK(done.out[0].same_bits(beside.out[0]));
  CHECK(done.out[1].same_bits(beside.out[1]));
  const auto refuses = [&](const std::vector<Segment>& rows, const std::vector<double>& table, const char* part) {
    call.in[3] = segment_tensor(rows);
    call.in[4] = Tensor::of(DType::kI32, {static_cast<int64_t>(table.size())}, table);
    std::string message;
    CHECK(check::failure_of(device, call, &message) == "ERR_SHAPE");
    CHECK_CASE(message.find(part) != std::string::npos, "'%s' is not in '%s'", part, message.c_str());
  };
  refuses({{0, 1, 0, 130}, {1, 5, 3, 129}}, pages, "segments[1] = (1, 5, 3, 129)");
  refuses({{0, 6, 0, 10}}, pages, "segments[0] = (0, 6, 0, 10)");
  refuses({{0, 2, 0, 10}, {1, 5, 3, 10}}, pages, "without overlap");
  refuses({{0, 5, 0, 130}}, {4, 5, 3}, "pages[1] must be below P=5; got 5");
}

void check_errors(const std::string& isa) {
  CpuDevice device(1, kBudgetBytes, isa);
  const auto expect = [&](const Case& c, bool backward, const std::string& part) {
    const Inputs in = make_inputs(c);
    Call call = forward_call(c, in);
    if (backward) call = backward_call(c, in, call.out[0], call.out[1]);
    std::string message;
    CHECK(check::failure_of(device, call, &message) == (part.empty() ? "" : "ERR_SHAPE"));
    CHECK_CASE(message.find(part) != std::string::npos, "'%s' is not in '%s'", part.c_str(), message.c_str());
  };
  expect({8, 8, 4, 2, 8, {{0, 9, 0, 8}}, 0, 1.0}, false, "attention: segments[0] = (0, 9, 0, 8)");
  expect({8, 8, 4, 2, 8, {{-1, 4, 0, 8}}, 0, 1.0}, false, "segments[0] = (-1, 4, 0, 8)");
  expect({8, 8, 4, 2, 8, {{0, 4, 0, 4}, {3, 8, 4, 8}}, 0, 1.0}, false, "without overlap");
  expect({8, 8, 4, 2, 8, {{0, 4, 0, 4}, {4, 8, 5, 4}}, 0, 1.0}, false, "segments[1]");
  expect({8, 8, 3, 2, 8, {}, 0, 1.0}, false, "H=3 must be a multiple");
  const Case shared_prefix{8, 8, 4, 2, 8, {{0, 4, 0, 6}, {4, 8, 2, 8}}, 0, 1.0};
  expect(shared_prefix, false, "");
  expect(shared_prefix, true, "attention_backward: segments[1]");
  const Case wrong_type{8, 8, 4, 2, 8, {}, 0, 1.0, DType::kF64};
  CHECK(check::failure_of(device, forward_call(wrong_type, make_inputs(wrong_type))) == "ERR_DTYPE");
}

}  // namespace

int main() {
  for (const std::string& isa : check::usable_isas()) {
    for (const Case& c : cases()) check_case(isa, c);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (int window : {0, 19, 45, 70}) {
        check_chunks(isa, dtype, window, 1);
        check_chunks(isa, dtype, window, 37);
        check_pages(isa, dtype, window);
      }
    }
    check_schedules(isa);
    check_extremes(isa);
    check_errors(isa);
  }
  return check::finish("attention_test");
}
