// The calling thread's last error, and the fence that keeps exceptions inside the library.
#pragma once

#include <new>

#include "fairy/kernels.h"

namespace fairy {

// Keep a message for fairy_last_error (printf's format, cut at 511 bytes) and return `status`.
__attribute__((format(printf, 2, 3))) fairy_status fail(fairy_status status, const char* format, ...) noexcept;

const char* last_error() noexcept;

// Run the body of a public function: what is thrown becomes a status.
template <typename Body>
fairy_status fenced(Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(FAIRY_ERROR_OUT_OF_MEMORY, "There is no host memory left for this call.");
  } catch (...) {
    return fail(FAIRY_ERROR_INTERNAL, "An unexpected exception ended this call.");
  }
}

}  // namespace fairy
