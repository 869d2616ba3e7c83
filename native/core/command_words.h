// How numbers and shapes stand in the words of the command stream.
#pragma once
#include <cstdint>
#include <cstring>

namespace caravan {

inline double read_f64(const int32_t* words) {
  double value;
  std::memcpy(&value, words, sizeof(value));
  return value;
}

/** Returns the word behind the shape. */
inline const int32_t* read_shape(const int32_t* word, int64_t* shape, int* rank) {
  *rank = *word++;
  for (int i = 0; i < *rank; i++) shape[i] = *word++;
  return word;
}

}  // namespace caravan
