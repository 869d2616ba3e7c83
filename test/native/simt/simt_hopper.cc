#include "simt_hopper.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

namespace simt {
namespace {

constexpr int kWarp = 32, kWarpsOfGroup = 4, kMostWarps = 32;
/** Where dynamic shared memory begins in its window: no better aligned than a kernel may count on. */
constexpr unsigned kWindow = 0x480;

unsigned char* shared_pointer(unsigned address, size_t bytes, const char* what) {
  if (address < kWindow || address - kWindow + bytes > dynamic_shared_bytes()) {
    fault("%s reads or writes at shared address 0x%x, outside the block's memory", what, address);
  }
  return static_cast<unsigned char*>(dynamic_shared()) + (address - kWindow);
}

/** The 128-byte swizzle: bits 4 to 6 of an address, combined by XOR with bits 7 to 9. */
unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7u) << 4; }

float value_of(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

}  // namespace

unsigned shared_address(const void* p) {
  const auto offset = static_cast<const unsigned char*>(p) - static_cast<unsigned char*>(dynamic_shared());
  if (offset < 0 || static_cast<size_t>(offset) > dynamic_shared_bytes()) {
    fault("the address of something that is not in dynamic shared memory");
  }
  return kWindow + static_cast<unsigned>(offset);
}

// ---- barriers in shared memory --------------------------------------------------------------------------------------

namespace {

constexpr unsigned kMade = 0x5a;
constexpr int kMostArrivals = 255, kMostBytes = (1 << 20) - 1;

/** What the 64 bits are, opaque to a kernel. */
struct BarrierState {
  int32_t bytes;     // that have yet to come in this phase; negative when they came first
  uint8_t arrivals;  // that have yet to come
  uint8_t of_phase;  // arrivals of a whole phase
  uint8_t parity;    // of the phase under way
  uint8_t made;
};
static_assert(sizeof(BarrierState) == sizeof(uint64_t));

BarrierState& state_of(const uint64_t* barrier) {
  shared_pointer(shared_address(barrier), sizeof(uint64_t), "mbarrier");
  if (shared_address(barrier) % 8 != 0) fault("a misaligned mbarrier");
  return *reinterpret_cast<BarrierState*>(const_cast<uint64_t*>(barrier));
}

BarrierState& made_state_of(const uint64_t* barrier) {
  BarrierState& state = state_of(barrier);
  if (state.made != kMade) fault("an mbarrier that was never initialised");
  return state;
}

void end_phase_if_complete(BarrierState& state) {
  if (state.arrivals != 0 || state.bytes != 0) return;
  state.parity ^= 1;
  state.arrivals = state.of_phase;
}

struct PhaseOver final : Condition {
  const BarrierState* state;
  unsigned parity;
  PhaseOver(const BarrierState* s, unsigned p) : state(s), parity(p) {}
  bool holds() const override { return state->parity != parity; }
};

}  // namespace

void mbarrier_init(uint64_t* barrier, int arrivals) {
  if (arrivals < 1 || arrivals > kMostArrivals) fault("an mbarrier of %d arrivals", arrivals);
  const auto count = static_cast<uint8_t>(arrivals);
  state_of(barrier) = {0, count, count, 0, kMade};
}

void mbarrier_arrive(uint64_t* barrier, int bytes) {
  BarrierState& state = made_state_of(barrier);
  if (state.arrivals == 0) fault("an arrival too many at an mbarrier");
  if (bytes < 0 || state.bytes + bytes > kMostBytes) fault("an mbarrier that expects %d bytes", state.bytes + bytes);
  state.bytes += bytes;
  state.arrivals--;
  end_phase_if_complete(state);
  if (bytes == 0 && !lands_late()) step_aside();
}

void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  if (parity > 1) fault("an mbarrier has no parity %u", parity);
  park(PhaseOver(&made_state_of(barrier), parity));
}

// ---- named barriers and registers -----------------------------------------------------------------------------------

namespace {

struct NamedBarrier {
  int threads = 0, arrived = 0;
  unsigned rounds = 0;
};
struct RoundOver final : Condition {
  const NamedBarrier* barrier;
  unsigned round;
  RoundOver(const NamedBarrier* b, unsigned r) : barrier(b), round(r) {}
  bool holds() const override { return barrier->rounds != round; }
};

NamedBarrier named[16];
int registers[kMostWarps];

}  // namespace

