// Kernels that are loaded into CUDA contexts, each once.
#pragma once

#include "binaries.h"
#include "driver.h"

namespace fairy {

struct Kernel {
  const Driver* driver;
  const Binary* binary;
  CUfunction function;
};

// The kernel for a type and head dimension in the calling thread's current context; loaded where it is not yet.
fairy_status load_kernel(int32_t dtype, int32_t head_dim, Kernel* kernel);

// Unload everything from the calling thread's current context.
fairy_status unload_kernels();

}  // namespace fairy
