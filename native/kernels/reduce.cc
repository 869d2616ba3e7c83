// Reductions along one axis of x seen as [outer, R, inner]. Fixed order: R is cut into runs of a fixed length, each run
// is reduced in f32 vectors (f64 loops for f64), and the runs are combined in f64 in run order. The cut depends on R
// and inner alone, so a row has the same bits alone and in a batch, on any number of threads. Traffic per element: one
// read.
#include "core/kernel_registry.h"
#include "core/scratch.h"
#include "cpu/thread_pool.h"
#include "kernels/broadcast.h"
#include "kernels/number_convert.h"
#include "kernels/row_loop.h"

namespace caravan::CARAVAN_ISA {
namespace {
namespace reduce_detail {

/** Elements of a run along the last axis, rows of a run along another, columns that one task reduces at a time. */
constexpr int64_t kRunElements = 4096;
constexpr int64_t kRunRows = 64;
constexpr int64_t kColumns = 512;

struct Sum {
  static F32 start() { return zero(); }
  static F32 step(F32 sum, F32 x) { return sum + x; }
  static double start_f64() { return 0.0; }
  static double step(double sum, double x) { return sum + x; }
};

/** A NaN wins, as in NumPy; the maximum of nothing is -inf. */
struct Max {
  static F32 start() { return set1(-__builtin_inff()); }
  static F32 step(F32 most, F32 x) { return keep_nan(x, max(x, most)); }
  static double start_f64() { return -__builtin_inf(); }
  static double step(double most, double x) { return most != most || most > x ? most : x; }
};

/** Lanes and chains of one run, halving as reduce_sum does. */
template <typename Reduction>
double reduce_chains(const FourChains& chains) {
  float lanes[F32::kLanes];
  store(lanes, Reduction::step(Reduction::step(chains.part[0], chains.part[1]),
                               Reduction::step(chains.part[2], chains.part[3])));
  double values[F32::kLanes];
  for (int i = 0; i < F32::kLanes; i++) values[i] = lanes[i];
  for (int half = F32::kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) values[i] = Reduction::step(values[i], values[i + half]);
  }
  return values[0];
}

template <typename Reduction, typename T>
double reduce_run(const T* x, int64_t count) {
  return reduce_chains<Reduction>(fold_vectors(count, Reduction::start(), [&](F32 running, int64_t i, auto vector) {
    return Reduction::step(running, vector.load_filled(x + i, Reduction::start()));
  }));
}
template <typename Reduction>
double reduce_run(const double* x, int64_t count) {
  double chains[4] = {Reduction::start_f64(), Reduction::start_f64(), Reduction::start_f64(), Reduction::start_f64()};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int j = 0; j < 4; j++) chains[j] = Reduction::step(chains[j], x[i + j]);
  }
  for (int j = 0; i + j < count; j++) chains[j] = Reduction::step(chains[j], x[i + j]);
  return Reduction::step(Reduction::step(chains[0], chains[1]), Reduction::step(chains[2], chains[3]));
}

/** inner = 1: each output is a run, or a few of them. */
template <typename Reduction, typename T>
void reduce_rows(const Args& a, const Extent& e) {
  const T* x = a.in[0].as<T>();
  T* y = a.out[0].as<T>();
  if (e.R <= kRunElements) {
    parallel_ranges(pool_of(a), e.outer, rows_per_task(e.R * sizeof(T)), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) y[row] = rounded<T>(reduce_run<Reduction>(x + row * e.R, e.R));
    });
    return;
  }
  const int64_t runs = (e.R + kRunElements - 1) / kRunElements;
  Scratch scratch(a.device, static_cast<size_t>(e.outer * runs) * sizeof(double));
  double* partial = scratch.as<double>();
  parallel_ranges(pool_of(a), e.outer * runs, rows_per_task(kRunElements * sizeof(T)),
                  [&](int64_t begin, int64_t end, int) {
                    for (int64_t i = begin; i < end; i++) {
                      const int64_t first = i % runs * kRunElements;
                      const int64_t count = e.R - first < kRunElements ? e.R - first : kRunElements;
                      partial[i] = reduce_run<Reduction>(x + i / runs * e.R + first, count);
                    }
                  });
  for (int64_t row = 0; row < e.outer; row++) {
    double value = Reduction::start_f64();
    for (int64_t run = 0; run < runs; run++) value = Reduction::step(value, partial[row * runs + run]);
    y[row] = rounded<T>(value);
  }
}