void named_barrier(int id, int threads) {
  warp_barrier(0xffffffffu);
  if (id < 0 || id > 15) fault("there is no barrier %d", id);
  NamedBarrier& barrier = named[id];
  if (threads < kWarp || threads % kWarp != 0) fault("a barrier of %d threads, not whole warps", threads);
  if (barrier.arrived > 0 && barrier.threads != threads) {
    fault("barrier %d of %d threads, which others take for one of %d", id, threads, barrier.threads);
  }
  barrier.threads = threads;
  const RoundOver over(&barrier, barrier.rounds);
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.rounds++;
    return;
  }
  park(over);
}

void set_registers(int count) {
  warp_barrier(0xffffffffu);
  if (count < 24 || count > 256 || count % 8 != 0) fault("setmaxnreg of %d registers", count);
  registers[warp()] = count;
}

// ---- the copy engine ------------------------------------------------------------------------------------------------

namespace {

constexpr cuuint64_t kMapMark = 0x70616d726f736e74ull;
struct TensorMap {
  cuuint64_t mark;
  const unsigned char* data;
  int64_t columns, rows, stride;  // stride in bytes
  int box_columns, box_rows;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

/** Checked when it is asked for: it may land when no thread runs that could be told. */
struct Copy {
  unsigned to;
  TensorMap map;
  int column, row;
  BarrierState* done;
};
std::deque<Copy> copies;

void land(const Copy& copy) {
  const TensorMap& map = copy.map;
  const int row_bytes = map.box_columns * 2;
  for (int r = 0; r < map.box_rows; r++) {
    for (int c = 0; c < map.box_columns; c++) {
      const int64_t row = int64_t{copy.row} + r, column = int64_t{copy.column} + c;
      const bool inside = row >= 0 && row < map.rows && column >= 0 && column < map.columns;
      unsigned char* to = static_cast<unsigned char*>(dynamic_shared()) +
                          (swizzled(copy.to + static_cast<unsigned>(r * row_bytes + c * 2)) - kWindow);
      if (inside) {
        std::memcpy(to, map.data + row * map.stride + column * 2, 2);
      } else {
        std::memset(to, 0, 2);
      }
    }
  }
  copy.done->bytes -= map.box_rows * row_bytes;
  end_phase_if_complete(*copy.done);
}

}  // namespace

void bulk_tensor_2d(void* to, const CUtensorMap* map, int column, int row, uint64_t* done) {
  Copy copy{shared_address(to), {}, column, row, &made_state_of(done)};
  std::memcpy(&copy.map, map, sizeof(TensorMap));
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) fault("a misaligned tensor map");
  if (copy.map.mark != kMapMark) fault("a tensor map that the driver has not written");
  if (copy.to % 128 != 0) fault("a bulk copy to shared address 0x%x, not a multiple of 128", copy.to);
  shared_pointer(copy.to, static_cast<size_t>(copy.map.box_rows * copy.map.box_columns * 2), "a bulk copy");
  if (lands_late()) {
    copies.push_back(copy);
  } else {
    land(copy);
  }
}

bool land_copy() {
  if (copies.empty()) return false;
  const Copy copy = copies.back();
  copies.pop_back();
  land(copy);
  return true;
}

// ---- products of warpgroups -----------------------------------------------------------------------------------------

