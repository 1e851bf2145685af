#include "error.h"

#include <cstdarg>
#include <cstdio>

namespace fairy {
namespace {

thread_local char message[512] = "";

}  // namespace

fairy_status fail(fairy_status status, const char* format, ...) noexcept {
  va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof(message), format, values);
  va_end(values);
  return status;
}

const char* last_error() noexcept { return message; }

}  // namespace fairy
