// The engine as a Node addon: the only file that includes napi.h. Everything crosses as integers and typed arrays; all
// state belongs to the environment (SetInstanceData), so it loads in worker threads, twice, and can be torn down at any
// time.
// A worker thread that is being terminated refuses every call, the throwing of an exception too; without this the
// refusal would leave a C++ exception uncaught and end the whole process.
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#include <dlfcn.h>
#include <napi.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "core/backend.h"
#include "core/command_queue.h"
#include "core/error.h"
#include "cpu/device.h"
#include "cpu/isa.h"

namespace caravan {
namespace {

/** A finished fence or read on its way to JavaScript. */
struct Finished {
  uint32_t ticket;
  std::optional<QueueError> error;
};

/** One opened device of one environment. */
struct OpenDevice {
  std::unique_ptr<CommandQueue> queue;
  Napi::ThreadSafeFunction report;
  uint32_t pending = 0;  // tickets not yet reported; the process stays alive while there are some
  std::vector<std::pair<uint32_t, Napi::ObjectReference>> held;  // arrays that a pending read writes into
  int64_t accounted_bytes = 0;                                   // what V8 has been told about memory outside its heap

  void close() {
    queue.reset();
    held.clear();
    if (report) report.Release();
    report = Napi::ThreadSafeFunction();
  }
};

struct Environment {
  std::vector<std::unique_ptr<OpenDevice>> devices;
};

Napi::Error to_js(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Value().Set("code", code);
  return error;
}

/** Runs an entry point; nothing but a JavaScript exception may leave it. */
template <typename Body>
Napi::Value entry(const Napi::CallbackInfo& info, const Body& body) {
  Napi::Env env = info.Env();
  try {
    return body(env);
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& error) {
    throw to_js(env, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    throw to_js(env, "ERR_OOM", "the host has no memory left");
  } catch (const std::exception& error) {
    throw to_js(env, "ERR_INTERNAL", error.what());
  }
}

OpenDevice& device_at(const Napi::CallbackInfo& info) {
  Environment* environment = info.Env().GetInstanceData<Environment>();
  if (!info[0].IsNumber()) throw Napi::TypeError::New(info.Env(), "device index expected");
  uint32_t index = info[0].As<Napi::Number>().Uint32Value();
  if (index >= environment->devices.size() || !environment->devices[index]->queue) {
    throw to_js(info.Env(), "ERR_DEVICE", "this device has been closed");
  }
  return *environment->devices[index];
}

uint32_t number_at(const Napi::CallbackInfo& info, size_t i) {
  if (!info[i].IsNumber()) throw Napi::TypeError::New(info.Env(), "number expected");
  return info[i].As<Napi::Number>().Uint32Value();
}

/** A whole number from `least` to `most`; anything else is a RangeError. */
double whole_at(const Napi::CallbackInfo& info, size_t i, double least, double most) {
  double value = info[i].IsNumber() ? info[i].As<Napi::Number>().DoubleValue() : least - 1;
  if (!(value >= least && value <= most) || value != static_cast<double>(static_cast<int64_t>(value))) {
    throw Napi::RangeError::New(info.Env(), "argument " + std::to_string(i) + " must be a whole number in range");
  }
  return value;
}

constexpr int32_t kMostTensors = 1 << 30;

int32_t tensor_at(const Napi::CallbackInfo& info, size_t i) {
  return static_cast<int32_t>(whole_at(info, i, 1, kMostTensors));
}

Napi::TypedArray array_at(const Napi::CallbackInfo& info, size_t i) {
  if (!info[i].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "typed array expected");
  return info[i].As<Napi::TypedArray>();
}

uint8_t* bytes_of(const Napi::TypedArray& array) {
  return static_cast<uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset();
}

/** isaLevels() -> [[name, supported], ...], weakest first. */
Napi::Value isa_level_names(const Napi::CallbackInfo& info) {
  return entry(info, [](Napi::Env env) -> Napi::Value {
    Napi::Array names = Napi::Array::New(env);
    for (const IsaLevel& level : isa_levels()) {
      Napi::Array row = Napi::Array::New(env);
      row.Set(0u, Napi::String::New(env, level.name));
      row.Set(1u, Napi::Boolean::New(env, level.supported()));
      names.Set(names.Length(), row);
    }
    return names;
  });
}

Napi::Array kernel_rows(Napi::Env env, const char* isa, const KernelSpan& kernels, Napi::Array table) {
  for (const KernelRow* kernel = kernels.begin; kernel != kernels.end; kernel++) {
    Napi::Array row = Napi::Array::New(env);
    row.Set(0u, Napi::String::New(env, isa));
    row.Set(1u, Napi::String::New(env, kernel->op));
    row.Set(2u, Napi::String::New(env, kernel->device));
    row.Set(3u, Napi::String::New(env, kernel->signature));
    table.Set(table.Length(), row);
  }
  return table;
}

/** kernels() -> [[isa, op, device, signature], ...] for every kernel of this build. */
Napi::Value kernel_table(const Napi::CallbackInfo& info) {
  return entry(info, [](Napi::Env env) -> Napi::Value {
    Napi::Array table = Napi::Array::New(env);
    for (const IsaLevel& level : isa_levels()) kernel_rows(env, level.name, level.kernels, table);
    return table;
  });
}

/** Puts a queue before `device`; arguments `first` and `first` + 1 are opNames and onFinished(ticket, error|null). */
Napi::Value open_device(const Napi::CallbackInfo& info, std::unique_ptr<Device> device, size_t first) {
  Napi::Env env = info.Env();
  Napi::Array names = info[first].As<Napi::Array>();
  std::vector<std::string> ops;
  for (uint32_t i = 0; i < names.Length(); i++) ops.push_back(names.Get(i).As<Napi::String>().Utf8Value());
  auto opened = std::make_unique<OpenDevice>();
  opened->queue = std::make_unique<CommandQueue>(std::move(device), std::move(ops));
  opened->report = Napi::ThreadSafeFunction::New(env, info[first + 1].As<Napi::Function>(), "caravan", 0, 1);
  opened->report.Unref(env);
  Environment* environment = env.GetInstanceData<Environment>();
  environment->devices.push_back(std::move(opened));
  return Napi::Number::New(env, static_cast<double>(environment->devices.size() - 1));
}

/** openCpu(threads, budgetBytes, isa, opNames, onFinished) -> [device index, isa, threads]. */
Napi::Value open_cpu(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    int threads = static_cast<int>(whole_at(info, 0, 1, 1024));
    double budget = whole_at(info, 1, 1, 0x1p53);
    std::string isa = info[2].As<Napi::String>().Utf8Value();
    auto device = std::make_unique<CpuDevice>(threads, static_cast<size_t>(budget), isa);
    Napi::Array opened = Napi::Array::New(env);
    opened.Set(1u, Napi::String::New(env, device->isa()));
    opened.Set(2u, Napi::Number::New(env, device->pool().threads()));
    opened.Set(0u, open_device(info, std::move(device), 3));
    return opened;
  });
}

/** The module at `path`, which is never unloaded. */
const Backend& backend_at(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail("ERR_NATIVE_LOAD", "%s", dlerror());
  auto function = reinterpret_cast<BackendFunction>(dlsym(library, "caravan_backend"));
  if (function == nullptr) fail("ERR_NATIVE_LOAD", "%s is not a device module", path.c_str());
  const Backend* backend = function();
  if (backend->version != Backend::kVersion) {
    fail("ERR_NATIVE_LOAD", "%s is of version %d, this engine needs %d: build both again", path.c_str(),
         backend->version, Backend::kVersion);
  }
  return *backend;
}

/** backend(path) -> {kind, unavailable, devices: [[name, bytes, capability]], kernels}. */
Napi::Value backend_facts(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    const Backend& backend = backend_at(info[0].As<Napi::String>().Utf8Value());
    Napi::Object facts = Napi::Object::New(env);
    facts.Set("kind", backend.kind);
    facts.Set("unavailable", backend.unavailable());
    Napi::Array devices = Napi::Array::New(env);
    for (const DeviceFacts& device : backend.devices()) {
      Napi::Array row = Napi::Array::New(env);
      row.Set(0u, device.name);
      row.Set(1u, static_cast<double>(device.total_bytes));
      row.Set(2u, device.capability);
      devices.Set(devices.Length(), row);
    }
    facts.Set("devices", devices);
    facts.Set("kernels", kernel_rows(env, backend.kind, backend.kernels, Napi::Array::New(env)));
    return facts;
  });
}

