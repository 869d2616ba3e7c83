#include "simt.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt_hopper.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CARAVAN_SIMT_ASAN 1
#else
#define CARAVAN_SIMT_ASAN 0
#endif

// Saves the callee-saved registers of the running fiber and continues another one where it stopped.
extern "C" void caravan_simt_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl caravan_simt_switch
.hidden caravan_simt_switch
.type caravan_simt_switch,@function
caravan_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size caravan_simt_switch,.-caravan_simt_switch
)");
#else
#error "the SIMT harness has a context switch for x86-64 only"
#endif

namespace simt {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = CARAVAN_SIMT_ASAN ? 512 << 10 : 128 << 10;
constexpr size_t kMostValueBytes = 64;

enum class State { kReady, kWarpBarrier, kBlockBarrier, kParked, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // from its first step to its last, unless the next thread inherits it
  State state = State::kDone;
  unsigned mask = 0;
  const Condition* condition = nullptr;  // while parked
  Index thread;
  int parity = 0;
};

/** Values that the lanes of one warp show each other: two buffers in turns for full warps, one for parts of warps. */
struct Warp {
  alignas(16) unsigned char values[3][kWarp][kMostValueBytes];
};

struct Grid {
  std::vector<Fiber> fibers;
  std::vector<char*> free_stacks;  // the last one is the warmest
  std::vector<Warp> warps;
  void* scheduler = nullptr;
  int running = 0;
  int count = 0;
  const Body* body = nullptr;
  std::vector<unsigned char> shared;
  std::string failure;
  Order order = Order::kForward;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
};

Grid grid;
std::mutex one_launch;

Fiber& self() { return grid.fibers[static_cast<size_t>(grid.running)]; }
Warp& own_warp() { return grid.warps[static_cast<size_t>(grid.running / kWarp)]; }

/** Leaves `fiber` for the scheduler or for another fiber, and comes back when it goes on. */
void leave(Fiber& fiber, void* to, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t stack_bytes) {
#if CARAVAN_SIMT_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(fiber.state == State::kDone ? nullptr : &fake, stack, stack_bytes);
#endif
  caravan_simt_switch(&fiber.stack_pointer, to);
#if CARAVAN_SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void to_scheduler() { leave(self(), grid.scheduler, grid.main_stack, grid.main_stack_bytes); }

/** The lane that the scheduler would start after the running one has ended, or -1: none, or one that goes on. */
int next_to_start() {
  const int lane = grid.order == Order::kForward ? grid.running + 1 : grid.running - 1;
  if (lane < 0 || lane >= grid.count || lane / kWarp != grid.running / kWarp || !grid.failure.empty()) return -1;
  const Fiber& fiber = grid.fibers[static_cast<size_t>(lane)];
  return fiber.state == State::kReady && fiber.stack == nullptr ? lane : -1;
}

/** What a stack does: run a thread and, where that one never had to wait, the next one. Kernels without barriers so
 *  cost a call for each thread and not two switches. */
void fiber_main() {
#if CARAVAN_SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &grid.main_stack, &grid.main_stack_bytes);
#endif
  for (;;) {
    (*grid.body)();
    Fiber& fiber = self();
    if (copies_left(grid.running)) grid.failure = "a thread ended with asynchronous copies under way";
    fiber.state = State::kDone;
    const int next = next_to_start();
    if (next < 0) break;
    Fiber& heir = grid.fibers[static_cast<size_t>(next)];
    heir.stack = fiber.stack;
    fiber.stack = nullptr;
    grid.running = next;
    place.thread = heir.thread;
  }
  to_scheduler();
  std::abort();
}

void give_stack(Fiber& fiber) {
  if (grid.free_stacks.empty()) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stack of a thread");
    grid.free_stacks.push_back(static_cast<char*>(memory));
  }
  fiber.stack = grid.free_stacks.back();
  grid.free_stacks.pop_back();
#if CARAVAN_SIMT_ASAN
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // frames that the last thread on it never left
#endif
  // The frame that caravan_simt_switch pops: six registers, the entry, and a return address of none, 8 bytes off a
  // multiple of 16 as after a call.
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int r = 0; r < 6; r++) *--top = nullptr;
  fiber.stack_pointer = top;
}

