// A call that is right in every argument, for tests to spoil, and what the library holds.
#pragma once

#include <vector>

#include "fairy/kernels.h"

inline std::vector<fairy_kernel_info> all_kernels() {
  std::vector<fairy_kernel_info> all(fairy_kernels_count());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = {};
    all[i].struct_size = sizeof(fairy_kernel_info);
    fairy_kernels_get(i, &all[i]);
  }
  return all;
}

// Pointers are places that are never read: 0x1000 q, 0x2000 out, 0x3000 + 0x100·i keys, 0x4000 + 0x100·i values.
inline fairy_attention_args sample_call(const fairy_kernel_info& kernel, int source_count) {
  const auto at = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
  const int64_t row = int64_t{3} * kernel.head_dim;
  fairy_attention_args args = {};
  args.struct_size = sizeof(args);
  args.dtype = kernel.dtype;
  args.groups = 2;
  args.frames = 5;
  args.tokens = 131;
  args.heads = 3;
  args.head_dim = kernel.head_dim;
  args.q = at(0x1000);
  args.q_strides = {5 * 131 * row, 131 * row, row};
  args.out = at(0x2000);
  args.out_strides = {5 * 131 * (row + 8), 131 * (row + 8), row + 8};
  args.source_count = source_count;
  for (int i = 0; i < source_count; ++i) {
    fairy_source& source = args.sources[i];
    source.k = at(static_cast<uintptr_t>(0x3000 + 0x100 * i));
    source.v = at(static_cast<uintptr_t>(0x4000 + 0x100 * i));
    source.length = 10 + i;
    source.k_strides = {1000 * row + 8 * i, i ? 0 : 100 * row, row + 16 * i};
    source.v_strides = {2000 * row + 8 * i, i ? 0 : 200 * row, row + 32 * i};
  }
  return args;
}
