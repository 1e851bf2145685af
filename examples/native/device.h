// Just enough of NVIDIA's driver to run one example without the CUDA toolkit; with it, use cudaMalloc and cudaMemcpy.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

// The first GPU with its primary context current in the constructing thread. Throws std::runtime_error without one.
class Device {
 public:
  Device() {
    call<int (*)(unsigned)>("cuInit", 0u);
    call<int (*)(int*, int)>("cuDeviceGet", &device_, 0);
    call<int (*)(void**, int)>("cuDevicePrimaryCtxRetain", &context_, device_);
    call<int (*)(void*)>("cuCtxSetCurrent", context_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { find<int (*)(int)>("cuDevicePrimaryCtxRelease_v2")(device_); }

  void capability(int* major, int* minor) const {
    call<int (*)(int*, int, int)>("cuDeviceGetAttribute", major, 75, device_);
    call<int (*)(int*, int, int)>("cuDeviceGetAttribute", minor, 76, device_);
  }
  void* allocate(size_t bytes) const {
    uint64_t address = 0;
    call<int (*)(uint64_t*, size_t)>("cuMemAlloc_v2", &address, bytes);
    return reinterpret_cast<void*>(address);
  }
  void release(void* memory) const { call<int (*)(uint64_t)>("cuMemFree_v2", address(memory)); }
  void write(void* to, const void* from, size_t bytes) const {
    call<int (*)(uint64_t, const void*, size_t)>("cuMemcpyHtoD_v2", address(to), from, bytes);
  }
  // Waits for everything that was enqueued on the default stream before.
  void read(void* to, const void* from, size_t bytes) const {
    call<int (*)(void*, uint64_t, size_t)>("cuMemcpyDtoH_v2", to, address(from), bytes);
  }

 private:
  static uint64_t address(const void* memory) { return reinterpret_cast<uint64_t>(memory); }

  template <typename Function>
  static Function find(const char* name) {
    static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) throw std::runtime_error("there is no libcuda.so.1");
    return reinterpret_cast<Function>(dlsym(library, name));
  }

  template <typename Function, typename... Arguments>
  static void call(const char* name, Arguments... arguments) {
    const auto function = find<Function>(name);
    const int error = function == nullptr ? -1 : function(arguments...);
    if (error != 0) throw std::runtime_error(std::string(name) + " failed with CUDA error " + std::to_string(error));
  }

  int device_ = 0;
  void* context_ = nullptr;
};
