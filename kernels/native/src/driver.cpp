#include "driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

#include "error.h"

namespace fairy {
namespace {

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// The first function that the library lacks, or null.
const char* find_all(void* library, Driver& driver) {
#define FAIRY_FIND(name) \
  if (!find(library, #name, driver.name)) return #name
  FAIRY_FIND(cuInit);
  FAIRY_FIND(cuGetErrorName);
  FAIRY_FIND(cuCtxGetCurrent);
  FAIRY_FIND(cuCtxGetDevice);
  FAIRY_FIND(cuDeviceGetAttribute);
  FAIRY_FIND(cuModuleLoadData);
  FAIRY_FIND(cuModuleUnload);
  FAIRY_FIND(cuModuleGetFunction);
  FAIRY_FIND(cuFuncSetAttribute);
  FAIRY_FIND(cuLaunchKernel);
#undef FAIRY_FIND
  find(library, "cuCtxGetId", driver.cuCtxGetId);
  return nullptr;
}

fairy_status open_driver(Driver& driver) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return fail(FAIRY_ERROR_NO_DRIVER,
                "NVIDIA's driver cannot be loaded (%s); install it, or use a machine with a GPU.", dlerror());
  }
  if (const char* missing = find_all(library, driver)) {
    dlclose(library);
    return fail(FAIRY_ERROR_NO_DRIVER, "libcuda.so.1 has no %s; install a newer driver of NVIDIA's.", missing);
  }
  const CUresult result = driver.cuInit(0);
  if (result == CUDA_SUCCESS) return FAIRY_SUCCESS;
  const fairy_status status = checked(driver, result, "cuInit");
  dlclose(library);
  if (result != CUDA_ERROR_NO_DEVICE) return status;
  return fail(FAIRY_ERROR_NO_DEVICE, "The driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES.");
}

}  // namespace

fairy_status get_driver(const Driver** driver) {
  static std::mutex mutex;
  static std::atomic<bool> ready{false};
  static Driver opened{};
  if (!ready.load(std::memory_order_acquire)) {
    // A failure is not remembered: the next call tries again.
    const std::lock_guard<std::mutex> lock(mutex);
    if (!ready.load(std::memory_order_relaxed)) {
      Driver candidate{};
      if (const fairy_status status = open_driver(candidate)) return status;
      opened = candidate;
      ready.store(true, std::memory_order_release);
    }
  }
  *driver = &opened;
  return FAIRY_SUCCESS;
}

fairy_status checked(const Driver& driver, CUresult result, const char* call) noexcept {
  if (result == CUDA_SUCCESS) return FAIRY_SUCCESS;
  const char* name = nullptr;
  if (driver.cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr) name = "an unknown error";
  return fail(FAIRY_ERROR_DRIVER, "%s failed with %s (%d).", call, name, result);
}

}  // namespace fairy
