// Reads tensor elements from a file into device memory, converting the element type on the way.
#pragma once
#include <string>

#include "core/device.h"

namespace caravan {

/** Fills `target` with its count of elements of type `source` (f32, f16, bf16, i32; or equal types) stored little
 *  endian at `offset` of `path`. Reads through a small buffer with pread, so a file that is truncated meanwhile is an
 *  ERR_FORMAT and not a bus error, as it would be under mmap. Errors: ERR_FILE, ERR_FORMAT, ERR_DTYPE. */
void load_elements(Device& device, const View& target, const std::string& path, int64_t offset, DType source);

}  // namespace caravan
