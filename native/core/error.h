// Failures inside the native engine. They are caught by the command queue and reach JavaScript as a CaravanError.
#pragma once
#include <exception>
#include <string>

#include "core/fail.h"

namespace caravan {

class Error : public std::exception {
 public:
  Error(std::string code, std::string message) : code_(std::move(code)), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  const std::string& code() const { return code_; }

 private:
  std::string code_;
  std::string message_;
};

}  // namespace caravan
