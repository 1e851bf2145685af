// Every wrong argument has its own status and a sentence; none of this needs a driver.
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "check.h"
#include "sample.h"

namespace {

using Spoil = std::function<void(fairy_attention_args&)>;

struct Case {
  fairy_status status;
  const char* says;
  Spoil spoil;
};

const Case CASES[] = {
    {FAIRY_ERROR_STRUCT_SIZE, "struct_size = 7 ", [](auto& a) { a.struct_size = 7; }},
    {FAIRY_ERROR_DTYPE, "dtype = 0 ", [](auto& a) { a.dtype = 0; }},
    {FAIRY_ERROR_DTYPE, "dtype = 3 ", [](auto& a) { a.dtype = 3; }},
    {FAIRY_ERROR_HEAD_DIM, "head_dim = 48 ", [](auto& a) { a.head_dim = 48; }},
    {FAIRY_ERROR_HEAD_DIM, "head_dim = -40 ", [](auto& a) { a.head_dim = -40; }},
    {FAIRY_ERROR_SIZE, "groups = 0 ", [](auto& a) { a.groups = 0; }},
    {FAIRY_ERROR_SIZE, "frames = -1 ", [](auto& a) { a.frames = -1; }},
    {FAIRY_ERROR_SIZE, "tokens = 2147483647 ", [](auto& a) { a.tokens = 2147483647; }},
    {FAIRY_ERROR_SIZE, "heads = 2147483647 ", [](auto& a) { a.heads = 2147483647; }},
    {FAIRY_ERROR_SOURCES, "source_count = 0 ", [](auto& a) { a.source_count = 0; }},
    {FAIRY_ERROR_SOURCES, "source_count = 6 ", [](auto& a) { a.source_count = 6; }},
    {FAIRY_ERROR_NULL_POINTER, "q is null", [](auto& a) { a.q = nullptr; }},
    {FAIRY_ERROR_NULL_POINTER, "out is null", [](auto& a) { a.out = nullptr; }},
    {FAIRY_ERROR_NULL_POINTER, "sources[1].k is null", [](auto& a) { a.sources[1].k = nullptr; }},
    {FAIRY_ERROR_NULL_POINTER, "sources[4].v is null", [](auto& a) { a.sources[4].v = nullptr; }},
    {FAIRY_ERROR_ALIGNMENT, "q = 0x1008 ", [](auto& a) { a.q = reinterpret_cast<void*>(0x1008); }},
    {FAIRY_ERROR_ALIGNMENT, "sources[2].v = 0x4202 ",
     [](auto& a) { a.sources[2].v = reinterpret_cast<void*>(0x4202); }},
    {FAIRY_ERROR_STRIDE, "token stride -8 of q", [](auto& a) { a.q_strides.token = -8; }},
    {FAIRY_ERROR_STRIDE, "frame stride 44 of sources[0].k", [](auto& a) { a.sources[0].k_strides.frame = 44; }},
    {FAIRY_ERROR_STRIDE, "group stride 4 of sources[3].v", [](auto& a) { a.sources[3].v_strides.group = 4; }},
    {FAIRY_ERROR_STRIDE, "frame stride 0 of out", [](auto& a) { a.out_strides.frame = 0; }},
    {FAIRY_ERROR_STRIDE, "token stride 8 of out", [](auto& a) { a.out_strides.token = 8; }},
    {FAIRY_ERROR_SIZE, "sources[0].length = 0 ", [](auto& a) { a.sources[0].length = 0; }},
    {FAIRY_ERROR_SIZE, "sources[0].length = 2147483648 ", [](auto& a) { a.sources[0].length = 1LL << 31; }},
    {FAIRY_ERROR_SIZE, "sources[1].k reaches over 2^31", [](auto& a) { a.sources[1].k_strides.token = 1 << 28; }},
};

void check_cases(const fairy_kernel_info& kernel) {
  for (const Case& one : CASES) {
    fairy_attention_args args = sample_call(kernel, FAIRY_MAX_SOURCES);
    one.spoil(args);
    const fairy_status status = fairy_anchor_attention(&args, nullptr);
    if (status != one.status || std::string(fairy_last_error()).find(one.says) == std::string::npos) {
      ++failures;
      std::cerr << "expected " << fairy_status_string(one.status) << " and '" << one.says << "', got "
                << fairy_status_string(status) << ": " << fairy_last_error() << "\n";
    }
  }
  CHECK_EQUAL(fairy_anchor_attention(nullptr, nullptr), FAIRY_ERROR_NULL_POINTER);
}

// Whatever comes after the arguments is the machine's: what may be left open is accepted.
void check_accepted(const fairy_kernel_info& kernel) {
  fairy_attention_args args = sample_call(kernel, 1);
  args.sources[3].k = reinterpret_cast<void*>(3);  // beyond source_count: never looked at
  args.sources[0].k_strides = {0, 0, 0};           // one key for all tokens
  args.groups = args.frames = 1;
  args.out_strides.group = args.out_strides.frame = 0;  // never used
  fairy_status status = FAIRY_SUCCESS;
  if (fairy_kernels_load(kernel.dtype, kernel.head_dim) != FAIRY_SUCCESS)
    status = fairy_anchor_attention(&args, nullptr);
  CHECK(status == FAIRY_SUCCESS || status >= FAIRY_ERROR_NO_DRIVER);
}

void check_list(const std::vector<fairy_kernel_info>& all) {
  CHECK(!all.empty());
  for (const auto& kernel : all) {
    CHECK_EQUAL(fairy_kernels_available(kernel.dtype, kernel.head_dim, kernel.major, kernel.minor), 1);
    // Machine code never runs on another major version, and sm_90a on no other minor one either.
    CHECK_EQUAL(fairy_kernels_available(kernel.dtype, kernel.head_dim, 7, 5), 0);
    CHECK_EQUAL(kernel.only_exact, kernel.major >= 9 ? 1 : 0);
    CHECK_EQUAL(fairy_kernels_available(kernel.dtype, kernel.head_dim, kernel.major, 9), 1 - kernel.only_exact);
    CHECK_EQUAL(fairy_kernels_available(kernel.dtype, kernel.head_dim + 1, kernel.major, kernel.minor), 0);
    const char* type = kernel.dtype == FAIRY_FLOAT16 ? "fp16" : "bf16";
    const std::string name = std::string("anchor_attention_strided_d") + std::to_string(kernel.head_dim) + "_" + type +
                             "_sm" + std::to_string(10 * kernel.major + kernel.minor);
    CHECK_EQUAL(std::string(kernel.name), name);
    CHECK(kernel.block >= 16 && kernel.threads % 32 == 0 && kernel.binary_bytes > 1000);
  }
  fairy_kernel_info info = {};
  CHECK_EQUAL(fairy_kernels_get(0, &info), FAIRY_ERROR_STRUCT_SIZE);
  info.struct_size = sizeof(info);
  CHECK_EQUAL(fairy_kernels_get(all.size(), &info), FAIRY_ERROR_INDEX);
  CHECK_EQUAL(fairy_kernels_get(0, nullptr), FAIRY_ERROR_NULL_POINTER);
}

void check_messages_stay_in_their_thread(const fairy_kernel_info& kernel) {
  CHECK_EQUAL(fairy_kernels_load(99, kernel.head_dim), FAIRY_ERROR_DTYPE);
  std::string other = "unset";
  std::thread([&] { other = fairy_last_error(); }).join();
  CHECK_EQUAL(other, std::string());
  CHECK(std::strstr(fairy_last_error(), "dtype = 99") != nullptr);
}

}  // namespace

int main() {
  const auto all = all_kernels();
  check_list(all);
  if (!all.empty()) {
    check_cases(all.front());
    check_accepted(all.front());
    check_messages_stay_in_their_thread(all.front());
  }
  CHECK_EQUAL(std::string(fairy_status_string(FAIRY_ERROR_NO_DRIVER)), std::string("FAIRY_ERROR_NO_DRIVER"));
  CHECK_EQUAL(std::string(fairy_status_string(-5)), std::string("unknown fairy_status"));
  CHECK(std::strstr(fairy_kernels_version(), "Triton ") != nullptr);
  return failures;
}
