#include "cpu/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/thread_policy.h"

namespace caravan {

namespace {

// A worker looks for the next job this many times before it sleeps: about 20 microseconds, the gap between two kernels
// of a step. Longer would take time from the host service, shorter would pay a futex for every kernel.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

/** One call of run(). Workers hold it by shared_ptr: one that wakes late finds no task left in its own old job and
 *  never touches the next one half-written. */
struct Job {
  int64_t tasks;
  void (*body)(void*, int64_t, int);
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
  std::atomic<int> joined{1};  // the caller is worker 0; the others are numbered as they come
};

}  // namespace

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable finished;
  std::shared_ptr<Job> job;
  std::atomic<uint64_t> epoch{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> cancelled{false};
  int sleepers = 0;
  std::vector<std::thread> workers;

  void drain(Job& job, int worker) {
    for (;;) {
      int64_t task = job.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= job.tasks) return;
      if (!cancelled.load(std::memory_order_relaxed)) job.body(job.context, task, worker);
      if (job.done.fetch_add(1, std::memory_order_acq_rel) + 1 == job.tasks) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }

  void serve() {
    become_compute_thread();
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && epoch.load(std::memory_order_acquire) == seen && !stop.load(); spin++)
        pause();
      std::shared_ptr<Job> current;
      {
        std::unique_lock<std::mutex> lock(mutex);
        sleepers++;
        work.wait(lock, [&] { return stop.load() || epoch.load() != seen; });
        sleepers--;
        if (stop.load()) return;
        seen = epoch.load();
        current = job;
      }
      if (!current) continue;
      // Numbers stay below the number of tasks, so that a kernel may size its workspace by either. Whoever comes after
      // as many workers as there are tasks has nothing to do.
      int worker = current->joined.fetch_add(1, std::memory_order_relaxed);
      if (worker < current->tasks) drain(*current, worker);
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads), state_(new State) {
  for (int worker = 1; worker < threads_; worker++) {
    state_->workers.emplace_back([this] { state_->serve(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
  }
  state_->work.notify_all();
  for (auto& worker : state_->workers) worker.join();
  delete state_;
}

void ThreadPool::cancel() { state_->cancelled.store(true); }

void ThreadPool::run(int64_t tasks, void (*body)(void*, int64_t, int), void* context) {
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t task = 0; task < tasks && !state_->cancelled.load(std::memory_order_relaxed); task++) {
      body(context, task, 0);
    }
    return;
  }
  auto job = std::make_shared<Job>();
  job->tasks = tasks;
  job->body = body;
  job->context = context;
  bool wake;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->job = job;
    state_->epoch.fetch_add(1, std::memory_order_release);
    wake = state_->sleepers > 0;
  }
  if (wake) state_->work.notify_all();
  state_->drain(*job, 0);
  for (int spin = 0; spin < kSpins && job->done.load(std::memory_order_acquire) < tasks; spin++) pause();
  if (job->done.load(std::memory_order_acquire) < tasks) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->finished.wait(lock, [&] { return job->done.load(std::memory_order_acquire) >= tasks; });
  }
}

}  // namespace caravan
