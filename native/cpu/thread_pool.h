// Threads for kernels. Tiles are handed out dynamically and the caller works too; which thread computes a tile never
// influences a result. No spinning barriers: a pool inside a service must survive a core that is shared.
#pragma once
#include <stdint.h>

namespace caravan {

struct Args;

class ThreadPool {
 public:
  /** `threads` counts the calling thread, so 1 starts no thread at all. */
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /** Calls body(context, task, worker) for each task in [0, tasks), with 0 <= worker < min(threads(), tasks). Returns
   *  when all are done. After cancel() the remaining tasks are skipped. Called by one thread at a time. */
  void run(int64_t tasks, void (*body)(void*, int64_t, int), void* context);
  /** Skips the tasks of the present and every later run. */
  void cancel();

 private:
  struct State;
  int threads_;
  State* state_;
};

/** The pool of the device a CPU kernel runs on. */
ThreadPool& pool_of(const Args& a);

/** body(task, worker) for each task in [0, tasks), spread over the pool. */
template <typename Body>
static inline void parallel_for(ThreadPool& pool, int64_t tasks, const Body& body) {
  pool.run(
      tasks, [](void* context, int64_t task, int worker) { (*static_cast<const Body*>(context))(task, worker); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

/** body(begin, end, worker) over [0, count) cut into pieces of `grain` (the last may be shorter). The cut depends on
 *  `count` and `grain` alone, so per-piece partial results may be combined in piece order for equal bits. */
template <typename Body>
static inline void parallel_ranges(ThreadPool& pool, int64_t count, int64_t grain, const Body& body) {
  int64_t pieces = (count + grain - 1) / grain;
  parallel_for(pool, pieces, [&](int64_t piece, int worker) {
    int64_t begin = piece * grain;
    int64_t end = begin + grain < count ? begin + grain : count;
    body(begin, end, worker);
  });
}

}  // namespace caravan
