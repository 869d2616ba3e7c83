// Multi-dimensional indices for tests: the slow, obvious way.
#pragma once
#include <cstdint>
#include <vector>

namespace check {

using Shape = std::vector<int64_t>;

inline int64_t count_of(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

/** The index of flat element i. */
inline Shape unravel(int64_t i, const Shape& shape) {
  Shape index(shape.size());
  for (size_t d = shape.size(); d-- > 0;) {
    index[d] = i % shape[d];
    i /= shape[d];
  }
  return index;
}

inline int64_t ravel(const Shape& index, const Shape& shape) {
  int64_t i = 0;
  for (size_t d = 0; d < shape.size(); d++) i = i * shape[d] + index[d];
  return i;
}

/** Flat element of a tensor of `shape` that a broadcast output reads at `index`. */
inline int64_t broadcast_source(const Shape& index, const Shape& shape) {
  Shape own(shape.size());
  for (size_t d = 0; d < shape.size(); d++) {
    own[d] = shape[d] == 1 ? 0 : index[index.size() - shape.size() + d];
  }
  return ravel(own, shape);
}

/** Operands of a broadcasting op and its output. */
struct Shapes {
  Shape a, b, c;
};
inline const Shapes kBroadcasts[] = {
    {{37}, {37}, {37}},
    {{5, 19}, {5, 19}, {5, 19}},
    {{5, 19}, {19}, {5, 19}},
    {{5, 19}, {5, 1}, {5, 19}},
    {{1}, {5, 19}, {5, 19}},
    {{}, {}, {}},
    {{4, 3}, {}, {4, 3}},
    {{4, 1, 3}, {2, 1}, {4, 2, 3}},
    {{4, 1}, {1, 9}, {4, 9}},
    {{2, 1, 3, 1, 5, 1}, {1, 4, 1, 2, 1, 3}, {2, 4, 3, 2, 5, 3}},
    {{1, 1, 6, 17}, {3, 2, 1, 17}, {3, 2, 6, 17}},
    {{2, 3, 1, 1}, {2, 3, 4, 5}, {2, 3, 4, 5}},
    {{0, 3}, {3}, {0, 3}},
    {{300, 257}, {257}, {300, 257}},
};

}  // namespace check
