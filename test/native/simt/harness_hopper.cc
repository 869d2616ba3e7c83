// Compute capability 9.0 as the harness emulates it, against layouts worked out by hand from the PTX ISA, and with one
// fault each.
#include <cuda.h>

#include <cstring>
#include <vector>

#include "harness.h"
#include "simt_hopper.h"

namespace {

constexpr size_t kTileBytes = 64 * 128, kShared = 1024 + 2 * kTileBytes + 256;

/** A place in shared memory whose address in the window is a multiple of 1024. */
unsigned char* aligned_tile() {
  unsigned char* memory = static_cast<unsigned char*>(simt::dynamic_shared());
  return memory + (-simt::shared_address(memory) & 1023u);
}
uint64_t* barrier_at(int i) { return reinterpret_cast<uint64_t*>(aligned_tile() + 2 * kTileBytes) + i; }

/** Where element (row, column) of a tile of 64 columns lies: eight elements to a chunk, chunk c of row r in place
 *  c XOR r % 8. */
int place_in_tile(int row, int column) { return row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2; }

uint16_t bf16_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}
void put(unsigned char* tile, int row, int column, float x) {
  const uint16_t bits = bf16_of(x);
  std::memcpy(tile + place_in_tile(row, column), &bits, 2);
}

void places() {
  CHECK(place_in_tile(0, 0) == 0 && place_in_tile(1, 0) == 144 && place_in_tile(5, 9) == 706);
  CHECK(place_in_tile(63, 63) == 8078 && place_in_tile(8, 8) == 1040);
}

// ---- barriers -------------------------------------------------------------------------------------------------------

void shared_barriers() {
  // A phase takes an arrival of each of two warps.
  const auto body = [](int arrivals) {
    return [arrivals] {
      uint64_t* barrier = barrier_at(0);
      if (threadIdx.x == 0) simt::mbarrier_init(barrier, 2);
      __syncthreads();
      simt::mbarrier_wait(barrier, 1);  // the phase before the first has ended
      if (threadIdx.x % 32 == 0) {
        for (int i = 0; i < arrivals; i++) {
          simt::mbarrier_arrive(barrier, 0);
          simt::mbarrier_wait(barrier, static_cast<unsigned>(i & 1));
        }
      }
    };
  };
  for (const char* order : {"forward", "reverse"}) {
    CHECK(outcome(64, order, body(3), kShared).empty());
    CHECK(contains(outcome(96, order, body(2), kShared), "deadlock"));  // one warp too many: its phases never end
  }
  CHECK(contains(outcome(1, "forward", [] { simt::mbarrier_arrive(barrier_at(0), 0); }, kShared), "never initialised"));
  CHECK(contains(outcome(
                     1, "forward",
                     [] {
                       simt::mbarrier_init(barrier_at(0), 1);
                       simt::mbarrier_arrive(barrier_at(0), 16);
                       simt::mbarrier_wait(barrier_at(0), 0);
                     },
                     kShared),
                 "deadlock"));
  CHECK(contains(outcome(
                     1, "forward",
                     [] {
                       simt::mbarrier_init(barrier_at(0), 1);
                       simt::mbarrier_arrive(barrier_at(0), 16);
                       simt::mbarrier_arrive(barrier_at(0), 16);
                     },
                     kShared),
                 "an arrival too many"));
}

void named_barriers() {
  static int order_of_warps[3], come;
  come = 0;
  CHECK(outcome(96, "reverse", [] {
          const int warp = simt::warp();
          if (warp < 2) {
            simt::named_barrier(3, 64);
            if (simt::lane() == 0) order_of_warps[warp] = come++;
          } else if (simt::lane() == 0) {
            order_of_warps[2] = come++;
          }
        }).empty());
  CHECK(order_of_warps[2] == 0 && come == 3);
  CHECK(contains(outcome(96, "forward", [] { simt::named_barrier(3, 64); }), "deadlock"));
  CHECK(contains(outcome(96, "forward", [] { simt::named_barrier(3, simt::warp() == 0 ? 64 : 96); }), "others take"));
  CHECK(contains(outcome(32, "forward", [] { simt::named_barrier(16, 32); }), "no barrier 16"));
  CHECK(contains(outcome(32, "forward", [] { simt::named_barrier(1, 33); }), "not whole warps"));
}

void registers() {
  const auto given = [](int first, int others) {
    return outcome(384, "forward", [first, others] { simt::set_registers(simt::warp() < 4 ? first : others); });
  };
  CHECK(given(40, 232).empty());
  CHECK(contains(given(56, 232), "more registers"));
  CHECK(contains(given(41, 232), "setmaxnreg of 41"));
  CHECK(contains(outcome(128, "forward", [] { simt::set_registers(simt::warp() < 2 ? 40 : 48); }),
                 "part of a warpgroup"));
}

// ---- the copy engine ------------------------------------------------------------------------------------------------

