// Which kernels compute attention over many queries in bf16: those of compute capability 9.0 (wgmma), or those of any
// (mma.sync).
#pragma once
#include <string>

namespace caravan::cuda {

struct AttentionForm {
  bool hopper;
  std::string reason;
};

/** That of the current device, found out once a process. Those of compute capability 9.0 are taken where it has them
 * and their products have the bits of mma.sync; CARAVAN_CUDA_ATTENTION: auto, mma (never), wgmma (whatever their bits).
 *  Throws ERR_CONFIG for anything else. */
const AttentionForm& attention_form();

}  // namespace caravan::cuda
