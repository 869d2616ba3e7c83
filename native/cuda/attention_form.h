// Which kernels compute attention over many queries in bf16: those of compute capability 9.0 (wgmma), or those of any
// (mma.sync).
#pragma once
#include <string>

namespace caravan::cuda {

struct AttentionForm {
  bool wgmma_forward, wgmma_backward;
  std::string reason;
};

/** That of the current device, found out once a process. wgmma is taken where the device has it; forward, where
 *  training and decoding must agree, only when its products have the bits of mma.sync. CARAVAN_CUDA_ATTENTION: auto,
 * mma (never wgmma), wgmma (whatever its bits). Throws ERR_CONFIG for anything else. */
const AttentionForm& attention_form();

}  // namespace caravan::cuda
