// What a warp does together for its tensor cores: ldmatrix and mma, put together from values that lanes show each
// other; and the asynchronous copies of threads.
#include <cstring>
#include <vector>

#include "simt.h"

namespace simt {
namespace {

constexpr int kWarp = 32;

float bf16_value(uint32_t pair, int half) {
  const uint32_t wide = half == 0 ? pair << 16 : pair & 0xffff0000u;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

struct AsyncCopy {
  void* to;
  const void* from;
  bool valid;
};
struct Copies {
  std::vector<AsyncCopy> open;                 // of the group that is being collected
  std::vector<std::vector<AsyncCopy>> groups;  // committed, not landed
};
std::vector<Copies> copies;  // of each thread

Copies& own_copies() { return copies[static_cast<size_t>(thread_of_block())]; }

}  // namespace

void begin_copies(int threads) {
  if (copies.size() < static_cast<size_t>(threads)) copies.resize(static_cast<size_t>(threads));
  for (Copies& of_thread : copies) {
    of_thread.open.clear();
    of_thread.groups.clear();
  }
}

bool copies_left(int thread) {
  const Copies& of_thread = copies[static_cast<size_t>(thread)];
  return !of_thread.open.empty() || !of_thread.groups.empty();
}

void cp_async16(void* shared, const void* global, bool valid) {
  const auto misaligned = [](const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) != 0; };
  if (misaligned(shared) || (valid && misaligned(global))) fault("cp.async of 16 bytes at a misaligned address");
  own_copies().open.push_back({shared, global, valid});
}

void cp_async_commit() {
  own_copies().groups.push_back(std::move(own_copies().open));
  own_copies().open.clear();
}

void cp_async_wait(int pending) {
  auto& groups = own_copies().groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    for (const AsyncCopy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) & 15) fault("ldmatrix of a misaligned row");
  const unsigned char* rows[kWarp];
  gather_bytes(&row, sizeof(row), rows);
  const int l = lane();
  for (int matrix = 0; matrix < 4; matrix++) {
    uint16_t pair[2];
    for (int half = 0; half < 2; half++) {
      const int i = transposed ? l % 4 * 2 + half : l / 4;
      const int j = transposed ? l / 4 : l % 4 * 2 + half;
      std::memcpy(&pair[half], rows[matrix * 8 + i] + j * 2, 2);
    }
    r[matrix] = static_cast<uint32_t>(pair[0]) | static_cast<uint32_t>(pair[1]) << 16;
  }
}

// One lane multiplies for all: every operand is widened once, and the others wait.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
  } own{d, a, b}, all[kWarp];
  gather_bytes(&own, sizeof(own), all);
  if (lane() == 0) {
    float left[16][16], right[8][16];
    for (int l = 0; l < kWarp; l++) {
      const int group = l / 4, k = l % 4 * 2;
      for (int half = 0; half < 2; half++) {
        for (int quarter = 0; quarter < 4; quarter++) {
          // a0: rows 0-7, k 0-7; a1: rows 8-15, k 0-7; a2: rows 0-7, k 8-15; a3: rows 8-15, k 8-15.
          left[group + quarter % 2 * 8][k + half + quarter / 2 * 8] = bf16_value(all[l].a[quarter], half);
        }
        for (int upper = 0; upper < 2; upper++) right[group][k + half + upper * 8] = bf16_value(all[l].b[upper], half);
      }
    }
    for (int l = 0; l < kWarp; l++) {
      for (int i = 0; i < 4; i++) {
        const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += left[row][k] * right[column][k];
        all[l].d[i] += sum;
      }
    }
  }
  warp_barrier(0xffffffffu);
}

}  // namespace simt
