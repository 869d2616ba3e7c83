// How kernels give up: without the exception's type, and so without the standard library.
#pragma once

namespace caravan {

/** Throws Error (core/error.h) with a printf-style message. */
[[noreturn]] void fail(const char* code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace caravan