void take_stack(Fiber& fiber) {
  if (fiber.stack != nullptr) grid.free_stacks.push_back(fiber.stack);
  fiber.stack = nullptr;
}

void resume(int index) {
  Fiber& fiber = grid.fibers[static_cast<size_t>(index)];
  if (fiber.stack == nullptr) give_stack(fiber);
  grid.running = index;
  place.thread = fiber.thread;
#if CARAVAN_SIMT_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
  caravan_simt_switch(&grid.scheduler, fiber.stack_pointer);
#if CARAVAN_SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  if (self().state == State::kDone) take_stack(self());
}

void prepare(Fiber& fiber, const Index& thread) {
  if (fiber.stack != nullptr) take_stack(fiber);  // of a launch that ended with a fault
  fiber.thread = thread;
  fiber.state = State::kReady;
  fiber.parity = 0;
}

void prepare_block(const Index& block) {
  Fiber* fiber = grid.fibers.data();
  for (unsigned z = 0; z < block.z; z++) {
    for (unsigned y = 0; y < block.y; y++) {
      for (unsigned x = 0; x < block.x; x++) prepare(*fiber++, {x, y, z});
    }
  }
}

/** Opens the warp barriers whose lanes have all arrived; true if one opened. */
bool open_warp_barriers(int first, int end) {
  bool opened = false;
  for (int lane = first; lane < end; lane++) {
    Fiber& fiber = grid.fibers[static_cast<size_t>(lane)];
    if (fiber.state != State::kWarpBarrier) continue;
    const unsigned mask = fiber.mask;
    bool complete = true;
    for (int other = first; other < end; other++) {
      if ((mask >> (other - first) & 1u) == 0) continue;
      const Fiber& partner = grid.fibers[static_cast<size_t>(other)];
      complete = complete && partner.state == State::kWarpBarrier && partner.mask == mask;
    }
    if (!complete) continue;
    for (int other = first; other < end; other++) {
      if (mask >> (other - first) & 1u) grid.fibers[static_cast<size_t>(other)].state = State::kReady;
    }
    opened = true;
  }
  return opened;
}

struct Lanes {
  int first, end;
};

Lanes lanes_of(int warp) {
  const int first = warp * kWarp;
  return {first, first + kWarp < grid.count ? first + kWarp : grid.count};
}

/** The first lane that is ready after `lane` in the order of the launch, or -1. */
int ready_after(int lane, const Lanes& lanes) {
  const int step = grid.order == Order::kForward ? 1 : -1;
  for (lane += step; lane >= lanes.first && lane < lanes.end; lane += step) {
    if (grid.fibers[static_cast<size_t>(lane)].state == State::kReady) return lane;
  }
  return -1;
}

int first_ready(const Lanes& lanes) {
  return ready_after(grid.order == Order::kForward ? lanes.first - 1 : lanes.end, lanes);
}

/** Who goes on when the running lane waits: the lanes go round, and after a round the barriers to which all have come
 *  open. -1: all have ended or wait for the block. */
int next_lane() {
  const Lanes lanes = lanes_of(grid.running / kWarp);
  const int lane = ready_after(grid.running, lanes);
  if (lane >= 0 || !open_warp_barriers(lanes.first, lanes.end)) return lane;
  return first_ready(lanes);
}

/** Runs the lanes of one warp until all have ended or wait at the block barrier. */
void run_warp(int warp) {
  int lane = first_ready(lanes_of(warp));
  while (lane >= 0 && grid.failure.empty()) {
    resume(lane);
    lane = next_lane();
  }
}

std::string place_text() {
  const Place& at = place;
  char text[160];
  std::snprintf(text, sizeof(text), "block (%u,%u,%u) thread (%u,%u,%u)", at.block.x, at.block.y, at.block.z,
                at.thread.x, at.thread.y, at.thread.z);
  return text;
}

