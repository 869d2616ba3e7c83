// The harness for GPU kernels must see what a GPU would not survive: kernels with one fault each, and the same ones
// right.
#include "harness.h"

#include <stdexcept>
#include <vector>

std::string outcome(unsigned threads, const char* order, const std::function<void()>& body, size_t shared_bytes) {
  setenv("CARAVAN_SIMT_ORDER", order, 1);
  try {
    simt::run({1, 1, 1}, {threads, 1, 1}, shared_bytes, simt::BodyOf(body));
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

namespace {

/** Every thread writes its number and reads its neighbour's. */
std::vector<int> neighbours(bool with_barrier, const char* order) {
  static int shared[64];
  std::vector<int> seen(64, -1);
  for (int& x : shared) x = -1;
  const std::string fault = outcome(64, order, [&] {
    const unsigned own = threadIdx.x;
    shared[own] = static_cast<int>(own);
    if (with_barrier) __syncthreads();
    seen[own] = shared[(own + 1) % 64];
  });
  CHECK(fault.empty());
  return seen;
}

void barriers() {
  CHECK(neighbours(true, "forward") == neighbours(true, "reverse"));
  CHECK(neighbours(false, "forward") != neighbours(false, "reverse"));
  CHECK(contains(outcome(64, "forward",
                         [] {
                           if (threadIdx.x < 32) __syncthreads();
                         }),
                 "divergent __syncthreads"));
  CHECK(contains(outcome(32, "forward",
                         [] {
                           if (threadIdx.x < 16) __syncwarp();
                         }),
                 "divergent warp barrier"));
  CHECK(outcome(48, "forward", [] {
          __syncwarp();
          __syncthreads();
        }).empty());
}

void shuffles() {
  CHECK(outcome(32, "reverse", [] {
          const int own = static_cast<int>(threadIdx.x);
          int sum = own;
          for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
          if (sum != 496) simt::fault("sum %d", sum);
          if (__ballot_sync(0xffffffffu, own % 2) != 0xaaaaaaaau) simt::fault("ballot");
          if (__shfl_down_sync(0xffffffffu, own, 4, 8) != (own % 8 < 4 ? own + 4 : own)) simt::fault("shuffle down");
        }).empty());
  const std::string outside = outcome(32, "forward", [] { __shfl_sync(0xffffu, 1, 20); });
  CHECK(contains(outside, "not in its mask") || contains(outside, "does not name it"));
}

void copies() {
  alignas(16) static unsigned char from[32], to[32];
  for (int i = 0; i < 32; i++) from[i] = static_cast<unsigned char>(i + 1);
  std::string fault = outcome(1, "forward", [] {
    to[0] = 0;
    simt::cp_async16(to, from, true);
    simt::cp_async_commit();
    simt::cp_async16(to + 16, from, false);
    simt::cp_async_commit();
    if (to[0] != 0) simt::fault("a copy landed before its wait");
    simt::cp_async_wait(1);
    if (to[0] != 1) simt::fault("a copy did not land at its wait");
    simt::cp_async_wait(0);
    if (to[16] != 0) simt::fault("an invalid copy did not write zeros");
  });
  CHECK(fault.empty());
  CHECK(contains(outcome(1, "forward", [] { simt::cp_async16(to + 1, from, true); }), "misaligned"));
  CHECK(contains(outcome(1, "forward", [] { simt::cp_async16(to, from, true); }), "under way"));
}

/** A copy to the host leaves in order and arrives late; who looks too early is told so, and keeps the error. */
void late_reads() {
  cudaStream_t stream;
  cudaEvent_t over;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaEventCreateWithFlags(&over, cudaEventDisableTiming) == cudaSuccess);
  int on_device = 1, on_host = 0;
  cudaMemcpyAsync(&on_host, &on_device, sizeof(int), cudaMemcpyDeviceToHost, stream);
  cudaEventRecord(over, stream);
  on_device = 2;
  CHECK(on_host != 1 && on_host != 2);
  CHECK(cudaEventQuery(over) == cudaErrorNotReady);
  CHECK(cudaGetLastError() == cudaErrorNotReady && cudaGetLastError() == cudaSuccess);
  while (cudaEventQuery(over) == cudaErrorNotReady) CHECK(on_host != 1);
  CHECK(on_host == 1);
  cudaMemcpyAsync(&on_host, &on_device, sizeof(int), cudaMemcpyDeviceToHost, stream);
  CHECK(cudaEventSynchronize(over) == cudaSuccess && on_host != 2);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess && on_host == 2);
  cudaGetLastError();
  cudaEventDestroy(over);
  cudaStreamDestroy(stream);
}

/** d = a b by fragments whose layout is that of the instruction, against loops. */
void tensor_cores() {
  static float d[16][8];
  const std::string fault = outcome(32, "reverse", [] {
    const int group = static_cast<int>(threadIdx.x) / 4, member = static_cast<int>(threadIdx.x) % 4;
    const auto pair = [](float low, float high) {
      return (__float_as_uint(low) >> 16) | (__float_as_uint(high) & 0xffff0000u);
    };
    const auto a = [](int row, int k) { return static_cast<float>(row * 2 - k); };
    const auto b = [](int k, int column) { return static_cast<float>(k - 3 * column); };
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; i++) {
      const int row = group + i % 2 * 8, k = member * 2 + i / 2 * 8;
      fa[i] = pair(a(row, k), a(row, k + 1));
    }
    for (int i = 0; i < 2; i++) {
      const int k = member * 2 + i * 8;
      fb[i] = pair(b(k, group), b(k + 1, group));
    }
    float sums[4] = {1, 1, 1, 1};
    simt::mma_m16n8k16_bf16(sums, fa, fb);
    for (int i = 0; i < 4; i++) d[group + i / 2 * 8][member * 2 + i % 2] = sums[i];
  });
  CHECK(fault.empty());
  for (int row = 0; row < 16; row++) {
    for (int column = 0; column < 8; column++) {
      float sum = 1;
      for (int k = 0; k < 16; k++) sum += static_cast<float>((row * 2 - k) * (k - 3 * column));
      CHECK(d[row][column] == sum);
    }
  }
}

}  // namespace

int main() {
  barriers();
  shuffles();
  copies();
  late_reads();
  tensor_cores();
  hopper_checks();
  return check::finish("harness_test");
}
