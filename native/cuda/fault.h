// Faults that only the device can see: an index outside its table, segments that do not lie in their rows. A kernel
// notes the first one in a slot that the host reads at the next wait; the kernel itself goes on with a safe value.
#pragma once
#include "cuda/launch.h"

namespace caravan::cuda {

enum class FaultKind : unsigned { kNone, kIndex, kSegment, kRule, kCount };

/** What the numbers of a row must be, in words for the message: `subject`[position] must be `text`. The strings live as
 *  long as the module; the device only hands them on. */
struct Rule {
  const char *subject, *text;
};

/** The slot, in host memory that the device can write. */
struct Fault {
  static constexpr int kMostGiven = 5;
  unsigned kind;
  const char* op;
  long long position, value, limit;
  Rule rule;
  int given_count;
  double given[kMostGiven];
};

/** What a kernel is given to report with. */
struct FaultReport {
  Fault* slot;
  const char* op;

#if defined(__CUDACC__) || defined(CARAVAN_SIMT)
  __device__ void note(FaultKind kind, long long position, long long value, long long limit) const {
    if (atomicCAS(&slot->kind, 0u, static_cast<unsigned>(kind)) != 0) return;
    slot->op = op;
    slot->position = position;
    slot->value = value;
    slot->limit = limit;
  }
  /** Numbers `given[count]` (at most kMostGiven) of row `position` break a rule. */
  __device__ void note_broken(const Rule& rule, long long position, const double* given, int count) const {
    if (atomicCAS(&slot->kind, 0u, static_cast<unsigned>(FaultKind::kRule)) != 0) return;
    slot->op = op;
    slot->position = position;
    slot->rule = rule;
    slot->given_count = count;
    for (int i = 0; i < count; i++) slot->given[i] = given[i];
  }
  /** `value` if it is in [0, limit), else 0 and a note. */
  __device__ long long checked_index(long long position, long long value, long long limit) const {
    if (value >= 0 && value < limit) return value;
    note(FaultKind::kIndex, position, value, limit);
    return 0;
  }
#endif
};

/** The report of op `op`, a string that lives as long as the module. */
FaultReport fault_report(const Args& a, const char* op);

}  // namespace caravan::cuda