/** total[0..columns) = step(total, row) for `rows` rows that lie `inner` elements apart. */
template <typename Reduction, typename T>
void reduce_columns_run(const T* x, const Extent& e, int64_t rows, int64_t columns, float* total) {
  for_vectors(columns, [&](int64_t i, auto vector) { vector.store(total + i, Reduction::start()); });
  for (int64_t r = 0; r < rows; r++) {
    const T* row = x + r * e.inner;
    for_vectors(columns, [&](int64_t i, auto vector) {
      vector.store(total + i, Reduction::step(vector.load(total + i), vector.load(row + i)));
    });
  }
}
template <typename Reduction>
void reduce_columns_run(const double* x, const Extent& e, int64_t rows, int64_t columns, double* total) {
  for (int64_t i = 0; i < columns; i++) total[i] = Reduction::start_f64();
  for (int64_t r = 0; r < rows; r++) {
    const double* row = x + r * e.inner;
    for (int64_t i = 0; i < columns; i++) total[i] = Reduction::step(total[i], row[i]);
  }
}

/** The type in which the runs of T are kept. */
template <typename T>
struct RunValue {
  using Type = float;
};
template <>
struct RunValue<double> {
  using Type = double;
};

/** A task of reduce_columns: `columns` columns from `column` of `rows` rows from `row` of outer index `outer`. */
struct ColumnTask {
  int64_t outer, run, row, rows, column, columns;

  ColumnTask(int64_t task, const Extent& e, int64_t runs, int64_t blocks)
      : outer(task / blocks / runs), run(task / blocks % runs), row(run * kRunRows), column(task % blocks * kColumns) {
    rows = e.R - row < kRunRows ? e.R - row : kRunRows;
    columns = e.inner - column < kColumns ? e.inner - column : kColumns;
  }
};

/** Second step of reduce_columns: one task combines the runs of a block of columns. */
template <typename Reduction, typename Value, typename T>
void combine_runs(const Value* partial, const Extent& e, int64_t runs, const ColumnTask& task, T* y) {
  double total[kColumns];
  for (int64_t i = 0; i < task.columns; i++) total[i] = Reduction::start_f64();
  for (int64_t run = 0; run < runs; run++) {
    const Value* from = partial + (task.outer * runs + run) * e.inner + task.column;
    for (int64_t i = 0; i < task.columns; i++) total[i] = Reduction::step(total[i], to_f64(from[i]));
  }
  for (int64_t i = 0; i < task.columns; i++) round_to(total[i], y + task.outer * e.inner + task.column + i);
}

