#include "attention.h"

#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "error.h"
#include "generated.h"
#include "modules.h"

namespace fairy {
namespace {

constexpr int N = FAIRY_MAX_SOURCES;

// The kernel's parameters, under the names of its signature in kernels/ahead_of_time.py: k0 is k[0].
struct Parameters {
  const void *q, *out, *k[N] = {}, *v[N] = {};
  int64_t q_group, q_frame, out_group, out_frame;
  int32_t q_token, out_token;
  int64_t kg[N] = {}, kf[N] = {}, vg[N] = {}, vf[N] = {};
  int32_t kt[N] = {}, vt[N] = {}, length[N] = {};
  int32_t sources, frames, tokens, heads;
  float scale;
};

template <typename Wanted, typename Field>
void* slot(Field& field) {
  static_assert(std::is_same_v<Wanted, Field>, "the kernel's signature and the launcher disagree on a type");
  return const_cast<void*>(static_cast<const void*>(&field));
}

void fill_source(Parameters& p, int i, const fairy_source& source) {
  p.k[i] = source.k;
  p.v[i] = source.v;
  p.kg[i] = source.k_strides.group;
  p.kf[i] = source.k_strides.frame;
  p.kt[i] = static_cast<int32_t>(source.k_strides.token);
  p.vg[i] = source.v_strides.group;
  p.vf[i] = source.v_strides.frame;
  p.vt[i] = static_cast<int32_t>(source.v_strides.token);
  p.length[i] = static_cast<int32_t>(source.length);
}

Parameters parameters(const fairy_attention_args& args) {
  Parameters p;
  p.q = args.q;
  p.out = args.out;
  p.q_group = args.q_strides.group;
  p.q_frame = args.q_strides.frame;
  p.q_token = static_cast<int32_t>(args.q_strides.token);
  p.out_group = args.out_strides.group;
  p.out_frame = args.out_strides.frame;
  p.out_token = static_cast<int32_t>(args.out_strides.token);
  p.sources = args.source_count;
  p.frames = args.frames;
  p.tokens = args.tokens;
  p.heads = args.heads;
  // Softmax in base 2: log2(e) / sqrt(head_dim).
  p.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(args.head_dim)));
  for (int i = 0; i < args.source_count; ++i) fill_source(p, i, args.sources[i]);
  return p;
}

// groups * frames * heads * blocks, or 0 where that is more than a grid holds.
unsigned grid_size(const fairy_attention_args& args, int32_t block) {
  const uint64_t most = std::numeric_limits<int32_t>::max();
  const uint64_t factors[] = {static_cast<uint64_t>(args.groups), static_cast<uint64_t>(args.frames),
                              static_cast<uint64_t>(args.heads)};
  uint64_t programs = (static_cast<uint64_t>(args.tokens) + block - 1) / block;
  for (const uint64_t factor : factors) {
    programs *= factor;  // both below 2^31
    if (programs > most) return 0;
  }
  return static_cast<unsigned>(programs);
}

}  // namespace

fairy_status launch_attention(const fairy_attention_args& args, void* stream) {
  Kernel kernel{};
  if (const auto status = load_kernel(args.dtype, args.head_dim, &kernel)) return status;
  const unsigned grid = grid_size(args, kernel.binary->block);
  if (grid == 0) {
    return fail(FAIRY_ERROR_SIZE, "groups * frames * heads * ceil(tokens / %d) must stay below 2^31; split the frames.",
                kernel.binary->block);
  }
  Parameters p = parameters(args);
  void* unused = nullptr;  // two trailing pointers of every Triton kernel, which this one never reads
#define FAIRY_SLOT(type, field) slot<type>(p.field),
  void* slots[] = {FAIRY_PARAMETERS(FAIRY_SLOT) & unused, &unused};
#undef FAIRY_SLOT
  const CUresult result = kernel.driver->cuLaunchKernel(
      kernel.function, grid, 1, 1, static_cast<unsigned>(kernel.binary->threads), 1, 1,
      static_cast<unsigned>(kernel.binary->shared_bytes), static_cast<CUstream>(stream), slots, nullptr);
  return checked(*kernel.driver, result, "cuLaunchKernel");
}

}  // namespace fairy
