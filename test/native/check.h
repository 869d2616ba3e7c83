// The whole of the native test framework: CHECK counts and reports, `finish` turns the count into an exit code.
#pragma once
#include <cstdio>

namespace check {

inline int failures = 0;
inline long checks = 0;

/** Reports one failed expectation; only the first few are printed in full. */
inline void report(const char* file, int line, const char* expression) {
  if (++failures <= 20) std::printf("%s:%d: failed: %s\n", file, line, expression);
}

/** Prints the summary of a test program and returns its exit code. */
inline int finish(const char* name) {
  std::printf("%s: %ld checks, %d failed\n", name, checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition)                                             \
  do {                                                               \
    check::checks++;                                                 \
    if (!(condition)) check::report(__FILE__, __LINE__, #condition); \
  } while (0)

// With a printf-style explanation of the case.
#define CHECK_CASE(condition, ...)                   \
  do {                                               \
    check::checks++;                                 \
    if (!(condition)) {                              \
      check::report(__FILE__, __LINE__, #condition); \
      if (check::failures <= 20) {                   \
        std::printf("  ");                           \
        std::printf(__VA_ARGS__);                    \
        std::printf("\n");                           \
      }                                              \
    }                                                \
  } while (0)