/** Lets the parked threads go on whose condition holds by now; true if there was one. */
bool wake_parked() {
  bool any = false;
  for (int i = 0; i < grid.count; i++) {
    Fiber& fiber = grid.fibers[static_cast<size_t>(i)];
    if (fiber.state != State::kParked || !fiber.condition->holds()) continue;
    fiber.state = State::kReady;
    any = true;
  }
  return any;
}

/** Opens the block barrier if every living thread waits at it; false if a thread is somewhere else. */
bool open_block_barrier() {
  bool any = false;
  for (int i = 0; i < grid.count; i++) {
    const State state = grid.fibers[static_cast<size_t>(i)].state;
    if (state == State::kWarpBarrier || state == State::kParked) {
      grid.running = i;
      place.thread = grid.fibers[static_cast<size_t>(i)].thread;
      grid.failure =
          state == State::kParked
              ? "deadlock: " + place_text() + " waits for a barrier that nobody completes"
              : "divergent warp barrier or collective: " + place_text() + " waits for lanes that do not come";
      return false;
    }
    any = any || state == State::kBlockBarrier;
  }
  if (!any) return false;
  for (int i = 0; i < grid.count; i++) {
    Fiber& fiber = grid.fibers[static_cast<size_t>(i)];
    if (fiber.state == State::kDone) {
      grid.failure = "divergent __syncthreads: in " + place_text() + " some threads ended before others came to it";
      return false;
    }
  }
  for (int i = 0; i < grid.count; i++) grid.fibers[static_cast<size_t>(i)].state = State::kReady;
  return true;
}

void run_block(const Index& block) {
  prepare_block(block);
  begin_copies(grid.count);
  begin_hopper_block();
  if (!grid.shared.empty()) std::memset(grid.shared.data(), 0xcb, grid.shared.size());
  const int warps = (grid.count + kWarp - 1) / kWarp;
  do {
    for (int i = 0; i < warps; i++) {
      run_warp(grid.order == Order::kForward ? i : warps - 1 - i);
      if (!grid.failure.empty()) return;
    }
  } while (wake_parked() || land_copy() || open_block_barrier());
  const char* undone = left_undone();
  if (grid.failure.empty() && undone != nullptr) grid.failure = undone;
}

/** Waits, and lets the next lane go on at once where it has been started: half the switches of a way round by the
 *  scheduler, and most of what an emulated kernel costs. */
void wait_here(State state, unsigned mask) {
  Fiber& fiber = self();
  const int own = grid.running;
  fiber.state = state;
  fiber.mask = mask;
  const int lane = next_lane();
  if (lane == own) return;
  if (lane < 0 || grid.fibers[static_cast<size_t>(lane)].stack == nullptr) return to_scheduler();
  Fiber& next = grid.fibers[static_cast<size_t>(lane)];
  grid.running = lane;
  place.thread = next.thread;
  leave(fiber, next.stack_pointer, next.stack, kStackBytes);
}

unsigned existing_lanes() {
  const int first = grid.running / kWarp * kWarp;
  const int lanes = grid.count - first < kWarp ? grid.count - first : kWarp;
  return lanes == kWarp ? 0xffffffffu : (1u << lanes) - 1;
}

/** CARAVAN_SIMT_ORDER: forward, reverse, or mixed, which is one of the two for each launch. */
Order order_of_launch() {
  const char* wanted = std::getenv("CARAVAN_SIMT_ORDER");
  static unsigned launches = 0;
  if (wanted == nullptr || std::strcmp(wanted, "forward") == 0) return Order::kForward;
  if (std::strcmp(wanted, "reverse") == 0) return Order::kReverse;
  return (launches++ * 0x9e3779b9u) >> 31 ? Order::kReverse : Order::kForward;
}

