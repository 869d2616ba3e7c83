// The part of the command queue that keeps commands and runs them again, as a graph where the device records work.
#include "core/command_queue.h"
#include "core/command_words.h"
#include "core/error.h"

namespace caravan {

void CommandQueue::keep_plan(int32_t plan, std::vector<int32_t> words) {
  push([this, plan, words = std::move(words)]() mutable { replays_[plan].words = std::move(words); });
}

void CommandQueue::forget_plan(int32_t plan) {
  push([this, plan] {
    auto found = replays_.find(plan);
    if (found == replays_.end()) return;
    drop_graph(found->second);
    replays_.erase(found);
  });
}

void CommandQueue::replay(int32_t plan) {
  push([this, plan] {
    const NamedRange range(watched_, watched_ != nullptr ? ("plan " + std::to_string(plan)).c_str() : "");
    auto found = replays_.find(plan);
    if (found == replays_.end()) return record("ERR_INTERNAL", "a plan is replayed that was never kept", "replay");
    if (device_->captures() && !profiling_ && !error_) {
      run_plan(found->second);
    } else {
      execute(found->second.words);
    }
  });
}

/** Allocates the plan's tensors and resolves its calls; frees wait in plan.frees. False when something is missing; the
 *  commands behind it are read all the same, as what was made before it must be freed. */
bool CommandQueue::resolve_plan(Replay& plan) {
  const int32_t* word = plan.words.data();
  const int32_t* end = word + plan.words.size();
  plan.call_count = 0;
  plan.frees.clear();
  bool ready = true;
  int64_t shape[kMaxRank];
  int rank;
  while (word < end) {
    executed_.fetch_add(1, std::memory_order_relaxed);
    switch (static_cast<Command>(*word++)) {
      case Command::kOp:
        if (plan.call_count == plan.calls.size()) plan.calls.emplace_back();
        word = resolve(word, plan.calls[plan.call_count], ready);
        if (ready) plan.call_count++;
        break;
      case Command::kFree:
        plan.frees.push_back(*word++);
        break;
      case Command::kView: {
        DType dtype = static_cast<DType>(word[2]);
        const int32_t* after = read_shape(word + 5, shape, &rank);
        make_view(word[0], word[1], dtype, static_cast<int64_t>(read_f64(word + 3)), shape, rank);
        word = after;
        break;
      }
      case Command::kAlloc: {
        const int32_t* after = read_shape(word + 2, shape, &rank);
        guarded("alloc", [&] { make_tensor(word[0], static_cast<DType>(word[1]), shape, rank, "alloc"); });
        ready = ready && slot(word[0]).storage != nullptr;
        word = after;
        break;
      }
      default:
        record("ERR_INTERNAL", "the command stream is damaged", "");
        return false;
    }
  }
  return ready;
}

void CommandQueue::run_plan(Replay& plan) {
  if (!plan.recordable) return execute(plan.words);
  const bool ready = resolve_plan(plan);
  if (ready) {
    std::vector<const void*> addresses;
    for (size_t i = 0; i < plan.call_count; i++) {
      for (const View& view : plan.calls[i].in) addresses.push_back(view.data);
      for (const View& view : plan.calls[i].out) addresses.push_back(view.data);
    }
    if (plan.graph == nullptr || addresses != plan.addresses) {
      plan.addresses = std::move(addresses);
      capture_plan(plan);
    }
    if (plan.graph != nullptr) {
      guarded("replay", [&] { plan.graph->launch(); });
    } else {
      for (size_t i = 0; i < plan.call_count; i++) run(plan.calls[i]);
    }
  }
  for (int32_t id : plan.frees) free_tensor(id);
}

/** Leaves plan.graph null, and no error, where the calls cannot be recorded as they are: then they are run one by one,
 *  which reports what is really wrong. A graph in which a call is missing must never be started. */
void CommandQueue::capture_plan(Replay& plan) {
  drop_graph(plan);
  device_->hold_scratch(&held_scratch_);
  graphs_++;
  guarded("replay", [&] {
    plan.graph = device_->capture([&] {
      for (size_t i = 0; i < plan.call_count && !error_; i++) run(plan.calls[i]);
    });
  });
  device_->hold_scratch(nullptr);
  if (plan.graph != nullptr && !error_) return;
  error_.reset();
  plan.recordable = false;
  plan.graph.reset();
  drop_scratch();
}

void CommandQueue::drop_graph(Replay& plan) {
  if (plan.graph == nullptr) return;
  plan.graph.reset();
  drop_scratch();
}

/** One graph less: the last one takes the workspaces with it. */
void CommandQueue::drop_scratch() {
  if (--graphs_ == 0) held_scratch_.release();
}

}  // namespace caravan
