// A profiler as small as can be: writes the ranges of NVTX that it is told of to the file named in NVTX_TEST_LOG.
#include <nvtx3/nvToolsExt.h>

#include <cstdio>
#include <cstdlib>

static std::FILE* log_file;

static nvtxDomainHandle_t create_domain(const char* name) {
  std::fprintf(log_file, "domain %s\n", name);
  return reinterpret_cast<nvtxDomainHandle_t>(&log_file);
}
static int begin(nvtxDomainHandle_t, const nvtxEventAttributes_t* attributes) {
  std::fprintf(log_file, "begin %s\n", attributes->message.ascii);
  return std::fflush(log_file);
}
static int end(nvtxDomainHandle_t) {
  std::fprintf(log_file, "end\n");
  return std::fflush(log_file);
}

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t table_of) {
  log_file = std::fopen(std::getenv("NVTX_TEST_LOG"), "a");
  auto tables = static_cast<const NvtxExportTableCallbacks*>(table_of(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable functions;
  if (log_file == nullptr || tables->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &functions, nullptr) == 0) return 0;
  *functions[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(create_domain);
  *functions[NVTX_CBID_CORE2_DomainRangePushEx] = reinterpret_cast<NvtxFunctionPointer>(begin);
  *functions[NVTX_CBID_CORE2_DomainRangePop] = reinterpret_cast<NvtxFunctionPointer>(end);
  return 1;
}
