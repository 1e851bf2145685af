#include "arguments.h"

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "binaries.h"
#include "error.h"

namespace fairy {
namespace {

constexpr int64_t ALIGNMENT_BYTES = 16;  // of pointers: the kernels read 16 bytes at once
constexpr int64_t STRIDE_ELEMENTS = 8;   // the same of strides, in 16-bit elements
constexpr int64_t MAX_OFFSET = std::numeric_limits<int32_t>::max();
// Kernels count tokens in 32 bits and look up to one block beyond the last.
constexpr int64_t MAX_TOKENS = MAX_OFFSET - 1024;

fairy_status check_size(const char* name, int64_t value, int64_t most) noexcept {
  if (value >= 1 && value <= most) return FAIRY_SUCCESS;
  return fail(FAIRY_ERROR_SIZE, "%s = %" PRId64 " must be between 1 and %" PRId64 ".", name, value, most);
}

fairy_status check_pointer(const char* name, const void* pointer) noexcept {
  if (pointer == nullptr) return fail(FAIRY_ERROR_NULL_POINTER, "%s is null; give device memory.", name);
  if (reinterpret_cast<uintptr_t>(pointer) % ALIGNMENT_BYTES == 0) return FAIRY_SUCCESS;
  return fail(FAIRY_ERROR_ALIGNMENT, "%s = %p must lie on a multiple of %d bytes; copy it to such a place.", name,
              pointer, static_cast<int>(ALIGNMENT_BYTES));
}

fairy_status check_strides(const char* name, const fairy_strides& strides, int64_t tokens) noexcept {
  const struct {
    const char* name;
    int64_t value;
  } all[] = {{"group", strides.group}, {"frame", strides.frame}, {"token", strides.token}};
  for (const auto& stride : all) {
    if (stride.value < 0 || stride.value % STRIDE_ELEMENTS != 0) {
      return fail(FAIRY_ERROR_STRIDE, "The %s stride %" PRId64 " of %s must be a multiple of %d elements, 0 or more.",
                  stride.name, stride.value, name, static_cast<int>(STRIDE_ELEMENTS));
    }
  }
  if (strides.token > 0 && tokens - 1 > MAX_OFFSET / strides.token) {
    return fail(FAIRY_ERROR_SIZE,
                "%s reaches over 2^31 elements (%" PRId64 " tokens, token stride %" PRId64 "); split the tokens.", name,
                tokens, strides.token);
  }
  return FAIRY_SUCCESS;
}

fairy_status check_tensor(const char* name, const void* pointer, const fairy_strides& strides,
                          int64_t tokens) noexcept {
  if (const auto status = check_pointer(name, pointer)) return status;
  return check_strides(name, strides, tokens);
}

// Rows of the result must not share memory: a stride that is used spans at least one row.
fairy_status check_apart(const fairy_attention_args& args) noexcept {
  const int64_t row = int64_t{args.heads} * args.head_dim;
  const struct {
    const char* name;
    int64_t count, stride;
  } all[] = {{"group", args.groups, args.out_strides.group},
             {"frame", args.frames, args.out_strides.frame},
             {"token", args.tokens, args.out_strides.token}};
  for (const auto& axis : all) {
    if (axis.count > 1 && axis.stride < row) {
      return fail(FAIRY_ERROR_STRIDE,
                  "The %s stride %" PRId64 " of out must be at least the %" PRId64 " channels of a row.", axis.name,
                  axis.stride, row);
    }
  }
  return FAIRY_SUCCESS;
}

fairy_status check_source(int index, const fairy_source& source) noexcept {
  char name[32];
  std::snprintf(name, sizeof(name), "sources[%d].length", index);
  if (const auto status = check_size(name, source.length, MAX_TOKENS)) return status;
  std::snprintf(name, sizeof(name), "sources[%d].k", index);
  if (const auto status = check_tensor(name, source.k, source.k_strides, source.length)) return status;
  std::snprintf(name, sizeof(name), "sources[%d].v", index);
  return check_tensor(name, source.v, source.v_strides, source.length);
}

fairy_status check_sizes(const fairy_attention_args& args) noexcept {
  const struct {
    const char* name;
    int64_t value, most;
  } all[] = {{"groups", args.groups, MAX_OFFSET},
             {"frames", args.frames, MAX_OFFSET},
             {"tokens", args.tokens, MAX_TOKENS},
             {"heads", args.heads, MAX_OFFSET / args.head_dim}};
  for (const auto& size : all) {
    if (const auto status = check_size(size.name, size.value, size.most)) return status;
  }
  return FAIRY_SUCCESS;
}

}  // namespace

fairy_status check_kind(int32_t dtype, int32_t head_dim) noexcept {
  if (dtype != FAIRY_FLOAT16 && dtype != FAIRY_BFLOAT16) {
    return fail(FAIRY_ERROR_DTYPE, "dtype = %d is no fairy_dtype; give FAIRY_FLOAT16 or FAIRY_BFLOAT16.", dtype);
  }
  if (any_binary(dtype, head_dim)) return FAIRY_SUCCESS;
  return fail(FAIRY_ERROR_HEAD_DIM, "There is no kernel for head_dim = %d in this type; fairy_kernels_get lists them.",
              head_dim);
}

fairy_status check_arguments(const fairy_attention_args* args) noexcept {
  if (args == nullptr) return fail(FAIRY_ERROR_NULL_POINTER, "args is null; give a fairy_attention_args.");
  if (args->struct_size != sizeof(*args)) {
    return fail(FAIRY_ERROR_STRUCT_SIZE, "struct_size = %zu must be sizeof(fairy_attention_args), here %zu.",
                args->struct_size, sizeof(*args));
  }
  if (const auto status = check_kind(args->dtype, args->head_dim)) return status;
  if (const auto status = check_sizes(*args)) return status;
  if (args->source_count < 1 || args->source_count > FAIRY_MAX_SOURCES) {
    return fail(FAIRY_ERROR_SOURCES, "source_count = %d must be between 1 and %d.", args->source_count,
                FAIRY_MAX_SOURCES);
  }
  if (const auto status = check_tensor("q", args->q, args->q_strides, args->tokens)) return status;
  if (const auto status = check_tensor("out", args->out, args->out_strides, args->tokens)) return status;
  if (const auto status = check_apart(*args)) return status;
  for (int i = 0; i < args->source_count; ++i) {
    if (const auto status = check_source(i, args->sources[i])) return status;
  }
  return FAIRY_SUCCESS;
}

}  // namespace fairy