namespace {

/** An instruction, the same in all four warps of a warpgroup. */
struct Instruction {
  bool a_is_shared;
  uint64_t a, b;  // a: where it is shared
  bool accumulate, transposed;
  bool operator==(const Instruction&) const = default;
};
/** What one warp has to do of it. */
struct Product {
  Instruction instruction;
  float* d[kWarp];
  const uint32_t* a[kWarp];
};
struct WarpProducts {
  bool fenced = false;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  size_t issued = 0;
};
WarpProducts products[kMostWarps];
std::vector<Instruction> issued[kMostWarps / kWarpsOfGroup];

/** Descriptor fields, in bytes. The leading dimension's is for operands of more than 64 columns in N, or without
 *  swizzle. */
struct Descriptor {
  unsigned start = 0, stride = 0;
};
Descriptor decoded(uint64_t bits, bool is_k_major) {
  if (bits >> 62 != 1) fault("a matrix descriptor with another swizzle than that of 128 bytes: not emulated");
  if ((bits >> 49 & 7) != 0) fault("a matrix descriptor with a base offset: not emulated");
  constexpr uint64_t kUnused = 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52;
  if ((bits & kUnused) != 0)
    fault("a matrix descriptor with reserved bits set: 0x%llx", static_cast<unsigned long long>(bits));
  const auto field = [&](int shift) { return static_cast<unsigned>(bits >> shift & 0x3fff) << 4; };
  if ((field(0) >> 7 & 7) != 0) fault("a matrix that does not begin with a row of its swizzle's pattern");
  if (is_k_major && field(0) % 128 > 128 - 32) fault("sixteen k that do not lie in one row of 128 bytes");
  return {field(0), field(32)};
}

float element(unsigned address) {
  uint16_t bits;
  std::memcpy(&bits, shared_pointer(swizzled(address), 2, "wgmma"), 2);
  return value_of(bits);
}

/** b[k][n] as the descriptor says. K-major: a row of 128 bytes for each n, its k side by side, eight rows to a swizzle
 *  atom, atoms `stride` apart. N-major: a row of 128 bytes for each k, 64 n side by side, eight k to an atom, atoms of
 *  further k `stride` apart. */
void load_right(const Instruction& instruction, float (&b)[16][64]) {
  const Descriptor at = decoded(instruction.b, !instruction.transposed);
  for (unsigned k = 0; k < 16; k++) {
    for (unsigned n = 0; n < 64; n++) {
      b[k][n] = element(at.start + (instruction.transposed ? k / 8 * at.stride + k % 8 * 128 + n * 2
                                                           : n / 8 * at.stride + n % 8 * 128 + k * 2));
    }
  }
}

/** The sixteen rows of a warp of a: of those in registers, a[0] holds rows 0-7, k 0-7, a[1] rows 8-15, a[2] and a[3]
 *  k 8-15; lane row % 8 * 4 + k % 8 / 2 holds two of them. */
void load_left(const Product& product, float (&a)[16][16]) {
  const bool is_shared = product.instruction.a_is_shared;
  const Descriptor at = is_shared ? decoded(product.instruction.a, true) : Descriptor{};
  for (unsigned row = 0; row < 16; row++) {
    for (unsigned k = 0; k < 16; k++) {
      if (is_shared) {
        const unsigned m = static_cast<unsigned>(warp() % kWarpsOfGroup) * 16 + row;
        a[row][k] = element(at.start + m / 8 * at.stride + m % 8 * 128 + k * 2);
      } else {
        const uint32_t pair = product.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
        a[row][k] = value_of(static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16));
      }
    }
  }
}

/** CARAVAN_SIMT_WGMMA=backwards: a GPU whose two kinds of products round differently. */
bool sums_backwards() {
  static const bool wanted = [] {
    const char* value = std::getenv("CARAVAN_SIMT_WGMMA");
    return value != nullptr && std::strcmp(value, "backwards") == 0;
  }();
  return wanted;
}

/** Sums are those of the emulated mma. */
void multiply(const Product& product) {
  float a[16][16], b[16][64];
  load_left(product, a);
  load_right(product.instruction, b);
  const bool backwards = sums_backwards();
  for (int row = 0; row < 16; row++) {
    float sums[64] = {};
    for (int i = 0; i < 16; i++) {
      const int k = backwards ? 15 - i : i;
      for (int n = 0; n < 64; n++) sums[n] += a[row][k] * b[k][n];
    }
    for (int n = 0; n < 64; n++) {
      float& d = product.d[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
      d = product.instruction.accumulate ? d + sums[n] : sums[n];
    }
  }
}

void issue(const Instruction& instruction, float* d, const uint32_t* a) {
  struct Operands {
    Instruction instruction;
    float* d;
    const uint32_t* a;
  };
  const Operands own{instruction, d, a};
  Operands all[kWarp];
  gather_bytes(&own, sizeof(own), all);
  WarpProducts& of_warp = products[warp()];
  if (!of_warp.fenced) fault("wgmma whose registers no wgmma.fence has ordered");
  if (!(all[0].instruction == instruction)) fault("wgmma with other operands than the rest of the warp");
  if (lane() != 0) return;
  std::vector<Instruction>& of_group = issued[warp() / kWarpsOfGroup];
  if (of_warp.issued == of_group.size()) of_group.push_back(instruction);
  if (!(of_group[of_warp.issued++] == instruction)) {
    fault("wgmma with other operands than another warp of the warpgroup");
  }
  Product product{instruction, {}, {}};
  for (int l = 0; l < kWarp; l++) {
    product.d[l] = all[l].d;
    product.a[l] = all[l].a;
  }
  of_warp.open.push_back(product);
}

}  // namespace