/** findings(path) -> [[name, text], ...]: what the module looks for on this machine. Libraries are loaded to see. */
Napi::Value backend_findings(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    Napi::Array findings = Napi::Array::New(env);
    for (const Finding& finding : backend_at(info[0].As<Napi::String>().Utf8Value()).findings()) {
      Napi::Array row = Napi::Array::New(env);
      row.Set(0u, finding.name);
      row.Set(1u, finding.text);
      findings.Set(findings.Length(), row);
    }
    return findings;
  });
}

/** openBackend(path, ordinal, budgetBytes (0: nine tenths of what is free), opNames, onFinished) -> device index. */
Napi::Value open_backend(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env) -> Napi::Value {
    const Backend& backend = backend_at(info[0].As<Napi::String>().Utf8Value());
    int ordinal = static_cast<int>(whole_at(info, 1, 0, 1024));
    return open_device(info, backend.open(ordinal, static_cast<size_t>(whole_at(info, 2, 0, 0x1p53))), 3);
  });
}

/** submit(device, words: Int32Array, count). */
Napi::Value submit(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    Napi::TypedArray words = array_at(info, 1);
    size_t count = number_at(info, 2);
    if (words.TypedArrayType() != napi_int32_array || count > words.ElementLength()) {
      throw Napi::TypeError::New(env, "Int32Array with at least `count` words expected");
    }
    device.queue->submit(reinterpret_cast<const int32_t*>(bytes_of(words)), count);
    return env.Undefined();
  });
}

