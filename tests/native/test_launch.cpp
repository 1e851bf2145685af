// What reaches the driver, watched by the fake one: parameters, grid, shared memory, modules, contexts, errors.
#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_driver.h"
#include "sample.h"

namespace {

FakeDriver* fake = nullptr;
int (*set_current)(void*) = nullptr;

template <typename T>
void expect(std::vector<uint64_t>& values, std::vector<unsigned>& sizes, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  values.push_back(bits);
  sizes.push_back(sizeof(value));
}

// The parameters in the order of the kernel's signature (kernels/ahead_of_time.py), then two null pointers.
void expect_parameters(const fairy_attention_args& a) {
  std::vector<uint64_t> values;
  std::vector<unsigned> sizes;
  const auto put = [&](auto value) { expect(values, sizes, value); };
  const auto put_all = [&](auto field) {
    for (int i = 0; i < FAIRY_MAX_SOURCES; ++i) put(field(a.sources[i]));
  };
  put(a.q);
  put(static_cast<const void*>(a.out));
  put_all([](const auto& s) { return s.k; });
  put_all([](const auto& s) { return s.v; });
  for (const auto& strides : {a.q_strides, a.out_strides}) {
    put(strides.group);
    put(strides.frame);
    put(static_cast<int32_t>(strides.token));
  }
  put_all([](const auto& s) { return s.k_strides.group; });
  put_all([](const auto& s) { return s.k_strides.frame; });
  put_all([](const auto& s) { return static_cast<int32_t>(s.k_strides.token); });
  put_all([](const auto& s) { return s.v_strides.group; });
  put_all([](const auto& s) { return s.v_strides.frame; });
  put_all([](const auto& s) { return static_cast<int32_t>(s.v_strides.token); });
  put_all([](const auto& s) { return static_cast<int32_t>(s.length); });
  for (const int32_t size : {a.source_count, a.frames, a.tokens, a.heads}) put(size);
  put(static_cast<float>(std::log2(std::exp(1.0)) / std::sqrt(static_cast<double>(a.head_dim))));
  put(static_cast<void*>(nullptr));
  put(static_cast<void*>(nullptr));

  CHECK_EQUAL(values.size(), fake->values.size());
  for (size_t i = 0; i < std::min(values.size(), fake->values.size()); ++i) {
    if (values[i] == fake->values[i] && sizes[i] == fake->sizes[i]) continue;
    ++failures;
    std::cerr << "parameter " << i << ": expected " << values[i] << " in " << sizes[i] << " bytes, got "
              << fake->values[i] << " in " << fake->sizes[i] << "\n";
  }
}

void check_launch(const fairy_kernel_info& kernel) {
  int somewhere = 0;
  fake->major = kernel.major;
  fake->minor = kernel.minor;
  ++fake->generation;  // as if the context were another one at the same address
  for (int sources = 1; sources <= FAIRY_MAX_SOURCES; ++sources) {
    const fairy_attention_args args = sample_call(kernel, sources);
    CHECK_EQUAL(fairy_anchor_attention(&args, &somewhere), FAIRY_SUCCESS);
    expect_parameters(args);
  }
  const unsigned blocks = (131u + static_cast<unsigned>(kernel.block) - 1) / static_cast<unsigned>(kernel.block);
  CHECK_EQUAL(fake->grid[0], blocks * 2 * 5 * 3);
  CHECK_EQUAL(fake->grid[1] * fake->grid[2] * fake->threads[1] * fake->threads[2], 1u);
  CHECK_EQUAL(fake->threads[0], static_cast<unsigned>(kernel.threads));
  CHECK_EQUAL(fake->shared_bytes, static_cast<unsigned>(kernel.shared_bytes));
  CHECK_EQUAL(fake->attribute, 8);
  CHECK_EQUAL(fake->attribute_value, kernel.shared_bytes);
  CHECK_EQUAL(fake->loaded_for, 10 * kernel.major + kernel.minor);
  CHECK_EQUAL(fake->stream, static_cast<void*>(&somewhere));
}

void check_grid_limit(const fairy_kernel_info& kernel) {
  fairy_attention_args args = sample_call(kernel, 1);
  const int launches = fake->launches;
  args.tokens = kernel.block;
  args.groups = 1 << 16;
  args.frames = 1 << 15;
  args.heads = 1;
  CHECK_EQUAL(fairy_anchor_attention(&args, nullptr), FAIRY_ERROR_SIZE);
  args.frames -= 1;
  CHECK_EQUAL(fairy_anchor_attention(&args, nullptr), FAIRY_SUCCESS);
  CHECK_EQUAL(fake->grid[0], (1u << 31) - (1u << 16));
  CHECK_EQUAL(fake->launches - launches, 1);
}

void check_contexts(const fairy_kernel_info& kernel) {
  const int loads = fake->loads, unloads = fake->unloads;
  int second = 0;
  const auto load = [&] { return fairy_kernels_load(kernel.dtype, kernel.head_dim); };
  CHECK_EQUAL(load(), FAIRY_SUCCESS);  // loaded before, by check_launch
  set_current(&second);
  CHECK_EQUAL(load(), FAIRY_SUCCESS);
  CHECK_EQUAL(load(), FAIRY_SUCCESS);
  CHECK_EQUAL(fake->loads - loads, 1);
  CHECK_EQUAL(fairy_kernels_unload(), FAIRY_SUCCESS);
  CHECK_EQUAL(fairy_kernels_unload(), FAIRY_SUCCESS);
  CHECK_EQUAL(fake->unloads - unloads, 1);
  CHECK_EQUAL(load(), FAIRY_SUCCESS);
  CHECK_EQUAL(fake->loads - loads, 2);
  set_current(nullptr);
  CHECK_EQUAL(load(), FAIRY_ERROR_NO_CONTEXT);
  set_current(fake);
}

// Eight threads at once in a fresh context: one module, and every launch arrives.
void check_threads(const fairy_kernel_info& kernel) {
  const int loads = fake->loads, launches = fake->launches;
  constexpr int THREADS = 8, CALLS = 200;
  int fresh = 0;
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < THREADS; ++i) {
    threads.emplace_back([&] {
      set_current(&fresh);
      const fairy_attention_args args = sample_call(kernel, 3);
      for (int call = 0; call < CALLS; ++call) wrong += fairy_anchor_attention(&args, nullptr) != FAIRY_SUCCESS;
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(wrong.load(), 0);
  CHECK_EQUAL(fake->loads - loads, 1);
  CHECK_EQUAL(fake->launches - launches, THREADS * CALLS);
}

void check_driver_errors(const fairy_kernel_info& kernel) {
  const fairy_attention_args args = sample_call(kernel, 2);
  for (const char* name : {"cuCtxGetCurrent", "cuCtxGetId", "cuCtxGetDevice", "cuDeviceGetAttribute",
                           "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel"}) {
    ++fake->generation;
    fake->failing = name;
    fake->error = 200;
    const int held = fake->loads - fake->unloads;
    CHECK_EQUAL(fairy_anchor_attention(&args, nullptr), FAIRY_ERROR_DRIVER);
    // A module is kept only when its function is ready to launch.
    CHECK_EQUAL(fake->loads - fake->unloads - held, std::string(name) == "cuLaunchKernel" ? 1 : 0);
    const std::string expected = std::string(name) + " failed with CUDA_ERROR_INVALID_IMAGE (200).";
    CHECK_EQUAL(std::string(fairy_last_error()), expected);
    fake->failing.clear();
    CHECK_EQUAL(fairy_anchor_attention(&args, nullptr), FAIRY_SUCCESS);  // nothing broken is kept
  }
  ++fake->generation;
  fake->major = 6;
  CHECK_EQUAL(fairy_anchor_attention(&args, nullptr), FAIRY_ERROR_NO_KERNEL);
  CHECK(std::strstr(fairy_last_error(), "compute capability 6.") != nullptr);
}

// A later minor version of the same major one takes the newest code below it, if that is not for one chip alone.
void check_later_minor(const std::vector<fairy_kernel_info>& all) {
  fake->major = 8;
  fake->minor = 7;
  int best = 0;
  for (const auto& kernel : all) {
    const bool runs = kernel.major == 8 && kernel.minor <= 7 && kernel.dtype == all[0].dtype;
    if (runs && kernel.head_dim == all[0].head_dim) best = std::max(best, 80 + kernel.minor);
  }
  ++fake->generation;
  const auto status = fairy_kernels_load(all[0].dtype, all[0].head_dim);
  CHECK_EQUAL(status, best ? FAIRY_SUCCESS : FAIRY_ERROR_NO_KERNEL);
  if (best) CHECK_EQUAL(fake->loaded_for, best);
}

}  // namespace

int main() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  const auto get = driver ? reinterpret_cast<fake_driver_function>(dlsym(driver, "fake_driver")) : nullptr;
  if (get == nullptr) {
    std::cerr << "LD_LIBRARY_PATH does not lead to the fake driver\n";
    return 1;
  }
  fake = get();
  set_current = reinterpret_cast<int (*)(void*)>(dlsym(driver, "cuCtxSetCurrent"));
  const auto all = all_kernels();

  fake->has_device = false;  // a failure to begin with is not remembered
  CHECK_EQUAL(fairy_kernels_load(all.front().dtype, all.front().head_dim), FAIRY_ERROR_NO_DEVICE);
  fake->has_device = true;
  CHECK_EQUAL(fairy_kernels_load(all.front().dtype, all.front().head_dim), FAIRY_ERROR_NO_CONTEXT);
  set_current(fake);
  for (const auto& kernel : all) check_launch(kernel);
  check_grid_limit(all.back());
  check_contexts(all.back());
  check_threads(all.back());
  check_driver_errors(all.back());
  check_later_minor(all);
  return failures;
}