constexpr int kRows = 70, kColumns = 128;
alignas(16) uint16_t matrix[kRows * kColumns];

CUtensorMap map_of(const void* data, cuuint64_t columns, CUresult wanted) {
  CUtensorMap map = {};
  const cuuint64_t sizes[] = {columns, kRows}, strides[] = {columns * 2};
  const cuuint32_t box[] = {64, 64}, steps[] = {1, 1};
  const CUresult result =
      cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == wanted);
  return map;
}

void copies_of_boxes() {
  for (int i = 0; i < kRows * kColumns; i++) matrix[i] = static_cast<uint16_t>(i + 1);
  const CUtensorMap map = map_of(matrix, kColumns, CUDA_SUCCESS);
  map_of(matrix + 1, kColumns, CUDA_ERROR_INVALID_VALUE);
  map_of(matrix, 124, CUDA_ERROR_INVALID_VALUE);
  static std::vector<unsigned char> landed(kTileBytes);
  for (const char* order : {"forward", "reverse"}) {
    const bool late = std::strcmp(order, "forward") == 0;
    CHECK(outcome(
              1, order,
              [&] {
                simt::mbarrier_init(barrier_at(0), 1);
                simt::mbarrier_arrive(barrier_at(0), kTileBytes);
                simt::bulk_tensor_2d(aligned_tile(), &map, 64, 8, barrier_at(0));
                uint16_t first;
                std::memcpy(&first, aligned_tile(), 2);
                if ((first == 8 * kColumns + 64 + 1) == late) simt::fault("landed when it should not");
                simt::mbarrier_wait(barrier_at(0), 0);
                std::memcpy(landed.data(), aligned_tile(), kTileBytes);
              },
              kShared)
              .empty());
    int wrong = 0;
    for (int row = 0; row < 64; row++) {
      for (int column = 0; column < 64; column++) {
        uint16_t found;
        std::memcpy(&found, landed.data() + place_in_tile(row, column), 2);
        wrong += found != (row + 8 < kRows ? (row + 8) * kColumns + column + 64 + 1 : 0);
      }
    }
    CHECK(wrong == 0);
  }
  const auto copied = [&](int offset, bool waits, const CUtensorMap& from) {
    return outcome(
        1, "forward",
        [&, offset, waits] {
          simt::mbarrier_init(barrier_at(0), 1);
          simt::mbarrier_arrive(barrier_at(0), kTileBytes);
          simt::bulk_tensor_2d(aligned_tile() + offset, &from, 0, 0, barrier_at(0));
          if (waits) simt::mbarrier_wait(barrier_at(0), 0);
        },
        kShared);
  };
  CHECK(contains(copied(64, true, map), "not a multiple of 128"));
  CHECK(contains(copied(2 * kTileBytes, true, map), "outside the block's memory"));
  CHECK(contains(copied(0, true, CUtensorMap{}), "the driver has not written"));
  CHECK(copied(0, false, map).empty());  // lands before the block ends, since nothing else is left to do
}

// ---- products of warpgroups -----------------------------------------------------------------------------------------

float left(int row, int k) { return static_cast<float>((row * 3 + k * 5) % 17 - 8); }
float right(int k, int n) { return static_cast<float>((k * 7 + n * 2) % 13 - 6); }

constexpr uint64_t kSwizzle128 = 1ull << 62, kEightRows = 1024ull >> 4 << 32;
uint64_t descriptor(const unsigned char* tile, int offset) {
  return kSwizzle128 | kEightRows | (simt::shared_address(tile) + static_cast<unsigned>(offset)) >> 4;
}

/** The fragment of rows of this thread's warp at k .. k + 16: a[i] holds row lane / 4 + 8 (i % 2), and of k the pair
 *  lane % 4 of the eight i / 2. */
void load_left(uint32_t (&a)[4], int k0) {
  for (int i = 0; i < 4; i++) {
    const int row = simt::warp() * 16 + simt::lane() / 4 + i % 2 * 8, k = k0 + simt::lane() % 4 * 2 + i / 2 * 8;
    a[i] = bf16_of(left(row, k)) | static_cast<uint32_t>(bf16_of(left(row, k + 1))) << 16;
  }
}

float product[64][64];

/** The accumulator: registers in fours for eight columns each; of those, two for row lane / 4, two for that + 8. */
void show(const float (&d)[32]) {
  for (int i = 0; i < 32; i++) {
    const int row = simt::warp() * 16 + simt::lane() / 4 + i / 2 % 2 * 8;
    product[row][i / 4 * 8 + simt::lane() % 4 * 2 + i % 2] = d[i];
  }
}

/** How many elements of the product of `depth` k are wrong. */
int wrong_elements(int depth) {
  int wrong = 0;
  for (int row = 0; row < 64; row++) {
    for (int n = 0; n < 64; n++) {
      float sum = 0;
      for (int k = 0; k < depth; k++) sum += left(row, k) * right(k, n);
      wrong += product[row][n] != sum;
    }
  }
  return wrong;
}

