#include "fake_driver.h"

#include <elf.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "numbers.h"

namespace {

constexpr int SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_IMAGE = 200, NOT_FOUND = 500;

FakeDriver& fake() {
  static FakeDriver only;
  return only;
}

std::mutex mutex;
thread_local void* current = nullptr;

int result(const char* function) { return fake().failing == function ? fake().error : SUCCESS; }

struct Function {
  std::vector<unsigned> sizes;
};

struct Module {
  const unsigned char* image;
  Function function;
};

template <typename T>
T read_at(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// The section of an ELF file in memory, or an empty one.
Elf64_Shdr find_section(const unsigned char* image, const std::string& name) {
  const auto header = read_at<Elf64_Ehdr>(image);
  const auto section = [&](int i) { return read_at<Elf64_Shdr>(image + header.e_shoff + i * sizeof(Elf64_Shdr)); };
  const auto names = section(header.e_shstrndx);
  for (int i = 0; i < header.e_shnum; ++i) {
    const auto found = section(i);
    if (name == reinterpret_cast<const char*>(image + names.sh_offset + found.sh_name)) return found;
  }
  return Elf64_Shdr{};
}

// Sizes of a kernel's parameters by ordinal: attribute 0x17 (EIATTR_KPARAM_INFO) of .nv.info.<kernel> holds
// {u32 index, u16 ordinal, u16 offset, u32 flags} with the size in the flags' upper 14 bits.
std::vector<unsigned> parameter_sizes(const unsigned char* image, const Elf64_Shdr& section) {
  std::vector<unsigned> sizes;
  const unsigned char* at = image + section.sh_offset;
  const unsigned char* end = at + section.sh_size;
  while (at < end) {
    const bool sized = at[0] == 4;
    const unsigned length = sized ? read_at<uint16_t>(at + 2) : 0;
    if (sized && at[1] == 0x17) {
      const size_t ordinal = read_at<uint16_t>(at + 8);
      if (sizes.size() <= ordinal) sizes.resize(ordinal + 1);
      sizes[ordinal] = read_at<uint32_t>(at + 12) >> 18;
    }
    at += 4 + length;
  }
  return sizes;
}

// 90 for sm_90: the low byte of the flags, or the second one in files of the later layout.
int compiled_for(const unsigned char* image) {
  const unsigned flags = read_at<Elf64_Ehdr>(image).e_flags;
  return static_cast<int>((image[EI_ABIVERSION] < 8 ? flags : flags >> 8) & 0xFF);
}

// The signature of anchor_attention_strided by position, five slots of each.
struct Arguments {
  explicit Arguments(const std::vector<uint64_t>& values) : all(values) {}
  const uint16_t* pointer(int i) const { return reinterpret_cast<const uint16_t*>(all[i]); }
  int64_t wide(int i) const { return static_cast<int64_t>(all[i]); }
  int64_t narrow(int i) const { return static_cast<int32_t>(static_cast<uint32_t>(all[i])); }
  double scale() const {
    const auto bits = static_cast<uint32_t>(all[57]);
    return read_at<float>(reinterpret_cast<const unsigned char*>(&bits));
  }
  // Token t of the keys (slots from 2, 18, 23, 28) or values (7, 33, 38, 43) of source s.
  const uint16_t* key(int s, int64_t g, int64_t f, int64_t t) const {
    return pointer(2 + s) + g * wide(18 + s) + f * wide(23 + s) + t * narrow(28 + s);
  }
  const uint16_t* value(int s, int64_t g, int64_t f, int64_t t) const {
    return pointer(7 + s) + g * wide(33 + s) + f * wide(38 + s) + t * narrow(43 + s);
  }
  const uint16_t* query(int64_t g, int64_t f, int64_t t) const {
    return pointer(0) + g * wide(12) + f * wide(13) + t * narrow(14);
  }
  uint16_t* out(int64_t g, int64_t f, int64_t t) const {
    return const_cast<uint16_t*>(pointer(1)) + g * wide(15) + f * wide(16) + t * narrow(17);
  }
  int64_t length(int s) const { return narrow(48 + s); }
  int64_t sources() const { return narrow(53); }
  int64_t frames() const { return narrow(54); }
  int64_t tokens() const { return narrow(55); }
  int64_t heads() const { return narrow(56); }
  const std::vector<uint64_t>& all;
};

// One query of one head: softmax in base 2, as the kernel does it, in one pass over the keys.
void attend(const Arguments& a, int64_t g, int64_t f, int64_t head, int64_t token) {
  const int dtype = fake().dtype, dim = fake().head_dim;
  const auto number = [&](const uint16_t* at, int d) { return numbers::to_double(dtype, at[head * dim + d]); };
  std::vector<double> sum(dim, 0.0);
  double top = -INFINITY, total = 0.0;
  const uint16_t* q = a.query(g, f, token);
  for (int s = 0; s < a.sources(); ++s) {
    for (int64_t t = 0; t < a.length(s); ++t) {
      double score = 0.0;
      for (int d = 0; d < dim; ++d) score += number(q, d) * number(a.key(s, g, f, t), d);
      score *= a.scale();
      const double grown = std::max(top, score), shrink = std::exp2(top - grown), weight = std::exp2(score - grown);
      for (int d = 0; d < dim; ++d) sum[d] = sum[d] * shrink + weight * number(a.value(s, g, f, t), d);
      total = total * shrink + weight;
      top = grown;
    }
  }
  for (int d = 0; d < dim; ++d) a.out(g, f, token)[head * dim + d] = numbers::from_double(dtype, sum[d] / total);
}

void run(const Arguments& a, unsigned programs) {
  const int64_t block = fake().block, blocks = (a.tokens() + block - 1) / block;
  for (int64_t program = 0; program < programs; ++program) {
    const int64_t row = program / blocks, f = row % a.frames(), head = row / a.frames() % a.heads();
    const int64_t first = program % blocks * block, last = std::min(first + block, a.tokens());
    for (int64_t t = first; t < last; ++t) attend(a, row / a.frames() / a.heads(), f, head, t);
  }
}

}  // namespace

extern "C" {

FakeDriver* fake_driver() { return &fake(); }

int cuInit(unsigned) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const bool hidden = visible != nullptr && *visible == '\0';
  return hidden || !fake().has_device ? NO_DEVICE : result("cuInit");
}

int cuGetErrorName(int error, const char** name) {
  *name = error == INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE" : nullptr;
  return *name ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGet(int* device, int) { return *device = 0, SUCCESS; }

int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &fake(), SUCCESS; }

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }

