// The stream of one device: a thread of its own drains commands in the order in which they were written.
// Tensors are integer ids chosen by the writer; storage is allocated and freed here, in stream order, so memory that a
// later command needs may be memory that an earlier one freed. A failure is kept, the commands that depend on it are
// skipped, and the next completion reports it.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "core/types.h"

namespace caravan {

/** The first failure since the last completion. */
struct QueueError {
  std::string code;
  std::string message;
  std::string op;
  int64_t sequence = 0;  // number of the command since the device was opened
};

/** Opcodes of the command stream, one 32-bit word each. `shape` = rank, then the dims; `f64` = two words, low first. */
enum class Command : int32_t {
  kOp = 1,    // op index, inputs, outputs, attrs; input ids (0 = absent); outputs: id (0 = absent), dtype, shape; f64s
  kFree = 2,  // id
  kView = 3,  // id, source id, dtype, element offset (f64), shape
  kAlloc = 4  // id, dtype, shape
};

class CommandQueue {
 public:
  using Completion = std::function<void(const std::optional<QueueError>&)>;

  /** `ops[i]` names the op with index i. */
  CommandQueue(std::unique_ptr<Device> device, std::vector<std::string> ops);
  ~CommandQueue();
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  /** Appends encoded commands. */
  void submit(const int32_t* words, size_t count);
  /** Keeps encoded commands under a number, to be appended by `replay` as often as wanted. */
  void keep_plan(int32_t plan, std::vector<int32_t> words);
  void replay(int32_t plan);
  void forget_plan(int32_t plan);
  /** Copies `bytes` (taken over) into tensor `id`. */
  void upload(int32_t id, std::vector<uint8_t> bytes);
  /** Reads the tensor's elements, stored as `source` at `offset` of a file, into tensor `id`, converting the type. */
  void load_file(int32_t id, std::string path, int64_t offset, DType source);
  /** A tensor to be copied to `target`, `bytes` long and alive until then. */
  struct Reading {
    int32_t id;
    void* target;
    size_t bytes;
  };
  /** Copies tensors as they are when everything before it has run, then completes, on the queue's thread. What is
   *  submitted behind it does not wait for that, where the device can read on the side. */
  void read(std::vector<Reading> readings, Completion done);
  /** Completes when everything before it has run: a read of nothing. */
  void fence(Completion done) { read({}, std::move(done)); }

  /** Names what is submitted until end_range(), for a profiler. Ranges nest. */
  void begin_range(std::string name);
  void end_range();
  bool names_ranges() const { return watched_ != nullptr; }

  /** For tests: the n-th allocation after what has been submitted fails, once; 0 calls it off. */
  void fail_allocation(uint64_t n);

  Device& device() { return *device_; }
  int64_t live_tensors() const { return live_tensors_.load(std::memory_order_relaxed); }
  int64_t executed() const { return executed_.load(std::memory_order_relaxed); }

  /** Calls and seconds of one op since profiling was switched on. */
  struct OpTime {
    int64_t calls = 0;
    double seconds = 0;
  };
  /** Starts (from zero) or stops timing every op. Takes effect in stream order. */
  void set_profiling(bool on);
  /** Times by op index; call when the queue is idle. */
  const std::vector<OpTime>& op_times() const { return op_times_; }

 private:
  struct Storage {
    void* data;
    size_t bytes;
    int32_t references;
  };
  struct Tensor {
    Storage* storage = nullptr;
    View view;
    bool used = false;
    const char* origin = "";
  };
  using Item = std::function<void()>;

  /** An op with its arguments resolved. */
  struct Call {
    int32_t op = 0;
    std::vector<View> in, out;
    std::vector<double> attrs;
  };
  /** Kept commands, which have run once. Where the device records work, a graph of them, which holds as long as every
   *  tensor lies where it lay; the tensors that a plan frees are freed at its end, so that their addresses repeat. */
  struct Replay {
    std::vector<int32_t> words;
    std::vector<Call> calls;
    size_t call_count = 0;
    std::vector<int32_t> frees;
    std::vector<const void*> addresses;
    std::unique_ptr<DeviceGraph> graph;
    bool recordable = true;  // until a try has failed: for want of memory, or by an op that waits for the device
  };

  /** A read that is under way, and what had failed when it began. */
  struct Pending {
    std::unique_ptr<DeviceRead> read;
    std::optional<QueueError> error;
    Completion done;
  };

  void push(Item item);
  void serve();
  bool next(Item& item);
  std::vector<ReadPart> parts_of(const std::vector<Reading>& readings);
  void finish_read();
  void execute(const std::vector<int32_t>& words);
  const int32_t* run_op(const int32_t* word);
  const int32_t* resolve(const int32_t* word, Call& call, bool& ready);
  void run(const Call& call);
  void run_plan(Replay& plan);
  bool resolve_plan(Replay& plan);
  void capture_plan(Replay& plan);
  void drop_graph(Replay& plan);
  void drop_scratch();
  void make_tensor(int32_t id, DType dtype, const int64_t* shape, int rank, const char* origin);
  void make_view(int32_t id, int32_t source, DType dtype, int64_t offset, const int64_t* shape, int rank);
  void free_tensor(int32_t id);
  Tensor& slot(int32_t id);
  void record(const std::string& code, const std::string& message, const std::string& op);
  void guarded(const char* op, const Item& body);
  std::optional<QueueError> take_error();
  std::string out_of_memory(size_t wanted, const char* origin);

  std::unique_ptr<Device> device_;
  Device* watched_;  // the device when its work is to be named, else null
  std::vector<std::string> ops_;
  std::vector<const KernelRow*> kernels_;
  std::vector<Tensor> tensors_;
  Call call_;  // of the op that runs; its vectors keep their memory
  std::unordered_map<int32_t, Replay> replays_;
  HeldScratch held_scratch_;
  int graphs_ = 0;
  std::optional<QueueError> error_;
  std::deque<Pending> reads_;
  bool profiling_ = false;
  std::vector<OpTime> op_times_;
  std::atomic<int64_t> live_tensors_{0};
  std::atomic<int64_t> executed_{0};

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Item> items_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace caravan