/** Most values are of four or eight bytes, for which a call of memcpy costs more than the copy. */
inline void copy_value(void* to, const void* from, size_t bytes) {
  if (bytes == 4) {
    std::memcpy(to, from, 4);
  } else if (bytes == 8) {
    std::memcpy(to, from, 8);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace

void* dynamic_shared() { return grid.shared.data(); }
size_t dynamic_shared_bytes() { return grid.shared.size(); }
int lane() { return grid.running % kWarp; }
int warp() { return grid.running / kWarp; }
int thread_of_block() { return grid.running; }
bool lands_late() { return grid.order == Order::kForward; }

void run(const Index& size, const Index& block, size_t shared_bytes, const Body& body) {
  std::lock_guard<std::mutex> lock(one_launch);
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
  if (size.x == 0 || size.y == 0 || size.z == 0) throw std::runtime_error("a grid has at least one block");
  if (size.y > 65535 || size.z > 65535) throw std::runtime_error("a grid has at most 65535 blocks in y and z");
  if (shared_bytes > 227 << 10) throw std::runtime_error("a block has at most 227 KiB of shared memory");
  grid.order = order_of_launch();
  grid.count = static_cast<int>(threads);
  if (grid.fibers.size() < threads) grid.fibers.resize(threads);
  if (grid.warps.size() < (threads + 31) / 32) grid.warps.resize((threads + 31) / 32);
  std::vector<unsigned char>(shared_bytes).swap(grid.shared);
  grid.body = &body;
  grid.failure.clear();
  place.block_size = block;
  place.grid_size = size;
  for (unsigned z = 0; z < size.z; z++) {
    for (unsigned y = 0; y < size.y; y++) {
      for (unsigned x = 0; x < size.x; x++) {
        place.block = {x, y, z};
        run_block(block);
        if (!grid.failure.empty()) throw std::runtime_error(grid.failure);
      }
    }
  }
}

void fault(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  grid.failure = place_text() + ": " + text;
  self().state = State::kDone;
  to_scheduler();
  std::abort();
}

void block_barrier() { wait_here(State::kBlockBarrier, 0); }

void step_aside() {
  struct Always final : Condition {
    bool holds() const override { return true; }
  };
  const Always turn;
  self().condition = &turn;
  wait_here(State::kParked, 0);
}

void park(const Condition& condition) {
  if (condition.holds()) return;
  self().condition = &condition;
  wait_here(State::kParked, 0);
}

void warp_barrier(unsigned mask) {
  mask &= existing_lanes();
  if ((mask >> lane() & 1u) == 0) fault("a lane takes part in a collective whose mask %08x does not name it", mask);
  wait_here(State::kWarpBarrier, mask);
}

void exchange_bytes(unsigned mask, const void* value, size_t bytes, int from, void* out) {
  if (bytes > kMostValueBytes) fault("a shuffle of %zu bytes", bytes);
  const unsigned lanes = mask & existing_lanes();
  if (from < 0 || from >= kWarp || (lanes >> from & 1u) == 0) {
    fault("a shuffle reads lane %d, which is not in its mask %08x", from, lanes);
  }
  // Full warps change buffers, so that the next collective cannot overwrite what a slow lane has yet to read.
  const bool whole = lanes == existing_lanes();
  const int buffer = whole ? (self().parity ^= 1) : 2;
  copy_value(own_warp().values[buffer][lane()], value, bytes);
  warp_barrier(mask);
  copy_value(out, own_warp().values[buffer][from], bytes);
  if (!whole) warp_barrier(mask);
}

void gather_bytes(const void* value, size_t bytes, void* all) {
  if (bytes > kMostValueBytes) fault("a collective of %zu bytes", bytes);
  const int buffer = self().parity ^= 1;
  copy_value(own_warp().values[buffer][lane()], value, bytes);
  warp_barrier(0xffffffffu);
  for (int i = 0; i < kWarp; i++) {
    copy_value(static_cast<char*>(all) + static_cast<size_t>(i) * bytes, own_warp().values[buffer][i], bytes);
  }
}

unsigned ballot(unsigned mask, bool flag) {
  const unsigned lanes = mask & existing_lanes();
  const bool whole = lanes == existing_lanes();
  const int buffer = whole ? (self().parity ^= 1) : 2;
  own_warp().values[buffer][lane()][0] = flag;
  warp_barrier(mask);
  unsigned result = 0;
  for (int i = 0; i < kWarp; i++) {
    if ((lanes >> i & 1u) && own_warp().values[buffer][i][0]) result |= 1u << i;
  }
  if (!whole) warp_barrier(mask);
  return result;
}

}  // namespace simt
