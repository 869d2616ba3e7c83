// Ops that only move elements against naive loops over multi-dimensional indices: every element, exactly.
#include "test/native/kernel_call.h"
#include "test/native/shapes.h"

namespace {

using caravan::DType;
using check::broadcast_source;
using check::check_close;
using check::check_threads;
using check::count_of;
using check::failure_of;
using check::kBroadcasts;
using check::ravel;
using check::run;
using check::Shape;
using check::Shapes;
using check::Tensor;
using check::unravel;
using Values = std::vector<double>;

void broadcasts(caravan::CpuDevice& device, DType t) {
  for (const Shapes& shapes : kBroadcasts) {
    const Tensor x = Tensor::random(t, shapes.b, 11);
    Values expected;
    for (int64_t i = 0; i < count_of(shapes.c); i++)
      expected.push_back(x.at(broadcast_source(unravel(i, shapes.c), shapes.b)));
    check_close("broadcast_to", run(device, {"broadcast_to", {x}, {Tensor(t, shapes.c)}, {}}).out[0], expected, 0);
  }
}

void transposes(caravan::CpuDevice& device, DType t) {
  const std::pair<Shape, Shape> cases[] = {
      {{7}, {0}},
      {{5, 19}, {1, 0}},
      {{5, 19}, {0, 1}},
      {{70, 130}, {1, 0}},
      {{0, 4}, {1, 0}},
      {{3, 4, 5}, {2, 1, 0}},
      {{3, 4, 5}, {1, 0, 2}},
      {{3, 4, 5}, {1, 2, 0}},
      {{3, 4, 5}, {0, 2, 1}},
      {{1, 6, 1, 5}, {3, 2, 1, 0}},
      {{2, 3, 4, 5, 2, 3}, {5, 3, 1, 0, 2, 4}},
      {{2, 3, 4, 5, 2, 3}, {0, 1, 2, 4, 5, 3}},
      {{2, 50, 3, 40}, {0, 2, 3, 1}},
  };
  for (const auto& [shape, order] : cases) {
    const Tensor x = Tensor::random(t, shape, 12);
    Shape turned;
    Values attrs;
    for (int64_t from : order) turned.push_back(shape[static_cast<size_t>(from)]);
    for (size_t i = 0; i < 6; i++) attrs.push_back(i < order.size() ? static_cast<double>(order[i]) : -1.0);
    Values expected;
    for (int64_t i = 0; i < x.count(); i++) {
      const Shape to = unravel(i, turned);
      Shape from(shape.size());
      for (size_t d = 0; d < order.size(); d++) from[static_cast<size_t>(order[d])] = to[d];
      expected.push_back(x.at(ravel(from, shape)));
    }
    check_close("transpose", run(device, {"transpose", {x}, {Tensor(t, turned)}, attrs}).out[0], expected, 0);
  }
}

void slices(caravan::CpuDevice& device, DType t) {
  for (const Shape& shape : {Shape{9}, Shape{4, 7}, Shape{3, 5, 6}, Shape{3, 1, 6}, Shape{2, 70, 300}}) {
    const Tensor x = Tensor::random(t, shape, 13);
    for (size_t axis = 0; axis < shape.size(); axis++) {
      const int64_t size = shape[axis];
      for (int64_t start : {int64_t{0}, size / 3, size - 1}) {
        for (int64_t length : {int64_t{0}, int64_t{1}, size - start}) {
          Shape part = shape;
          part[axis] = length;
          Values expected;
          for (int64_t i = 0; i < count_of(part); i++) {
            Shape index = unravel(i, part);
            index[axis] += start;
            expected.push_back(x.at(ravel(index, shape)));
          }
          const Values attrs = {static_cast<double>(axis), static_cast<double>(start), static_cast<double>(length)};
          check_close("slice", run(device, {"slice", {x}, {Tensor(t, part)}, attrs}).out[0], expected, 0);
        }
      }
      Shape other = shape, joined = shape;
      other[axis] = 2;
      joined[axis] += 2;
      const Tensor b = Tensor::random(t, other, 14);
      Values expected;
      for (int64_t i = 0; i < count_of(joined); i++) {
        Shape index = unravel(i, joined);
        const bool first = index[axis] < shape[axis];
        if (!first) index[axis] -= shape[axis];
        expected.push_back(first ? x.at(ravel(index, shape)) : b.at(ravel(index, other)));
      }
      const double attribute = static_cast<double>(axis);
      check_close("concat", run(device, {"concat", {x, b}, {Tensor(t, joined)}, {attribute}}).out[0], expected, 0);
    }
  }
}

void takes(caravan::CpuDevice& device, DType t) {
  const Tensor x = Tensor::random(t, {2, 3, 5}, 15), y = Tensor::random(t, {2, 3}, 16);
  const Tensor index = Tensor::of(DType::kI32, {2, 3}, {0, 4, -1, 2, -100, 3});
  Values taken, put(30);
  for (int64_t row = 0; row < 6; row++) {
    const int64_t at = static_cast<int64_t>(index.at(row));
    taken.push_back(at < 0 ? 0 : x.at(row * 5 + at));
    if (at >= 0) put[static_cast<size_t>(row * 5 + at)] = y.at(row);
  }
  check_close("take", run(device, {"take", {x, index}, {y}, {}}).out[0], taken, 0);
  check_close("put", run(device, {"put", {y, index}, {x}, {5}}).out[0], put, 0);
  Tensor bad = index;
  bad.set(4, 5);
  std::string message;
  CHECK(failure_of(device, {"take", {x, bad}, {y}, {}}, &message) == "ERR_KERNEL");
  CHECK_CASE(message.find("row 4") != std::string::npos, "%s", message.c_str());
  CHECK(failure_of(device, {"put", {y, bad}, {x}, {5}}) == "ERR_KERNEL");
}

void threads(DType t) {
  const Tensor x = Tensor::random(t, {300, 401}, 17), row = Tensor::random(t, {401}, 18);
  check_threads({"transpose", {x}, {Tensor(t, {401, 300})}, {1, 0, -1, -1, -1, -1}});
  check_threads({"broadcast_to", {row}, {x}, {}});
  check_threads({"slice", {x}, {Tensor(t, {300, 200})}, {1, 100, 200}});
  check_threads({"concat", {x, x}, {Tensor(t, {300, 802})}, {1}});
}

}  // namespace

int main() {
  const DType types[] = {DType::kF32, DType::kBF16, DType::kF64, DType::kI32};
  check::on_each_isa([&](caravan::CpuDevice& device) {
    for (DType t : types) {
      broadcasts(device, t);
      transposes(device, t);
      slices(device, t);
      takes(device, t);
    }
  });
  for (DType t : types) threads(t);
  return check::finish("movement");
}