/** inner > 1: a task reduces a run of rows for a block of columns; then the runs are combined. */
template <typename Reduction, typename T>
void reduce_columns(const Args& a, const Extent& e) {
  using Value = typename RunValue<T>::Type;
  const int64_t runs = e.R <= kRunRows ? 1 : (e.R + kRunRows - 1) / kRunRows;
  const int64_t blocks = (e.inner + kColumns - 1) / kColumns;
  const bool direct = runs == 1 && sizeof(Value) == sizeof(T);  // a single run of the output's own type is the result
  Scratch scratch(a.device, direct ? 0 : static_cast<size_t>(e.outer * runs * e.inner) * sizeof(Value));
  Value* partial = direct ? a.out[0].as<Value>() : scratch.as<Value>();
  const int64_t columns = e.inner < kColumns ? e.inner : kColumns;
  const int64_t grain = rows_per_task((e.R < kRunRows ? e.R : kRunRows) * columns * sizeof(T));
  parallel_ranges(pool_of(a), e.outer * runs * blocks, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const ColumnTask task(i, e, runs, blocks);
      reduce_columns_run<Reduction>(a.in[0].as<T>() + (task.outer * e.R + task.row) * e.inner + task.column, e,
                                    task.rows, task.columns,
                                    partial + (task.outer * runs + task.run) * e.inner + task.column);
    }
  });
  if (direct) return;
  const int64_t combine_grain = rows_per_task(runs * columns * sizeof(Value));
  parallel_ranges(pool_of(a), e.outer * blocks, combine_grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      combine_runs<Reduction>(partial, e, runs, ColumnTask(i, e, 1, blocks), a.out[0].as<T>());
    }
  });
}

template <typename Reduction>
void reduce(const char* op, const Args& a) {
  const Extent extent = extent_of(a.in[0], a.attrs[0]);
  with_float_type(op, a.in[0].dtype, [&]<typename T>(T) {
    if (extent.inner == 1) {
      reduce_rows<Reduction, T>(a, extent);
    } else {
      reduce_columns<Reduction, T>(a, extent);
    }
  });
}

/** Largest value of x that is not NaN, or -inf. */
template <typename T>
double largest(const T* x, int64_t count) {
  FourChains most = fold_vectors(count, Max::start(), [&](F32 running, int64_t i, auto vector) {
    return max(vector.load_filled(x + i, Max::start()), running);  // the second operand where the first is NaN
  });
  return reduce_max(max(max(most.part[0], most.part[1]), max(most.part[2], most.part[3])));
}
double largest(const double* x, int64_t count) {
  double most = -__builtin_inf();
  for (int64_t i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/** One pass in blocks; then the block that holds the winner, still in L1 or L2, is searched for its place: by vectors
 * for the right piece of it, and that piece one by one. */
template <typename T>
int32_t argmax_row(const T* x, int64_t V) {
  constexpr int64_t kBlock = 2048;
  double best = -__builtin_inf();
  int64_t from = 0;
  int64_t to = V;  // a row of -inf and NaN alone is searched whole
  for (int64_t begin = 0; begin < V; begin += kBlock) {
    const int64_t end = begin + kBlock < V ? begin + kBlock : V;
    const double value = largest(x + begin, end - begin);
    if (value > best) {
      best = value;
      from = begin;
      to = end;
    }
  }
  constexpr int64_t kPiece = 64;
  for (int64_t begin = from; begin < to; begin += kPiece) {
    const int64_t end = begin + kPiece < to ? begin + kPiece : to;
    if (largest(x + begin, end - begin) != best) continue;
    for (int64_t i = begin; i < end; i++) {
      if (to_f64(x[i]) == best) return static_cast<int32_t>(i);
    }
  }
  return 0;
}

}  // namespace reduce_detail

CARAVAN_KERNEL(sum, cpu, "x[...] -> y[...] | axis") { reduce_detail::reduce<reduce_detail::Sum>("sum", a); }

CARAVAN_KERNEL(max, cpu, "x[...] -> y[...] | axis") { reduce_detail::reduce<reduce_detail::Max>("max", a); }

CARAVAN_KERNEL(argmax, cpu, "x[*,V] -> index[*]:i32") {
  const View& x = a.in[0];
  const int64_t V = x.last();
  with_float_type("argmax", x.dtype, [&]<typename T>(T) {
    parallel_ranges(pool_of(a), x.rows(), rows_per_task(V * sizeof(T)), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        a.out[0].as<int32_t>()[row] = reduce_detail::argmax_row(x.as<T>() + row * V, V);
      }
    });
  });
}

}  // namespace
}  // namespace caravan::CARAVAN_ISA
