#include "modules.h"

#include <map>
#include <mutex>
#include <utility>

#include "error.h"

namespace fairy {
namespace {

struct Loaded {
  CUmodule module = nullptr;
  CUfunction function = nullptr;
};

struct Context {
  int major = 0;
  int minor = 0;
  std::map<const Binary*, Loaded> loaded;
};

// The address alone may come back for another context, so the driver's number goes with it where there is one.
using Key = std::pair<CUcontext, unsigned long long>;

struct Cache {
  std::mutex mutex;
  std::map<Key, Context> contexts;
};

// Never destroyed: at the end of the process the driver may be gone before our statics are.
Cache& cache() {
  static Cache& only = *new Cache;
  return only;
}

fairy_status current_context(const Driver& driver, Key* key) {
  *key = {nullptr, 0};
  if (const auto status = checked(driver, driver.cuCtxGetCurrent(&key->first), "cuCtxGetCurrent")) return status;
  if (key->first == nullptr) {
    return fail(FAIRY_ERROR_NO_CONTEXT,
                "This thread has no current CUDA context; make one current (cuCtxSetCurrent or cudaSetDevice).");
  }
  if (driver.cuCtxGetId == nullptr) return FAIRY_SUCCESS;
  return checked(driver, driver.cuCtxGetId(key->first, &key->second), "cuCtxGetId");
}

fairy_status ask_capability(const Driver& driver, Context& context) {
  CUdevice device = 0;
  if (const auto status = checked(driver, driver.cuCtxGetDevice(&device), "cuCtxGetDevice")) return status;
  const std::pair<int, int*> wanted[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &context.major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &context.minor},
  };
  for (const auto& [attribute, value] : wanted) {
    const CUresult result = driver.cuDeviceGetAttribute(value, attribute, device);
    if (const auto status = checked(driver, result, "cuDeviceGetAttribute")) return status;
  }
  return FAIRY_SUCCESS;
}

fairy_status load(const Driver& driver, const Binary& binary, Loaded* loaded) {
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  if (const auto status = checked(driver, driver.cuModuleLoadData(&module, image(binary)), "cuModuleLoadData")) {
    return status;
  }
  auto status = checked(driver, driver.cuModuleGetFunction(&function, module, binary.symbol), "cuModuleGetFunction");
  if (status == FAIRY_SUCCESS) {
    const int attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    status = checked(driver, driver.cuFuncSetAttribute(function, attribute, binary.shared_bytes), "cuFuncSetAttribute");
  }
  if (status == FAIRY_SUCCESS) {
    *loaded = {module, function};
  } else {
    driver.cuModuleUnload(module);
  }
  return status;
}

fairy_status find_context(const Driver& driver, const Key& key, Context** context) {
  auto& contexts = cache().contexts;
  auto found = contexts.find(key);
  if (found == contexts.end()) {
    Context fresh;
    if (const auto status = ask_capability(driver, fresh)) return status;
    found = contexts.emplace(key, std::move(fresh)).first;
  }
  *context = &found->second;
  return FAIRY_SUCCESS;
}

}  // namespace

fairy_status load_kernel(int32_t dtype, int32_t head_dim, Kernel* kernel) {
  const Driver* driver = nullptr;
  if (const auto status = get_driver(&driver)) return status;
  Key key;
  if (const auto status = current_context(*driver, &key)) return status;

  const std::lock_guard<std::mutex> lock(cache().mutex);
  Context* context = nullptr;
  if (const auto status = find_context(*driver, key, &context)) return status;
  const Binary* binary = pick_binary(dtype, head_dim, context->major, context->minor);
  if (binary == nullptr) {
    return fail(FAIRY_ERROR_NO_KERNEL,
                "No kernel for head dimension %d runs on compute capability %d.%d; build the library with "
                "FAIRY_TARGETS that include %d%d.",
                head_dim, context->major, context->minor, context->major, context->minor);
  }
  Loaded& loaded = context->loaded[binary];
  if (loaded.function == nullptr) {
    if (const auto status = load(*driver, *binary, &loaded)) return status;
  }
  *kernel = {driver, binary, loaded.function};
  return FAIRY_SUCCESS;
}

fairy_status unload_kernels() {
  const Driver* driver = nullptr;
  if (const auto status = get_driver(&driver)) return status;
  Key key;
  if (const auto status = current_context(*driver, &key)) return status;

  const std::lock_guard<std::mutex> lock(cache().mutex);
  const auto found = cache().contexts.find(key);
  if (found == cache().contexts.end()) return FAIRY_SUCCESS;
  auto status = FAIRY_SUCCESS;
  for (const auto& [binary, loaded] : found->second.loaded) {
    if (loaded.module == nullptr) continue;
    const auto unloaded = checked(*driver, driver->cuModuleUnload(loaded.module), "cuModuleUnload");
    if (status == FAIRY_SUCCESS) status = unloaded;
  }
  cache().contexts.erase(found);
  return status;
}

}  // namespace fairy
