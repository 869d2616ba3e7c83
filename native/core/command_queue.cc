#include "core/command_queue.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "core/command_words.h"
#include "core/error.h"
#include "core/file_load.h"
#include "core/thread_policy.h"

namespace caravan {

namespace {

std::string shape_text(const View& view) {
  std::string text = "[";
  for (int i = 0; i < view.rank; i++) text += (i ? "," : "") + std::to_string(view.shape[i]);
  return text + "]";
}

/** An array on the host must be exactly as large as the tensor that it fills or receives. */
void check_size(const char* what, const View& view, size_t bytes) {
  if (bytes == view.bytes()) return;
  fail("ERR_INTERNAL", "%s: the array has %zu bytes, tensor %s has %zu", what, bytes, shape_text(view).c_str(),
       view.bytes());
}

}  // namespace

CommandQueue::CommandQueue(std::unique_ptr<Device> device, std::vector<std::string> ops)
    : device_(std::move(device)),
      watched_(device_->names_ranges() ? device_.get() : nullptr),
      ops_(std::move(ops)),
      held_scratch_(device_->allocator()) {
  for (const std::string& op : ops_) kernels_.push_back(device_->find_kernel(op));
  thread_ = std::thread([this] { serve(); });
}

CommandQueue::~CommandQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    items_.clear();
  }
  device_->cancel();
  arrived_.notify_all();
  thread_.join();
  replays_.clear();  // graphs go before their device
  for (Tensor& tensor : tensors_) {
    if (tensor.storage != nullptr && --tensor.storage->references == 0) delete tensor.storage;
  }
}

void CommandQueue::push(Item item) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    items_.push_back(std::move(item));
  }
  arrived_.notify_one();
}

void CommandQueue::serve() {
  become_compute_thread();
  guarded("open", [&] { device_->attach(); });
  for (Item item; next(item);) item();
}

/** The next item, or false at the end. Reads are finished as they get ready, first of all while there is nothing else
 *  to do: awake at first, since a decoding step ends soon and a thread takes long to wake, then in naps. */
bool CommandQueue::next(Item& item) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kAwake = std::chrono::milliseconds(10);
  constexpr auto kNap = std::chrono::microseconds(100);
  const auto begun = reads_.empty() ? Clock::time_point() : Clock::now();
  for (;;) {
    while (!reads_.empty() && reads_.front().read->ready()) finish_read();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto is_wanted = [&] { return stop_ || !items_.empty(); };
      if (reads_.empty()) {
        arrived_.wait(lock, is_wanted);
      } else if (Clock::now() - begun >= kAwake) {
        arrived_.wait_for(lock, kNap, is_wanted);
      }
      if (stop_) return false;
      if (!items_.empty()) {
        item = std::move(items_.front());
        items_.pop_front();
        return true;
      }
    }
    std::this_thread::yield();
  }
}

void CommandQueue::submit(const int32_t* words, size_t count) {
  push([this, copy = std::vector<int32_t>(words, words + count)] { execute(copy); });
}

void CommandQueue::upload(int32_t id, std::vector<uint8_t> bytes) {
  push([this, id, data = std::move(bytes)] {
    const NamedRange range(watched_, "upload");
    guarded("upload", [&] {
      Tensor& tensor = slot(id);
      if (tensor.storage == nullptr) return;
      check_size("upload", tensor.view, data.size());
      device_->copy_in(tensor.view.data, data.data(), data.size());
    });
  });
}

void CommandQueue::load_file(int32_t id, std::string path, int64_t offset, DType source) {
  push([this, id, path = std::move(path), offset, source] {
    const NamedRange range(watched_, "load_file");
    guarded("load_file", [&] {
      Tensor& tensor = slot(id);
      if (tensor.storage != nullptr) load_elements(*device_, tensor.view, path, offset, source);
    });
  });
}

void CommandQueue::read(std::vector<Reading> readings, Completion done) {
  push([this, readings = std::move(readings), done = std::move(done)] {
    const NamedRange range(watched_, readings.empty() ? "wait" : "read");
    std::unique_ptr<DeviceRead> started;
    guarded(readings.empty() ? "fence" : "read", [&] {
      const std::vector<ReadPart> parts = parts_of(readings);
      started = device_->start_read(parts);
      if (started != nullptr) return;
      for (const ReadPart& part : parts) device_->copy_out(part.to, part.from, part.bytes);
      if (parts.empty()) device_->synchronize();
    });
    if (started != nullptr) return reads_.push_back({std::move(started), take_error(), done});
    while (!reads_.empty()) finish_read();  // they began before this one, and end before it
    done(take_error());
  });
}