/** keepPlan(device, plan, words: Int32Array), replay(device, plan), forgetPlan(device, plan). */
Napi::Value keep_plan(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    Napi::TypedArray words = array_at(info, 2);
    if (words.TypedArrayType() != napi_int32_array) throw Napi::TypeError::New(env, "Int32Array expected");
    const int32_t* first = reinterpret_cast<const int32_t*>(bytes_of(words));
    device.queue->keep_plan(tensor_at(info, 1), std::vector<int32_t>(first, first + words.ElementLength()));
    return env.Undefined();
  });
}

Napi::Value replay(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    device_at(info).queue->replay(tensor_at(info, 1));
    return env.Undefined();
  });
}

Napi::Value forget_plan(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    device_at(info).queue->forget_plan(tensor_at(info, 1));
    return env.Undefined();
  });
}

/** namesRanges(device) -> whether a profiler watches; for it, range(device, name) names what is submitted up to the
 *  matching range(device). */
Napi::Value names_ranges(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    return Napi::Boolean::New(env, device_at(info).queue->names_ranges());
  });
}

Napi::Value range(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    CommandQueue& queue = *device_at(info).queue;
    info[1].IsString() ? queue.begin_range(info[1].As<Napi::String>().Utf8Value()) : queue.end_range();
    return env.Undefined();
  });
}

/** upload(device, tensor id, typed array): the bytes are copied before this returns. */
Napi::Value upload(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    Napi::TypedArray array = array_at(info, 2);
    const uint8_t* bytes = bytes_of(array);
    device.queue->upload(tensor_at(info, 1), std::vector<uint8_t>(bytes, bytes + array.ByteLength()));
    return env.Undefined();
  });
}

/** loadFile(device, tensor id, path, byte offset, dtype in the file). */
Napi::Value load_file(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    int64_t offset = static_cast<int64_t>(whole_at(info, 3, 0, 0x1p53));
    DType source = static_cast<DType>(static_cast<int>(whole_at(info, 4, 0, static_cast<double>(DType::kF16))));
    device.queue->load_file(tensor_at(info, 1), info[2].As<Napi::String>().Utf8Value(), offset, source);
    return env.Undefined();
  });
}

