// The pool runs every task once, wherever it runs: many short jobs one after another, late wakers, uneven tasks, more
// threads than processors, cancellation.
#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "test/native/check.h"

using caravan::ThreadPool;

namespace {

/** Short jobs back to back: a worker that wakes late for one job must not touch the next. */
void test_every_task_once(int threads) {
  ThreadPool pool(threads);
  CHECK(pool.threads() == threads);
  for (int64_t job = 0; job < 2000; job++) {
    int64_t tasks = job % 17;
    std::vector<std::atomic<int>> calls(static_cast<size_t>(tasks) + 1);
    std::atomic<int> bad_workers{0};
    caravan::parallel_for(pool, tasks, [&](int64_t task, int worker) {
      calls[static_cast<size_t>(task)]++;
      if (worker < 0 || worker >= threads || worker >= tasks) bad_workers++;
    });
    for (int64_t task = 0; task < tasks; task++) CHECK(calls[static_cast<size_t>(task)] == 1);
    CHECK(calls[static_cast<size_t>(tasks)] == 0);
    CHECK(bad_workers == 0);
  }
}

/** A worker index belongs to one thread at a time, so per-worker memory needs no lock. */
void test_worker_is_exclusive() {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<int> overlaps{0};
  for (int job = 0; job < 50; job++) {
    caravan::parallel_for(pool, 64, [&](int64_t, int worker) {
      if (inside[static_cast<size_t>(worker)].fetch_add(1) != 0) overlaps++;
      std::this_thread::yield();
      inside[static_cast<size_t>(worker)].fetch_sub(1);
    });
  }
  CHECK(overlaps == 0);
}

/** A long task on one thread leaves the others to the rest. */
void test_second_thread_takes_part() {
  ThreadPool pool(2);
  std::atomic<int> others{0};
  std::atomic<bool> released{false};
  caravan::parallel_for(pool, 9, [&](int64_t task, int) {
    if (task == 0) {
      auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (others < 8 && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
      released = others == 8;
    } else {
      others++;
    }
  });
  CHECK(released);
}

/** The work of a run is visible to the caller when it returns. */
void test_results_are_visible() {
  ThreadPool pool(3);
  std::vector<int64_t> squares(1000);
  for (int64_t round = 1; round <= 20; round++) {
    caravan::parallel_for(pool, 1000,
                          [&](int64_t task, int) { squares[static_cast<size_t>(task)] = task * task * round; });
    bool all = true;
    for (int64_t i = 0; i < 1000; i++) all = all && squares[static_cast<size_t>(i)] == i * i * round;
    CHECK(all);
  }
}

void test_ranges_cover_and_do_not_depend_on_threads() {
  for (int64_t count : {0, 1, 7, 64, 65, 1000}) {
    for (int64_t grain : {1, 8, 64, 2000}) {
      std::vector<int64_t> ends[2];
      for (int threads = 1; threads <= 2; threads++) {
        ThreadPool pool(threads);
        std::vector<int64_t>& end_of = ends[threads - 1];
        end_of.assign(static_cast<size_t>(count) + 1, -1);
        caravan::parallel_ranges(pool, count, grain, [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; i++) end_of[static_cast<size_t>(i)] = end;
        });
        for (int64_t i = 0; i < count; i++) {
          int64_t cut = (i / grain + 1) * grain;
          CHECK(end_of[static_cast<size_t>(i)] == (cut < count ? cut : count));
        }
      }
      CHECK(ends[0] == ends[1]);
    }
  }
}

void test_cancel_skips_the_rest(int threads) {
  ThreadPool pool(threads);
  std::atomic<int64_t> ran{0};
  caravan::parallel_for(pool, 1000000, [&](int64_t, int) {
    if (++ran == 100) pool.cancel();
  });
  CHECK(ran >= 100 && ran < 1000000);
  int64_t before = ran;
  caravan::parallel_for(pool, 100, [&](int64_t, int) { ran++; });
  CHECK(ran == before);
}

void test_ends_cleanly() {
  for (int i = 0; i < 50; i++) {
    ThreadPool idle(4);
    ThreadPool busy(4);
    caravan::parallel_for(busy, 8, [](int64_t, int) {});
  }
  CHECK(ThreadPool(0).threads() == 1);
  CHECK(ThreadPool(-3).threads() == 1);
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8}) test_every_task_once(threads);
  test_worker_is_exclusive();
  test_second_thread_takes_part();
  test_results_are_visible();
  test_ranges_cover_and_do_not_depend_on_threads();
  for (int threads : {1, 4}) test_cancel_skips_the_rest(threads);
  test_ends_cleanly();
  return check::finish("thread_pool_test");
}
