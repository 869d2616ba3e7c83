// Norms, rotary embedding, SwiGLU and row lookups against plain f64 loops; gradients against central differences of
// those loops, so that no derivative is derived twice in the same way.
#include <algorithm>

#include "test/native/kernel_call.h"

namespace {

using caravan::DType;
using check::Call;
using check::check_close;
using check::check_threads;
using check::failure_of;
using check::run;
using check::Tensor;
using check::Tensors;
using Values = std::vector<double>;

constexpr double kEps = 1e-5;
const DType kTypes[] = {DType::kF32, DType::kBF16};
const int64_t kWidths[] = {1, 7, 8, 31, 64, 100, 257};
const int64_t kRows[] = {0, 1, 3, 65, 130};

/** d sum_i(dy_i f(x)_i) / dx_j by central differences. */
Values numeric_gradient(const std::function<Values(const Values&)>& f, Values x, const Values& dy) {
  Values dx(x.size());
  for (size_t j = 0; j < x.size(); j++) {
    const double step = 1e-5, at = x[j];
    x[j] = at + step;
    const Values up = f(x);
    x[j] = at - step;
    const Values down = f(x);
    x[j] = at;
    for (size_t i = 0; i < up.size(); i++) dx[j] += dy[i] * (up[i] - down[i]) / (2 * step);
  }
  return dx;
}

Values row_of(const Tensor& x, int64_t row, int64_t D) {
  Values values;
  for (int64_t i = 0; i < D; i++) values.push_back(x.at(row * D + i));
  return values;
}

double rstd_of(const Values& x, double eps = kEps) {
  double squares = 0;
  for (double v : x) squares += v * v;
  return 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
}

Values rms_norm_row(const Values& x, const Values& w) {
  Values y;
  const double rstd = rstd_of(x);
  for (size_t i = 0; i < x.size(); i++) y.push_back(x[i] * rstd * w[i]);
  return y;
}

Values layer_norm_row(const Values& x) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / static_cast<double>(x.size());
  for (double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  Values y;
  for (double v : x) y.push_back((v - mean) / std::sqrt(variance + kEps));
  return y;
}

void rms_norm_forward(caravan::CpuDevice& device, DType t, int64_t N, int64_t D) {
  const Tensor x = Tensor::random(t, {N, D}, 1), w = Tensor::random(t, {D}, 2), residual = Tensor::random(t, {N, D}, 3);
  const Tensors out = {Tensor(t, {N, D}), Tensor(DType::kF32, {N})};
  const Call plain = run(device, {"rms_norm", {x, w, Tensor::absent()}, out, {kEps}});
  const Call added = run(device, {"rms_norm", {x, w, residual}, out, {kEps}});
  const Call summed = run(device, {"add_rms_norm", {x, residual, w}, {out[0], out[0], out[1]}, {kEps}});
  Values y, y_added, y_summed, rstd, rstd_summed, sum;
  for (int64_t n = 0; n < N; n++) {
    const Values row = row_of(x, n, D);
    Values total(row);
    for (int64_t i = 0; i < D; i++) {
      Tensor rounded(t, {1});
      rounded.set(0, x.at(n * D + i) + residual.at(n * D + i));
      total[static_cast<size_t>(i)] = rounded.at(0);
    }
    rstd.push_back(rstd_of(row));
    rstd_summed.push_back(rstd_of(total));
    const Values normed = rms_norm_row(row, w.values()), normed_sum = rms_norm_row(total, w.values());
    for (int64_t i = 0; i < D; i++) {
      y.push_back(normed[static_cast<size_t>(i)]);
      y_added.push_back(normed[static_cast<size_t>(i)] + residual.at(n * D + i));
      y_summed.push_back(normed_sum[static_cast<size_t>(i)]);
      sum.push_back(total[static_cast<size_t>(i)]);
    }
  }
  check_close("rms_norm y", plain.out[0], y);
  check_close("rms_norm rstd", plain.out[1], rstd);
  check_close("rms_norm y + residual", added.out[0], y_added);
  check_close("add_rms_norm y", summed.out[0], y_summed);
  check_close("add_rms_norm sum", summed.out[1], sum, 0);
  check_close("add_rms_norm rstd", summed.out[2], rstd_summed);
}

void rms_norm_backward(caravan::CpuDevice& device, DType t, int64_t N, int64_t D) {
  const Tensor dy = Tensor::random(t, {N, D}, 4), x = Tensor::random(t, {N, D}, 5), w = Tensor::random(t, {D}, 6);
  const Tensor dx0 = Tensor::random(t, {N, D}, 7);
  Values rstd, dx, dx_added, dw(static_cast<size_t>(D)), dw_terms(dw);
  double dx_term = 0;
  for (int64_t n = 0; n < N; n++) {
    const Values row = row_of(x, n, D);
    rstd.push_back(rstd_of(row));
    const Values gradient =
        numeric_gradient([&](const Values& at) { return rms_norm_row(at, w.values()); }, row, row_of(dy, n, D));
    for (int64_t i = 0; i < D; i++) {
      dx.push_back(gradient[static_cast<size_t>(i)]);
      dx_added.push_back(gradient[static_cast<size_t>(i)] + dx0.at(n * D + i));
      const double term = dy.at(n * D + i) * row[static_cast<size_t>(i)] * rstd.back();
      dw[static_cast<size_t>(i)] += term;
      dw_terms[static_cast<size_t>(i)] += std::fabs(term);
      dx_term = std::max(dx_term, std::fabs(dy.at(n * D + i) * w.at(i) * rstd.back()));
    }
  }
  const Tensors out = {Tensor(t, {N, D}), Tensor(DType::kF32, {D})};
  const Tensor saved = Tensor::of(DType::kF32, {N}, rstd);
  const Call plain = run(device, {"rms_norm_backward", {dy, x, w, saved, Tensor::absent()}, out, {}});
  const Call added = run(device, {"rms_norm_backward", {dy, x, w, saved, dx0}, out, {}});
  check_close("rms_norm_backward dx", plain.out[0], dx, 16, dx_term);
  check_close("rms_norm_backward dw", plain.out[1], dw, 16, *std::max_element(dw_terms.begin(), dw_terms.end()));
  check_close("rms_norm_backward dx + dx0", added.out[0], dx_added, 16, dx_term);
}

void layer_norm(caravan::CpuDevice& device, DType t, int64_t N, int64_t D) {
  Tensor x = Tensor::random(t, {N, D}, 8);
  const Tensor dy = Tensor::random(t, {N, D}, 9);
  for (int64_t i = 0; i < N * D; i++) x.set(i, x.at(i) + 2.0);
  Values y, mean, rstd, dx;
  for (int64_t n = 0; n < N; n++) {
    const Values row = row_of(x, n, D);
    double m = 0, variance = 0;
    for (double v : row) m += v / static_cast<double>(D);
    for (double v : row) variance += (v - m) * (v - m) / static_cast<double>(D);
    mean.push_back(m);
    rstd.push_back(1.0 / std::sqrt(variance + kEps));
    const Values normed = layer_norm_row(row), gradient = numeric_gradient(layer_norm_row, row, row_of(dy, n, D));
    y.insert(y.end(), normed.begin(), normed.end());
    dx.insert(dx.end(), gradient.begin(), gradient.end());
  }
  const Tensor one(DType::kF32, {N});
  const Call forward = run(device, {"layer_norm", {x}, {Tensor(t, {N, D}), one, one}, {kEps}});
  // A mean of about 2 is off by some 2^-23; divided by a deviation of 0.5 (or by sqrt(eps) when D = 1) that shows.
  const double amplified = D == 1 ? 4096 : 32;
  check_close("layer_norm y", forward.out[0], y, amplified);
  check_close("layer_norm mean", forward.out[1], mean);
  check_close("layer_norm rstd", forward.out[2], rstd, amplified);
  if (D == 1) return;  // the gradient is exactly zero; central differences of sqrt(eps) are not
  const Tensors saved = {dy, x, Tensor::of(DType::kF32, {N}, mean), Tensor::of(DType::kF32, {N}, rstd)};
  check_close("layer_norm_backward dx", run(device, {"layer_norm_backward", saved, {Tensor(t, {N, D})}, {}}).out[0], dx,
              256);
}

void rope(caravan::CpuDevice& device, DType t, int64_t N, int64_t H, int64_t C) {
  const int64_t J = C / 2;
  Values positions, frequencies, table;
  for (int64_t n = 0; n < N; n++) positions.push_back(static_cast<double>(n * n * 997 % 131072));
  for (int64_t j = 0; j < J; j++)
    frequencies.push_back(std::pow(500000.0, -2.0 * static_cast<double>(j) / static_cast<double>(C)));
  for (int64_t n = 0; n < N; n++) {
    for (double f : frequencies) table.push_back(std::cos(positions[static_cast<size_t>(n)] * f));
    for (double f : frequencies) table.push_back(std::sin(positions[static_cast<size_t>(n)] * f));
  }
  const Tensor p = Tensor::of(DType::kI32, {N}, positions), f = Tensor::of(DType::kF64, {J}, frequencies);
  const Tensor made =
      run(device, {"rope_table", {p, f}, {Tensor(DType::kF32, {N, C})}, {static_cast<double>(C)}}).out[0];
  check_close("rope_table", made, table, 1);

  const Tensor x = Tensor::random(t, {N, H, C}, 10);
  Values forward(static_cast<size_t>(N * H * C)), backward(forward);
  for (int64_t n = 0; n < N; n++) {
    for (int64_t h = 0; h < H; h++) {
      for (int64_t j = 0; j < J; j++) {
        const size_t low = static_cast<size_t>((n * H + h) * C + j), high = low + static_cast<size_t>(J);
        const double c = table[static_cast<size_t>(n * C + j)], s = table[static_cast<size_t>(n * C + J + j)];
        const double a = x.at(static_cast<int64_t>(low)), b = x.at(static_cast<int64_t>(high));
        forward[low] = a * c - b * s;
        forward[high] = b * c + a * s;
        backward[low] = a * c + b * s;
        backward[high] = b * c - a * s;
      }
    }
  }
  check_close("rope", run(device, {"rope", {x, made}, {x}, {1}}).out[0], forward, 4);
  check_close("rope backward", run(device, {"rope", {x, made}, {x}, {-1}}).out[0], backward, 4);
}

void swiglu(caravan::CpuDevice& device, DType t, int64_t N, int64_t F) {
  Tensor gate = Tensor::random(t, {N, F}, 11);
  const Tensor up = Tensor::random(t, {N, F}, 12), dy = Tensor::random(t, {N, F}, 13);
  for (int64_t i = 0; i < N * F; i++) gate.set(i, gate.at(i) * 12);
  if (N * F > 2) {
    gate.set(0, -200);
    gate.set(1, 200);
  }
  Values y, dgate, dup;
  const auto silu = [](double g) { return g / (1.0 + std::exp(-g)); };
  for (int64_t i = 0; i < N * F; i++) {
    const double g = gate.at(i), h = 1e-5;
    y.push_back(silu(g) * up.at(i));
    dup.push_back(dy.at(i) * silu(g));
    dgate.push_back(dy.at(i) * up.at(i) * (silu(g + h) - silu(g - h)) / (2 * h));
  }
  check_close("swiglu", run(device, {"swiglu", {gate, up}, {gate}, {}}).out[0], y, 4);
  const Call backward = run(device, {"swiglu_backward", {dy, gate, up}, {gate, up}, {}});
  check_close("swiglu_backward dgate", backward.out[0], dgate, 16);
  check_close("swiglu_backward dup", backward.out[1], dup, 4);
}

Tensor ids_below(int64_t N, int64_t V) {
  Values ids;
  for (int64_t n = 0; n < N; n++) ids.push_back(static_cast<double>((n * 7 + n * n) % V));
  return Tensor::of(DType::kI32, {N}, ids);
}

void embedding(caravan::CpuDevice& device, DType t, int64_t N, int64_t D) {
  const int64_t V = 11;
  const DType sum_type = t == DType::kF64 ? DType::kF64 : DType::kF32;
  const Tensor ids = ids_below(N, V), w = Tensor::random(t, {V, D}, 14), dy = Tensor::random(t, {N, D}, 15);
  const Tensor before = Tensor::random(sum_type, {V, D}, 16);
  Values y, dw(static_cast<size_t>(V * D)), dw_added = before.values(), placed = w.values();
  for (int64_t n = 0; n < N; n++) {
    const int64_t id = static_cast<int64_t>(ids.at(n));
    for (int64_t i = 0; i < D; i++) {
      const size_t to = static_cast<size_t>(id * D + i);
      y.push_back(w.at(id * D + i));
      dw[to] += dy.at(n * D + i);
      dw_added[to] += dy.at(n * D + i);
      placed[to] = dy.at(n * D + i);
    }
  }
  check_close("embedding", run(device, {"embedding", {ids, w}, {dy}, {}}).out[0], y, 0);
  check_close("embedding_backward",
              run(device, {"embedding_backward", {dy, ids}, {before}, {static_cast<double>(V)}}).out[0], dw);
  check_close("embedding_backward_add", run(device, {"embedding_backward_add", {before, dy, ids}, {}, {}}).in[0],
              dw_added);
  check_close("scatter_rows", run(device, {"scatter_rows", {w, dy, ids}, {}, {}}).in[0], placed, 0);
}

void index_errors(caravan::CpuDevice& device) {
  const Tensor w = Tensor::random(DType::kF32, {4, 3}, 1), rows = Tensor::random(DType::kF32, {2, 3}, 2);
  std::string message;
  for (double bad : {4.0, -1.0}) {
    const Tensor ids = Tensor::of(DType::kI32, {2}, {0, bad});
    CHECK(failure_of(device, {"embedding", {ids, w}, {rows}, {}}, &message) == "ERR_KERNEL");
    CHECK_CASE(message.find("position 1") != std::string::npos, "%s", message.c_str());
    CHECK(failure_of(device, {"embedding_backward", {rows, ids}, {w}, {4}}) == "ERR_KERNEL");
    CHECK(failure_of(device, {"embedding_backward_add", {w, rows, ids}, {}, {}}) == "ERR_KERNEL");
    CHECK(failure_of(device, {"scatter_rows", {w, rows, ids}, {}, {}}) == "ERR_KERNEL");
  }
  const Tensor wrong = Tensor::random(DType::kI32, {4, 3}, 1), w3 = Tensor::random(DType::kF32, {3}, 1);
  CHECK(failure_of(device, {"rms_norm", {wrong, w3, Tensor::absent()}, {wrong, Tensor(DType::kF32, {4})}, {kEps}}) ==
        "ERR_DTYPE");
}

/** Calls large enough to be cut into many tasks. */
std::vector<Call> large_calls(DType t) {
  const int64_t N = 700, D = 203, H = 5, C = 42, V = 900;
  const Tensor x = Tensor::random(t, {N, D}, 20), y = Tensor::random(t, {N, D}, 21), w = Tensor::random(t, {D}, 22);
  const Tensor stat = Tensor::random(DType::kF32, {N}, 23), heads = Tensor::random(t, {N, H, C}, 24);
  const Tensor table = Tensor::random(DType::kF32, {N, C}, 25), dw(DType::kF32, {D}), big(DType::kF32, {V, D});
  const Tensor into = Tensor::random(DType::kF32, {V, D}, 26), rows_into = Tensor::random(t, {V, D}, 27),
               ids = ids_below(N, V);
  return {
      {"rms_norm", {x, w, y}, {x, stat}, {kEps}},
      {"add_rms_norm", {x, y, w}, {x, x, stat}, {kEps}},
      {"rms_norm_backward", {x, y, w, stat, x}, {x, dw}, {}},
      {"layer_norm", {x}, {x, stat, stat}, {kEps}},
      {"layer_norm_backward", {x, y, stat, stat}, {x}, {}},
      {"rope", {heads, table}, {heads}, {1}},
      {"swiglu", {x, y}, {x}, {}},
      {"swiglu_backward", {x, y, x}, {x, x}, {}},
      {"embedding", {ids, rows_into}, {x}, {}},
      {"embedding_backward", {x, ids}, {big}, {static_cast<double>(V)}},
      {"embedding_backward_add", {into, x, ids}, {}, {}},
      {"scatter_rows", {rows_into, x, ids}, {}, {}},
  };
}

/** Rows [5, 6) computed alone have the bits that they have in the batch. `by_row`: which inputs have a row per row. */
void row_alone(caravan::CpuDevice& device, const Call& call, const std::vector<bool>& by_row, size_t row_outputs) {
  const Call whole = run(device, call);
  Call part = call;
  for (size_t i = 0; i < part.in.size(); i++) {
    if (by_row[i]) part.in[i] = call.in[i].rows(5, 6);
  }
  for (Tensor& out : part.out) {
    if (out.shape()[0] == call.in[0].shape()[0]) out = out.rows(5, 6);
  }
  part = run(device, part);
  for (size_t i = 0; i < row_outputs; i++) {
    CHECK_CASE(part.out[i].same_bits(whole.out[i].rows(5, 6)), "%s: output %zu of a row alone", call.op.c_str(), i);
  }
}

void rows_alone(caravan::CpuDevice& device, DType t) {
  const std::vector<Call> calls = large_calls(t);
  row_alone(device, calls[0], {true, false, true}, 2);
  row_alone(device, calls[1], {true, true, false}, 3);
  row_alone(device, calls[2], {true, true, false, true, true}, 1);
  row_alone(device, calls[3], {true}, 3);
  row_alone(device, calls[4], {true, true, true, true}, 1);
  row_alone(device, calls[5], {true, true}, 1);
  row_alone(device, calls[6], {true, true}, 1);
  row_alone(device, calls[7], {true, true, true}, 2);
  row_alone(device, calls[8], {true, false}, 1);
}

}  // namespace

int main() {
  check::on_each_isa([](caravan::CpuDevice& device) {
    for (DType t : kTypes) {
      for (int64_t N : kRows) {
        for (int64_t D : kWidths) {
          rms_norm_forward(device, t, N, D);
          swiglu(device, t, N, D);
          if (N * D > 9000) continue;  // central differences cost D^2 a row
          rms_norm_backward(device, t, N, D);
          layer_norm(device, t, N, D);
        }
        for (int64_t C : {2, 14, 16, 64, 80}) rope(device, t, N, 3, C);
        for (int64_t D : {1, 31, 64, 300}) embedding(device, t, N, D);
      }
      rows_alone(device, t);
    }
    embedding(device, DType::kF64, 65, 31);
    index_errors(device);
  });
  for (DType t : kTypes) {
    for (const Call& call : large_calls(t)) check_threads(call);
  }
  return check::finish("row_ops");
}