/** Delivers a finished ticket on the JavaScript thread. */
void deliver(Napi::Env env, Napi::Function callback, OpenDevice* device, Finished finished) {
  if (--device->pending == 0) device->report.Unref(env);
  for (size_t i = 0; i < device->held.size(); i++) {
    if (device->held[i].first != finished.ticket) continue;
    device->held[i] = std::move(device->held.back());
    device->held.pop_back();
    break;
  }
  int64_t live = static_cast<int64_t>(device->queue->device().allocator().live_bytes());
  Napi::MemoryManagement::AdjustExternalMemory(env, live - device->accounted_bytes);
  device->accounted_bytes = live;
  Napi::Value error = env.Null();
  if (finished.error) {
    error = to_js(env, finished.error->code, finished.error->message).Value();
    error.As<Napi::Object>().Set("op", finished.error->op);
    error.As<Napi::Object>().Set("sequence", Napi::Number::New(env, static_cast<double>(finished.error->sequence)));
  }
  callback.Call({Napi::Number::New(env, finished.ticket), error});
}

CommandQueue::Completion completion(Napi::Env env, OpenDevice& device, uint32_t ticket) {
  if (device.pending++ == 0) device.report.Ref(env);
  OpenDevice* target = &device;
  return [target, ticket](const std::optional<QueueError>& error) {
    target->report.NonBlockingCall([target, finished = Finished{ticket, error}](Napi::Env e, Napi::Function f) {
      if (target->queue) deliver(e, f, target, finished);
    });
  };
}

/** read(device, ticket, tensor ids, typed arrays): the arrays, one for each tensor, are written by the time the ticket
 * is reported; until then the list must stay as it is. */
Napi::Value read(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    const uint32_t ticket = number_at(info, 1);
    Napi::TypedArray ids = array_at(info, 2);
    if (ids.TypedArrayType() != napi_int32_array || !info[3].IsArray()) {
      throw Napi::TypeError::New(env, "Int32Array of tensors and a list of typed arrays expected");
    }
    Napi::Array arrays = info[3].As<Napi::Array>();
    if (arrays.Length() != ids.ElementLength()) throw Napi::RangeError::New(env, "one array for each tensor expected");
    const int32_t* first = reinterpret_cast<const int32_t*>(bytes_of(ids));
    const std::vector<int32_t> wanted(first, first + ids.ElementLength());  // the list may run code when it is asked
    std::vector<CommandQueue::Reading> readings;
    for (uint32_t i = 0; i < wanted.size(); i++) {
      const int32_t id = wanted[i];
      if (id < 1 || id > kMostTensors) throw Napi::RangeError::New(env, "no such tensor");
      Napi::Value array = arrays.Get(i);
      if (!array.IsTypedArray()) throw Napi::TypeError::New(env, "typed array expected");
      Napi::TypedArray target = array.As<Napi::TypedArray>();
      readings.push_back({id, bytes_of(target), target.ByteLength()});
    }
    device.held.emplace_back(ticket, Napi::Persistent(arrays.As<Napi::Object>()));
    device.queue->read(std::move(readings), completion(env, device, ticket));
    return env.Undefined();
  });
}

/** stats(device, Float64Array(7)): live tensors, live, peak, reserved and budget bytes, commands run, waits. */
Napi::Value stats(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    Napi::TypedArray array = array_at(info, 1);
    if (array.TypedArrayType() != napi_float64_array || array.ElementLength() < 7) {
      throw Napi::TypeError::New(env, "Float64Array(7) expected");
    }
    CachingAllocator& memory = device.queue->device().allocator();
    double values[7] = {
        static_cast<double>(device.queue->live_tensors()),  static_cast<double>(memory.live_bytes()),
        static_cast<double>(memory.peak_bytes()),           static_cast<double>(memory.reserved_bytes()),
        static_cast<double>(memory.budget_bytes()),         static_cast<double>(device.queue->executed()),
        static_cast<double>(device.queue->device().waits())};
    std::memcpy(bytes_of(array), values, sizeof(values));
    return env.Undefined();
  });
}

/** profile(device, on): starts or stops timing ops; opTimes(device) -> [[op index, calls, seconds], ...] when idle. */
Napi::Value profile(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    device_at(info).queue->set_profiling(info[1].ToBoolean().Value());
    return env.Undefined();
  });
}