/** Those of the tensors that are there and hold something: a missing one is the trace of an earlier failure. */
std::vector<ReadPart> CommandQueue::parts_of(const std::vector<Reading>& readings) {
  std::vector<ReadPart> parts;
  for (const Reading& reading : readings) {
    const Tensor& tensor = slot(reading.id);
    if (tensor.storage == nullptr) continue;
    check_size("read", tensor.view, reading.bytes);
    if (reading.bytes > 0) parts.push_back({reading.target, tensor.view.data, reading.bytes});
  }
  return parts;
}

/** Completes the oldest read with the error that it found; one from before it counts more. */
void CommandQueue::finish_read() {
  Pending pending = std::move(reads_.front());
  reads_.pop_front();
  std::optional<QueueError> later = take_error();
  if (pending.error) error_ = std::move(pending.error);
  guarded("read", [&] { pending.read->finish(); });
  pending.read.reset();
  pending.done(take_error());
  error_ = std::move(later);
}

void CommandQueue::set_profiling(bool on) {
  push([this, on] {
    while (!reads_.empty()) finish_read();
    guarded("profile", [&] { device_->synchronize(); });
    profiling_ = on;
    if (on) op_times_.assign(ops_.size(), OpTime{});
  });
}

void CommandQueue::begin_range(std::string name) {
  push([this, name = std::move(name)] { device_->begin_range(name.c_str()); });
}

void CommandQueue::end_range() {
  push([this] { device_->end_range(); });
}

void CommandQueue::fail_allocation(uint64_t n) {
  push([this, n] { device_->allocator().fail_allocation(n); });
}

std::optional<QueueError> CommandQueue::take_error() {
  std::optional<QueueError> error = std::move(error_);
  error_.reset();
  return error;
}

void CommandQueue::record(const std::string& code, const std::string& message, const std::string& op) {
  if (!error_) error_ = QueueError{code, message, op, executed()};
}

void CommandQueue::guarded(const char* op, const Item& body) {
  try {
    body();
  } catch (const Error& error) {
    record(error.code(), error.what(), op);
  } catch (const std::bad_alloc&) {
    record("ERR_OOM", "the host has no memory left", op);
  } catch (const std::exception& error) {
    record("ERR_INTERNAL", error.what(), op);
  }
}

void CommandQueue::execute(const std::vector<int32_t>& words) {
  const int32_t* word = words.data();
  const int32_t* end = word + words.size();
  int64_t shape[kMaxRank];
  int rank;
  while (word < end) {
    executed_.fetch_add(1, std::memory_order_relaxed);
    switch (static_cast<Command>(*word++)) {
      case Command::kOp:
        word = run_op(word);
        break;
      case Command::kFree:
        free_tensor(*word++);
        break;
      case Command::kView: {
        int32_t id = word[0], source = word[1];
        DType dtype = static_cast<DType>(word[2]);
        int64_t offset = static_cast<int64_t>(read_f64(word + 3));
        word = read_shape(word + 5, shape, &rank);
        make_view(id, source, dtype, offset, shape, rank);
        break;
      }
      case Command::kAlloc: {
        int32_t id = word[0];
        DType dtype = static_cast<DType>(word[1]);
        word = read_shape(word + 2, shape, &rank);
        guarded("alloc", [&] { make_tensor(id, dtype, shape, rank, "alloc"); });
        break;
      }
      default:
        record("ERR_INTERNAL", "the command stream is damaged", "");
        return;
    }
  }
}

const int32_t* CommandQueue::resolve(const int32_t* word, Call& call, bool& ready) {
  call.op = word[0];
  const size_t inputs = static_cast<size_t>(word[1]), outputs = static_cast<size_t>(word[2]);
  const size_t attrs = static_cast<size_t>(word[3]);
  word += 4;
  const char* name = ops_[static_cast<size_t>(call.op)].c_str();
  call.in.assign(inputs, View{});
  call.out.assign(outputs, View{});
  call.attrs.resize(attrs);
  for (size_t i = 0; i < inputs; i++) {
    int32_t id = *word++;
    if (id == 0) continue;
    Tensor& tensor = slot(id);
    // A missing input is the trace of an earlier failure, which is already recorded.
    ready = ready && tensor.storage != nullptr;
    call.in[i] = tensor.view;
  }
  for (size_t i = 0; i < outputs; i++) {
    int64_t shape[kMaxRank];
    int rank;
    const int32_t id = word[0];
    DType dtype = static_cast<DType>(word[1]);
    word = read_shape(word + 2, shape, &rank);
    if (id == 0 || !ready) continue;
    guarded(name, [&] { make_tensor(id, dtype, shape, rank, name); });
    Tensor& tensor = slot(id);
    ready = ready && tensor.storage != nullptr;
    call.out[i] = tensor.view;
  }
  for (size_t i = 0; i < attrs; i++, word += 2) call.attrs[i] = read_f64(word);
  return word;
}