/** d[64,64] = a[64,32] b[32,64], the second sixteen k by accumulation; b lies in a tile with n (K-major) or k in its
 *  rows. */
void multiply(bool transposed) {
  unsigned char* tile = aligned_tile();
  for (int i = static_cast<int>(threadIdx.x); i < 32 * 64; i += 128) {
    const int k = i / 64, n = i % 64;
    put(tile, transposed ? k : n, transposed ? n : k, right(k, n));
  }
  __syncthreads();
  uint32_t a[2][4];
  load_left(a[0], 0);
  load_left(a[1], 16);
  float d[32];
  for (float& x : d) x = 1e6f;
  simt::wgmma_fence();
  simt::wgmma_m64n64k16_bf16(d, a[0], descriptor(tile, 0), false, transposed);
  simt::wgmma_m64n64k16_bf16(d, a[1], descriptor(tile, transposed ? 16 * 128 : 32), true, transposed);
  simt::wgmma_commit();
  if (d[0] != 1e6f) simt::fault("a product ended before its wait");
  simt::wgmma_wait(0);
  show(d);
}

/** The same with a, too, from a tile. */
void multiply_tiles() {
  unsigned char *rows = aligned_tile(), *columns = rows + kTileBytes;
  for (int i = static_cast<int>(threadIdx.x); i < 64 * 32; i += 128) {
    put(rows, i / 32, i % 32, left(i / 32, i % 32));
    put(columns, i / 32, i % 32, right(i % 32, i / 32));
  }
  __syncthreads();
  float d[32];
  simt::wgmma_fence();
  for (int k = 0; k < 32; k += 16) {
    simt::wgmma_m64n64k16_bf16_shared(d, descriptor(rows, k * 2), descriptor(columns, k * 2), k > 0);
  }
  simt::wgmma_commit();
  simt::wgmma_wait(0);
  show(d);
}

void warpgroup_products() {
  for (const bool transposed : {false, true}) {
    CHECK(outcome(128, transposed ? "forward" : "reverse", [=] { multiply(transposed); }, kShared).empty());
    CHECK(wrong_elements(32) == 0);
  }
  CHECK(outcome(128, "reverse", [] { multiply_tiles(); }, kShared).empty() && wrong_elements(32) == 0);
}

enum class Fault {
  kNone,
  kNoFence,
  kNoWait,
  kOtherWarp,
  kHalfGroup,
  kSwizzle,
  kOutside,
  kLate,
  kAcrossRows,
  kInPattern
};

std::string product_with(Fault fault) {
  return outcome(
      128, "forward",
      [fault] {
        unsigned char* tile = aligned_tile();
        if (threadIdx.x == 0) std::memset(tile, 0, kTileBytes);
        __syncthreads();
        uint32_t a[4];
        float d[32];
        load_left(a, 0);
        uint64_t b = descriptor(tile, 0);
        if (fault == Fault::kOtherWarp && simt::warp() == 2) b += 2;
        if (fault == Fault::kSwizzle) b ^= 3ull << 62;
        if (fault == Fault::kOutside) b += (2 * kTileBytes) >> 4;
        if (fault == Fault::kAcrossRows) b += 7;
        if (fault == Fault::kInPattern) b += 8;
        if (fault != Fault::kNoFence) simt::wgmma_fence();
        if (fault != Fault::kHalfGroup || simt::warp() < 2) {
          simt::wgmma_m64n64k16_bf16(d, a, b, false, false);
        }
        simt::wgmma_commit();
        if (fault == Fault::kLate && simt::warp() == 0 && simt::lane() == 0) put(tile, 0, 0, 1.0f);
        if (fault != Fault::kNoWait) simt::wgmma_wait(0);
        if (fault == Fault::kNone && d[0] != 0) simt::fault("not zero");
        if (fault == Fault::kLate && threadIdx.x == 0 && d[0] != left(0, 0)) simt::fault("read too early");
      },
      kShared);
}

void faults_of_products() {
  CHECK(product_with(Fault::kNone).empty());
  CHECK(product_with(Fault::kLate).empty());
  CHECK(contains(product_with(Fault::kNoFence), "no wgmma.fence"));
  CHECK(contains(product_with(Fault::kNoWait), "products under way"));
  CHECK(contains(product_with(Fault::kOtherWarp), "another warp"));
  CHECK(contains(product_with(Fault::kHalfGroup), "part of a warpgroup"));
  CHECK(contains(product_with(Fault::kSwizzle), "not emulated"));
  CHECK(contains(product_with(Fault::kOutside), "outside the block's memory"));
  CHECK(contains(product_with(Fault::kInPattern), "swizzle's pattern"));
  CHECK(contains(product_with(Fault::kAcrossRows), "one row of 128 bytes"));
}

}  // namespace

void hopper_checks() {
  places();
  shared_barriers();
  named_barriers();
  registers();
  copies_of_boxes();
  warpgroup_products();
  faults_of_products();
}
