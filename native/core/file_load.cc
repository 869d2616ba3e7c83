#include "core/file_load.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace caravan {

namespace {

constexpr int64_t kBufferElements = int64_t{1} << 20;

float half_to_f32(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t exponent = (half >> 10) & 0x1fu;
  uint32_t fraction = half & 0x3ffu;
  if (exponent == 0) {
    float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -magnitude : magnitude;
  }
  uint32_t bits =
      exponent == 31 ? sign | 0x7f800000u | (fraction << 13) : sign | ((exponent + 112u) << 23) | (fraction << 13);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <typename T>
T element(const uint8_t* bytes, int64_t i) {
  T value;
  std::memcpy(&value, bytes + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

double widened(const uint8_t* bytes, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return element<float>(bytes, i);
    case DType::kBF16:
      return to_f32(element<bf16>(bytes, i));
    case DType::kF16:
      return half_to_f32(element<uint16_t>(bytes, i));
    case DType::kF64:
      return element<double>(bytes, i);
    case DType::kI32:
      return element<int32_t>(bytes, i);
    case DType::kU8:
      return bytes[i];
  }
  return 0;
}

void narrow(uint8_t* bytes, int64_t i, DType dtype, double value) {
  switch (dtype) {
    case DType::kF32: {
      float narrowed = static_cast<float>(value);
      std::memcpy(bytes + i * 4, &narrowed, 4);
      return;
    }
    case DType::kBF16: {
      bf16 narrowed = to_bf16(static_cast<float>(value));
      std::memcpy(bytes + i * 2, &narrowed, 2);
      return;
    }
    case DType::kF64:
      std::memcpy(bytes + i * 8, &value, 8);
      return;
    default:
      fail("ERR_DTYPE", "file elements can be converted to f32, bf16 or f64 only");
  }
}

struct OpenFile {
  int descriptor;
  explicit OpenFile(const std::string& path) : descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor < 0) fail("ERR_FILE", "cannot open %s: %s", path.c_str(), std::strerror(errno));
  }
  ~OpenFile() { close(descriptor); }
};

void read_fully(int descriptor, uint8_t* bytes, size_t count, int64_t offset, const std::string& path) {
  while (count > 0) {
    ssize_t got = pread(descriptor, bytes, count, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      fail("ERR_FILE", "cannot read %s at byte %lld: %s", path.c_str(), static_cast<long long>(offset),
           std::strerror(errno));
    if (got == 0)
      fail("ERR_FORMAT", "%s ends at byte %lld, %zu bytes too early", path.c_str(), static_cast<long long>(offset),
           count);
    bytes += got;
    count -= static_cast<size_t>(got);
    offset += got;
  }
}

}  // namespace

void load_elements(Device& device, const View& target, const std::string& path, int64_t offset, DType source) {
  OpenFile file(path);
  size_t source_size = size_of(source);
  size_t target_size = size_of(target.dtype);
  std::vector<uint8_t> raw, converted;
  char* destination = static_cast<char*>(target.data);
  for (int64_t done = 0, count = target.count(); done < count;) {
    int64_t n = std::min(kBufferElements, count - done);
    raw.resize(static_cast<size_t>(n) * source_size);
    read_fully(file.descriptor, raw.data(), raw.size(), offset + done * static_cast<int64_t>(source_size), path);
    const std::vector<uint8_t>* bytes = &raw;
    if (source != target.dtype) {
      converted.resize(static_cast<size_t>(n) * target_size);
      for (int64_t i = 0; i < n; i++) narrow(converted.data(), i, target.dtype, widened(raw.data(), i, source));
      bytes = &converted;
    }
    device.copy_in(destination, bytes->data(), bytes->size());
    destination += bytes->size();
    done += n;
  }
}

}  // namespace caravan