void CommandQueue::run(const Call& call) {
  const char* name = ops_[static_cast<size_t>(call.op)].c_str();
  const NamedRange range(watched_, name);
  auto started = std::chrono::steady_clock::now();
  guarded(name, [&] {
    const KernelRow* kernel = kernels_[static_cast<size_t>(call.op)];
    if (kernel == nullptr) fail("ERR_DEVICE", "op %s has no kernel on device %s", name, device_->kind());
    try {
      kernel->run(Args{*device_, call.in.data(), static_cast<int>(call.in.size()), call.out.data(),
                       static_cast<int>(call.out.size()), call.attrs.data(), static_cast<int>(call.attrs.size())});
    } catch (const Error& error) {
      std::string shapes;
      for (size_t i = 0; i < call.in.size(); i++) {
        shapes += (i ? " " : "") + (call.in[i].present() ? shape_text(call.in[i]) : "-");
      }
      throw Error(error.code(), std::string(name) + " (inputs " + shapes + "): " + error.what());
    }
    if (profiling_) device_->synchronize();
  });
  if (profiling_) {
    OpTime& time = op_times_[static_cast<size_t>(call.op)];
    time.calls++;
    time.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  }
}

const int32_t* CommandQueue::run_op(const int32_t* word) {
  bool ready = true;
  word = resolve(word, call_, ready);
  if (ready) run(call_);
  return word;
}

CommandQueue::Tensor& CommandQueue::slot(int32_t id) {
  size_t index = static_cast<size_t>(id);
  if (index >= tensors_.size()) tensors_.resize(std::max(index + 1, tensors_.size() * 2));
  return tensors_[index];
}

void CommandQueue::make_tensor(int32_t id, DType dtype, const int64_t* shape, int rank, const char* origin) {
  View view;
  view.dtype = dtype;
  view.rank = rank;
  std::copy(shape, shape + rank, view.shape);
  size_t bytes = view.bytes();
  Tensor& tensor = slot(id);
  if (!tensor.used) live_tensors_.fetch_add(1, std::memory_order_relaxed);
  tensor = Tensor{nullptr, view, true, origin};
  void* data = device_->allocator().allocate(bytes);
  if (data == nullptr) throw Error("ERR_OOM", out_of_memory(bytes, origin));
  tensor.storage = new Storage{data, bytes, 1};
  tensor.view.data = data;
}

void CommandQueue::make_view(int32_t id, int32_t source, DType dtype, int64_t offset, const int64_t* shape, int rank) {
  slot(std::max(id, source));  // grow the table first: growing moves its entries
  Tensor& view = slot(id);
  Tensor& of = slot(source);
  if (!view.used) live_tensors_.fetch_add(1, std::memory_order_relaxed);
  Tensor made{of.storage, View{}, true, of.origin};
  made.view.dtype = dtype;
  made.view.rank = rank;
  std::copy(shape, shape + rank, made.view.shape);
  if (of.storage != nullptr) {
    of.storage->references++;
    made.view.data = static_cast<char*>(of.view.data) + static_cast<size_t>(offset) * size_of(of.view.dtype);
  }
  view = made;
}

void CommandQueue::free_tensor(int32_t id) {
  Tensor& tensor = slot(id);
  if (!tensor.used) return;
  if (tensor.storage != nullptr && --tensor.storage->references == 0) {
    device_->allocator().release(tensor.storage->data);
    delete tensor.storage;
  }
  tensor = Tensor{};
  live_tensors_.fetch_sub(1, std::memory_order_relaxed);
}

std::string CommandQueue::out_of_memory(size_t wanted, const char* origin) {
  std::vector<const Tensor*> largest;
  for (const Tensor& tensor : tensors_) {
    if (tensor.storage != nullptr) largest.push_back(&tensor);
  }
  size_t shown = std::min<size_t>(5, largest.size());
  std::partial_sort(largest.begin(), largest.begin() + static_cast<std::ptrdiff_t>(shown), largest.end(),
                    [](const Tensor* a, const Tensor* b) { return a->storage->bytes > b->storage->bytes; });
  std::string text = std::string(origin) + " wants " + std::to_string(wanted) + " bytes; " +
                     std::to_string(device_->allocator().live_bytes()) + " bytes are in use, the limit is " +
                     std::to_string(device_->allocator().budget_bytes()) + ". Largest tensors:";
  for (size_t i = 0; i < shown; i++) {
    text += (i ? ", " : " ") + std::string(largest[i]->origin) + shape_text(largest[i]->view) + " " +
            std::to_string(largest[i]->storage->bytes) + " bytes";
  }
  return text;
}

}  // namespace caravan