Napi::Value op_times(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    Napi::Array table = Napi::Array::New(env);
    const auto& times = device_at(info).queue->op_times();
    for (size_t i = 0; i < times.size(); i++) {
      if (times[i].calls == 0) continue;
      Napi::Array row = Napi::Array::New(env);
      row.Set(0u, Napi::Number::New(env, static_cast<double>(i)));
      row.Set(1u, Napi::Number::New(env, static_cast<double>(times[i].calls)));
      row.Set(2u, Napi::Number::New(env, times[i].seconds));
      table.Set(table.Length(), row);
    }
    return table;
  });
}

/** resetPeak(device): the peak counter starts again at what is live now. */
Napi::Value reset_peak(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    device_at(info).queue->device().allocator().reset_peak();
    return env.Undefined();
  });
}

/** failAllocation(device, n): for tests: the n-th allocation from here on fails, once; 0 calls it off. */
Napi::Value fail_allocation(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    device_at(info).queue->fail_allocation(static_cast<uint64_t>(whole_at(info, 1, 0, 0x1p53)));
    return env.Undefined();
  });
}

/** wait(device): blocks until the queue is empty (CARAVAN_SYNC=1) and throws the first failure. */
Napi::Value wait(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    std::mutex mutex;
    std::condition_variable ready;
    bool done = false;
    std::optional<QueueError> failure;
    device_at(info).queue->fence([&](const std::optional<QueueError>& error) {
      std::lock_guard<std::mutex> lock(mutex);
      failure = error;
      done = true;
      ready.notify_one();
    });
    std::unique_lock<std::mutex> lock(mutex);
    ready.wait(lock, [&] { return done; });
    if (failure) throw to_js(env, failure->code, failure->message);
    return env.Undefined();
  });
}

/** close(device): stops the queue, frees all memory of the device. Pending tickets are never reported. */
Napi::Value close_device(const Napi::CallbackInfo& info) {
  return entry(info, [&](Napi::Env env) -> Napi::Value {
    OpenDevice& device = device_at(info);
    Napi::MemoryManagement::AdjustExternalMemory(env, -device.accounted_bytes);
    device.close();
    return env.Undefined();
  });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  Environment* environment = new Environment;
  env.SetInstanceData(environment);
  // Before the environment goes away the queue threads must have stopped: they report into it.
  env.AddCleanupHook([environment] {
    for (auto& device : environment->devices) device->queue.reset();
  });
  exports.Set("isaLevels", Napi::Function::New(env, isa_level_names));
  exports.Set("kernels", Napi::Function::New(env, kernel_table));
  exports.Set("openCpu", Napi::Function::New(env, open_cpu));
  exports.Set("backend", Napi::Function::New(env, backend_facts));
  exports.Set("findings", Napi::Function::New(env, backend_findings));
  exports.Set("openBackend", Napi::Function::New(env, open_backend));
  exports.Set("submit", Napi::Function::New(env, submit));
  exports.Set("keepPlan", Napi::Function::New(env, keep_plan));
  exports.Set("replay", Napi::Function::New(env, replay));
  exports.Set("forgetPlan", Napi::Function::New(env, forget_plan));
  exports.Set("namesRanges", Napi::Function::New(env, names_ranges));
  exports.Set("range", Napi::Function::New(env, range));
  exports.Set("upload", Napi::Function::New(env, upload));
  exports.Set("loadFile", Napi::Function::New(env, load_file));
  exports.Set("read", Napi::Function::New(env, read));
  exports.Set("stats", Napi::Function::New(env, stats));
  exports.Set("profile", Napi::Function::New(env, profile));
  exports.Set("opTimes", Napi::Function::New(env, op_times));
  exports.Set("resetPeak", Napi::Function::New(env, reset_peak));
  exports.Set("failAllocation", Napi::Function::New(env, fail_allocation));
  exports.Set("wait", Napi::Function::New(env, wait));
  exports.Set("close", Napi::Function::New(env, close_device));
  return exports;
}

}  // namespace
}  // namespace caravan

static Napi::Object Init(Napi::Env env, Napi::Object exports) { return caravan::init(env, exports); }
NODE_API_MODULE(caravan, Init)