void wgmma_fence() {
  warp_barrier(0xffffffffu);
  products[warp()].fenced = true;
}

void wgmma_m64n64k16_bf16(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate, bool transposed) {
  issue({false, 0, b, accumulate, transposed}, d, a);
}

void wgmma_m64n64k16_bf16_shared(float* d, uint64_t a, uint64_t b, bool accumulate) {
  issue({true, a, b, accumulate, false}, d, nullptr);
}

void wgmma_commit() {
  warp_barrier(0xffffffffu);
  if (lane() != 0) return;
  WarpProducts& of_warp = products[warp()];
  of_warp.groups.push_back(std::move(of_warp.open));
  of_warp.open.clear();
}

// One lane multiplies for all.
void wgmma_wait(int pending) {
  warp_barrier(0xffffffffu);
  WarpProducts& of_warp = products[warp()];
  if (lane() == 0) {
    while (of_warp.groups.size() > static_cast<size_t>(pending)) {
      for (const Product& product : of_warp.groups.front()) multiply(product);
      of_warp.groups.pop_front();
    }
    of_warp.fenced = false;
  }
  warp_barrier(0xffffffffu);
}

// ---- for the scheduler ----------------------------------------------------------------------------------------------

void begin_hopper_block() {
  copies.clear();
  for (NamedBarrier& barrier : named) barrier = NamedBarrier{};
  for (WarpProducts& of_warp : products) of_warp = WarpProducts{};
  for (std::vector<Instruction>& of_group : issued) of_group.clear();
  std::fill(registers, registers + kMostWarps, 0);
}

const char* left_undone() {
  constexpr int kRegisters = 64 << 10;
  if (!copies.empty()) return "a block ended with bulk copies under way";
  int given = 0;
  for (int w = 0; w < kMostWarps; w++) {
    if (!products[w].open.empty() || !products[w].groups.empty()) return "a block ended with products under way";
    if (products[w].issued != issued[w / kWarpsOfGroup].size()) return "wgmma by a part of a warpgroup";
    if (registers[w] != registers[w / kWarpsOfGroup * kWarpsOfGroup]) return "setmaxnreg by a part of a warpgroup";
    given += registers[w] * kWarp;
  }
  return given > kRegisters ? "setmaxnreg: more registers than a multiprocessor has" : nullptr;
}

}  // namespace simt

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  const bool emulated = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 && rank == 2 &&
                        interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
                        fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE && steps[0] == 1 && steps[1] == 1 && box[0] == 64;
  bool legal = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0 &&
               strides[0] % 16 == 0 && strides[0] < cuuint64_t{1} << 40 && strides[0] >= sizes[0] * 2;
  for (int i = 0; i < 2; i++) {
    legal = legal && sizes[i] >= 1 && sizes[i] <= cuuint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256;
  }
  if (!emulated || !legal) return CUDA_ERROR_INVALID_VALUE;
  const simt::TensorMap made{simt::kMapMark,
                             static_cast<const unsigned char*>(address),
                             static_cast<int64_t>(sizes[0]),
                             static_cast<int64_t>(sizes[1]),
                             static_cast<int64_t>(strides[0]),
                             static_cast<int>(box[0]),
                             static_cast<int>(box[1])};
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &made, sizeof(made));
  return CUDA_SUCCESS;
}
