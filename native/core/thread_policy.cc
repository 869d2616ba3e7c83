#include "core/thread_policy.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace caravan {

void become_compute_thread() {
#ifdef __linux__
  sched_param none = {};
  sched_setscheduler(0, SCHED_BATCH, &none);  // 0: this thread
#endif
}

}  // namespace caravan
