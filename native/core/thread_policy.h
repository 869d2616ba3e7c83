// How the scheduler should treat threads that compute for seconds on end beside a thread that must answer in time.
#pragma once

namespace caravan {

/** Marks this thread as one that computes (SCHED_BATCH on Linux): it does not preempt others when it wakes up, so that
 *  the host's event loop, which runs for microseconds at a time, is not pushed off its core by a kernel that starts.
 *  The share of the processor stays the same. A refusal changes nothing. */
void become_compute_thread();

}  // namespace caravan
