// Lists the kernels of libfairy_kernels.so and, where there is a GPU, lets two frames attend to an anchor they share.
#include <fairy/kernels.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "device.h"

namespace {

constexpr int FRAMES = 2, TOKENS = 48, HEADS = 2, DIM = 40, CHANNELS = HEADS * DIM;
constexpr uint16_t HALF_ONE = 0x3C00, HALF_TWO = 0x4000;

void list_kernels() {
  std::printf("fairy %s: %zu kernels\n", fairy_kernels_version(), fairy_kernels_count());
  for (size_t i = 0; i < fairy_kernels_count(); ++i) {
    fairy_kernel_info info{};
    info.struct_size = sizeof(info);
    if (fairy_kernels_get(i, &info) == FAIRY_SUCCESS) std::printf("  %s, %zu bytes\n", info.name, info.binary_bytes);
  }
}

void* filled(const Device& device, int tokens, uint16_t value) {
  const std::vector<uint16_t> host(static_cast<size_t>(tokens) * CHANNELS, value);
  void* memory = device.allocate(host.size() * sizeof(uint16_t));
  device.write(memory, host.data(), host.size() * sizeof(uint16_t));
  return memory;
}

// All scores are equal, so every result is the mean of all values: half of them 1, half of them 2.
int attend(const Device& device) {
  int major = 0, minor = 0;
  device.capability(&major, &minor);
  if (!fairy_kernels_available(FAIRY_FLOAT16, DIM, major, minor)) {
    std::printf("no kernel for this GPU of compute capability %d.%d\n", major, minor);
    return 0;
  }
  void* q = filled(device, FRAMES * TOKENS, HALF_ONE);
  void* own = filled(device, FRAMES * TOKENS, HALF_ONE);
  void* anchor = filled(device, TOKENS, HALF_TWO);
  void* keys = filled(device, FRAMES * TOKENS, HALF_ONE);
  void* out = filled(device, FRAMES * TOKENS, 0);
  const fairy_strides per_frame = {FRAMES * TOKENS * CHANNELS, TOKENS * CHANNELS, CHANNELS};
  const fairy_strides shared = {TOKENS * CHANNELS, 0, CHANNELS};

  fairy_attention_args args = {};
  args.struct_size = sizeof(args);
  args.dtype = FAIRY_FLOAT16;
  args.groups = 1;
  args.frames = FRAMES;
  args.tokens = TOKENS;
  args.heads = HEADS;
  args.head_dim = DIM;
  args.q = q;
  args.q_strides = per_frame;
  args.out = out;
  args.out_strides = per_frame;
  args.source_count = 2;
  args.sources[0] = {keys, own, TOKENS, per_frame, per_frame};
  args.sources[1] = {keys, anchor, TOKENS, shared, shared};
  if (fairy_anchor_attention(&args, nullptr) != FAIRY_SUCCESS) {
    std::fprintf(stderr, "%s\n", fairy_last_error());
    return 1;
  }
  std::vector<uint16_t> host(static_cast<size_t>(FRAMES) * TOKENS * CHANNELS);
  device.read(host.data(), out, host.size() * sizeof(uint16_t));
  std::printf("the mean of 1 and 2 in half precision: 0x%04X (1.5 is 0x3E00)\n", host.back());
  for (void* memory : {q, own, anchor, keys, out}) device.release(memory);
  return fairy_kernels_unload() == FAIRY_SUCCESS ? 0 : 1;
}

}  // namespace

int main() {
  list_kernels();
  if (fairy_kernels_load(FAIRY_FLOAT16, DIM) == FAIRY_ERROR_NO_CONTEXT) {
    try {
      return attend(Device());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  }
  std::printf("%s\n", fairy_last_error());  // no GPU here: the library says so, and nothing else happens
  return 0;
}
