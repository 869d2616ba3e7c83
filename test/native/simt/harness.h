// What the tests of the harness share.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <string>

#include "../check.h"

/** Runs `body` as one block of `threads`; the message of what went wrong, or "". */
std::string outcome(unsigned threads, const char* order, const std::function<void()>& body, size_t shared_bytes = 0);

inline bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

/** Checks of compute capability 9.0. */
void hopper_checks();
