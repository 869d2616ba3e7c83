// Tensor maps: what the copy engine of compute capability 9.0 is told of a tensor. Only the driver can write them.
#pragma once
#include <cuda.h>

#include "core/types.h"

namespace caravan::cuda {

/** A matrix of `rows` rows of `columns` bf16, fetched in boxes of box_rows rows of 64 columns: rows of 128 bytes with
 *  their 16-byte chunks swizzled, zeros outside the matrix. `data` lies at a multiple of 16 bytes; so do all rows. */
CUtensorMap swizzled_boxes(const bf16* data, int64_t rows, int64_t columns, int box_rows);

}  // namespace caravan::cuda
