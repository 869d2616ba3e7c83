#include "cuda/ranges.h"

#include <cstdlib>
#include <cstring>

#if __has_include(<nvtx3/nvToolsExt.h>)
#define CARAVAN_NVTX_BUILT
#include <nvtx3/nvToolsExt.h>
#endif

namespace caravan::cuda {

namespace {

bool asked_for() {
  const char* own = std::getenv("CARAVAN_NVTX");
  if (own != nullptr && *own != '\0') return std::strcmp(own, "0") != 0;
  const char* profiler = std::getenv("NVTX_INJECTION64_PATH");
  return profiler != nullptr && *profiler != '\0';
}

}  // namespace

#ifdef CARAVAN_NVTX_BUILT

struct Ranges::Domain {
  nvtxDomainHandle_t handle;
};

std::unique_ptr<Ranges> Ranges::wanted() { return asked_for() ? std::make_unique<Ranges>() : nullptr; }

Ranges::Ranges() : domain_(new Domain{nvtxDomainCreateA("caravan")}) {}
Ranges::~Ranges() { nvtxDomainDestroy(domain_->handle); }

void Ranges::begin(const char* name) {
  nvtxEventAttributes_t attributes = {};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(domain_->handle, &attributes);
}

void Ranges::end() { nvtxDomainRangePop(domain_->handle); }

std::string ranges_finding() {
  return asked_for() ? "ranges are named" : "off; CARAVAN_NVTX=1 names ranges for a profiler";
}

#else

struct Ranges::Domain {};

std::unique_ptr<Ranges> Ranges::wanted() { return nullptr; }

Ranges::Ranges() = default;
Ranges::~Ranges() = default;
void Ranges::begin(const char*) {}
void Ranges::end() {}

std::string ranges_finding() { return "not built in: nvtx3/nvToolsExt.h was not found beside nvcc"; }

#endif

}  // namespace caravan::cuda
