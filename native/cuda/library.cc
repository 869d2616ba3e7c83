#include "cuda/library.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace caravan::cuda {

namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void add_matches(std::vector<std::string>& paths, const std::string& pattern) {
  glob_t found;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; i++) paths.push_back(found.gl_pathv[i]);
  }
  globfree(&found);
}

/** Where `name` may lie, in the order of the search. */
std::vector<std::string> places(const std::string& name) {
  std::vector<std::string> paths;
  const std::string own = variable("CARAVAN_CUDA_LIBS");
  for (size_t begin = 0; begin < own.size();) {
    const size_t end = std::min(own.find(':', begin), own.size());
    if (end > begin) paths.push_back(own.substr(begin, end - begin) + "/" + name);
    begin = end + 1;
  }
  paths.push_back(name);
  for (const std::string& home : {variable("CUDA_HOME"), variable("CUDA_PATH"), std::string("/usr/local/cuda")}) {
    if (!home.empty()) paths.push_back(home + "/lib64/" + name);
  }
  for (const std::string& root : {variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"), variable("HOME") + "/.local",
                                  std::string("/usr/local"), std::string("/usr")}) {
    if (root.empty()) continue;
    for (const char* packages :
         {"/lib/python3*/site-packages", "/lib/python3*/dist-packages", "/lib/python3/dist-packages"}) {
      add_matches(paths, root + packages + "/nvidia/*/lib/" + name);
    }
  }
  return paths;
}

/** The file that `handle` was loaded from: a bare name was looked for by the system. */
std::string file_of(void* handle, const std::string& path) {
  link_map* loaded = nullptr;
  const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &loaded) == 0 && loaded->l_name != nullptr;
  return known && *loaded->l_name != '\0' ? loaded->l_name : path;
}

Library find(const std::vector<std::string>& names, const char* remedy) {
  Library library;
  std::string broken;
  for (const std::string& name : names) {
    for (const std::string& path : places(name)) {
      // Never closed: libraries of CUDA do not survive it.
      library.handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library.handle == nullptr) {
        const char* why = dlerror();
        if (broken.empty() && access(path.c_str(), F_OK) == 0) broken = why == nullptr ? path : why;
        continue;
      }
      library.path = file_of(library.handle, path);
      return library;
    }
  }
  library.reason = (broken.empty() ? "not found" : "does not load: " + broken) + " (install " + remedy +
                   ", or name its folder in CARAVAN_CUDA_LIBS)";
  return library;
}

}  // namespace

const Library& cublas_lt_library() {
  static const Library library =
      find({"libcublasLt.so.13", "libcublasLt.so.12"}, "the CUDA toolkit or `pip install nvidia-cublas`");
  return library;
}

const Library& nccl_library() {
  static const Library library = find({"libnccl.so.2"}, "the package libnccl2 or `pip install nvidia-nccl-cu13`");
  return library;
}

std::string nccl_version(const Library& library) {
  auto version_of = reinterpret_cast<int (*)(int*)>(dlsym(library.handle, "ncclGetVersion"));
  int code = 0;
  if (version_of == nullptr || version_of(&code) != 0) return "of unknown version";
  // Up to 2.8 a minor version had one digit.
  const int major = code < 10000 ? 1000 : 10000;
  return std::to_string(code / major) + "." + std::to_string(code % major / 100) + "." + std::to_string(code % 100);
}

}  // namespace caravan::cuda