int cuCtxGetCurrent(void** context) { return *context = current, result("cuCtxGetCurrent"); }

int cuCtxGetId(void*, unsigned long long* id) { return *id = fake().generation, result("cuCtxGetId"); }

int cuCtxGetDevice(int* device) { return *device = 0, result("cuCtxGetDevice"); }

int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != 75 && attribute != 76) return INVALID_VALUE;
  *value = attribute == 75 ? fake().major : fake().minor;
  return result("cuDeviceGetAttribute");
}

int cuModuleLoadData(void** module, const void* image) {
  if (std::memcmp(image, ELFMAG, SELFMAG) != 0) return INVALID_IMAGE;
  if (const int error = result("cuModuleLoadData")) return error;
  std::this_thread::sleep_for(std::chrono::milliseconds(2));  // real ones take longer: others come by meanwhile
  const std::lock_guard<std::mutex> lock(mutex);
  const auto* bytes = static_cast<const unsigned char*>(image);
  ++fake().loads;
  fake().loaded_for = compiled_for(bytes);
  *module = new Module{bytes, {}};
  return SUCCESS;
}

int cuModuleUnload(void* module) {
  ++fake().unloads;
  delete static_cast<Module*>(module);
  return result("cuModuleUnload");
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto& owner = *static_cast<Module*>(module);
  const auto section = find_section(owner.image, std::string(".nv.info.") + name);
  if (section.sh_size == 0) return NOT_FOUND;
  owner.function.sizes = parameter_sizes(owner.image, section);
  *function = &owner.function;
  return result("cuModuleGetFunction");
}

int cuFuncSetAttribute(void*, int attribute, int value) {
  fake().attribute = attribute;
  fake().attribute_value = value;
  return result("cuFuncSetAttribute");
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y,
                   unsigned z, unsigned shared_bytes, void* stream, void** parameters, void**) {
  const std::lock_guard<std::mutex> lock(mutex);
  FakeDriver& driver = fake();
  ++driver.launches;
  const unsigned grid[] = {grid_x, grid_y, grid_z}, threads[] = {x, y, z};
  std::memcpy(driver.grid, grid, sizeof(grid));
  std::memcpy(driver.threads, threads, sizeof(threads));
  driver.shared_bytes = shared_bytes;
  driver.stream = stream;
  driver.sizes = static_cast<Function*>(function)->sizes;
  driver.values.assign(driver.sizes.size(), 0);
  for (size_t i = 0; i < driver.sizes.size(); ++i) std::memcpy(&driver.values[i], parameters[i], driver.sizes[i]);
  if (driver.head_dim != 0) run(Arguments(driver.values), grid_x);
  return result("cuLaunchKernel");
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  *address = reinterpret_cast<uint64_t>(memory);
  return memory ? SUCCESS : 2;
}

int cuMemFree_v2(uint64_t address) { return std::free(reinterpret_cast<void*>(address)), SUCCESS; }

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  return std::memcpy(reinterpret_cast<void*>(to), from, bytes), SUCCESS;
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  return std::memcpy(to, reinterpret_cast<void*>(from), bytes), SUCCESS;
}

}  // extern "C"
