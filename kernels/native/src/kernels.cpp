// The public functions of fairy/kernels.h.
#include "fairy/kernels.h"

#include "arguments.h"
#include "attention.h"
#include "binaries.h"
#include "error.h"
#include "generated.h"
#include "modules.h"

extern "C" {

fairy_status fairy_anchor_attention(const fairy_attention_args* args, void* stream) {
  return fairy::fenced([&]() -> fairy_status {
    if (const auto status = fairy::check_arguments(args)) return status;
    return fairy::launch_attention(*args, stream);
  });
}

fairy_status fairy_kernels_load(int32_t dtype, int32_t head_dim) {
  return fairy::fenced([&]() -> fairy_status {
    if (const auto status = fairy::check_kind(dtype, head_dim)) return status;
    fairy::Kernel kernel{};
    return fairy::load_kernel(dtype, head_dim, &kernel);
  });
}

fairy_status fairy_kernels_unload(void) {
  return fairy::fenced([] { return fairy::unload_kernels(); });
}

size_t fairy_kernels_count(void) { return fairy::binaries().count; }

fairy_status fairy_kernels_get(size_t index, fairy_kernel_info* info) {
  if (info == nullptr) return fairy::fail(FAIRY_ERROR_NULL_POINTER, "info is null; give a fairy_kernel_info.");
  if (info->struct_size != sizeof(*info)) {
    return fairy::fail(FAIRY_ERROR_STRUCT_SIZE, "struct_size = %zu must be sizeof(fairy_kernel_info), here %zu.",
                       info->struct_size, sizeof(*info));
  }
  if (index >= fairy::binaries().count) {
    return fairy::fail(FAIRY_ERROR_INDEX, "There is no kernel %zu: the library holds %zu.", index,
                       fairy::binaries().count);
  }
  const fairy::Binary& row = fairy::binaries().rows[index];
  *info = {sizeof(*info),  row.name,  row.dtype,   row.head_dim,     row.major, row.minor,
           row.only_exact, row.block, row.threads, row.shared_bytes, row.bytes};
  return FAIRY_SUCCESS;
}

int fairy_kernels_available(int32_t dtype, int32_t head_dim, int32_t major, int32_t minor) {
  return fairy::pick_binary(dtype, head_dim, major, minor) != nullptr;
}

const char* fairy_kernels_version(void) { return FAIRY_VERSION " (" FAIRY_COMPILER ")"; }

const char* fairy_status_string(int32_t status) {
  switch (status) {
#define FAIRY_NAME(name) \
  case name:             \
    return #name
    FAIRY_NAME(FAIRY_SUCCESS);
    FAIRY_NAME(FAIRY_ERROR_STRUCT_SIZE);
    FAIRY_NAME(FAIRY_ERROR_NULL_POINTER);
    FAIRY_NAME(FAIRY_ERROR_DTYPE);
    FAIRY_NAME(FAIRY_ERROR_HEAD_DIM);
    FAIRY_NAME(FAIRY_ERROR_SIZE);
    FAIRY_NAME(FAIRY_ERROR_SOURCES);
    FAIRY_NAME(FAIRY_ERROR_ALIGNMENT);
    FAIRY_NAME(FAIRY_ERROR_STRIDE);
    FAIRY_NAME(FAIRY_ERROR_INDEX);
    FAIRY_NAME(FAIRY_ERROR_NO_DRIVER);
    FAIRY_NAME(FAIRY_ERROR_NO_DEVICE);
    FAIRY_NAME(FAIRY_ERROR_NO_CONTEXT);
    FAIRY_NAME(FAIRY_ERROR_NO_KERNEL);
    FAIRY_NAME(FAIRY_ERROR_DRIVER);
    FAIRY_NAME(FAIRY_ERROR_OUT_OF_MEMORY);
    FAIRY_NAME(FAIRY_ERROR_INTERNAL);
#undef FAIRY_NAME
    default:
      return "unknown fairy_status";
  }
}

const char* fairy_last_error(void) { return fairy::last_error(); }

}  // extern "C"
