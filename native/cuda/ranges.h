// Names for the timeline of a profiler (NVTX). The toolkit's header brings all that is needed: it opens the library
// that the profiler names in the environment, and does nothing where there is none. Built without it, nothing is named.
#pragma once
#include <memory>
#include <string>

namespace caravan::cuda {

/** Ranges of the calling thread, in the domain `caravan`. */
class Ranges {
 public:
  /** Null unless somebody looks: CARAVAN_NVTX=1, or a profiler has named its library and CARAVAN_NVTX is not 0. */
  static std::unique_ptr<Ranges> wanted();
  Ranges();
  ~Ranges();
  void begin(const char* name);
  void end();

 private:
  struct Domain;
  std::unique_ptr<Domain> domain_;
};

/** For `doctor`: whether ranges are named, and how to have them. */
std::string ranges_finding();

}  // namespace caravan::cuda
