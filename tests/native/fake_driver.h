// What the fake driver (fake_driver.cpp, built as libcuda.so.1) is told by a test, and what it records.
//
// It stands in for a GPU: device memory is host memory, and a launch is computed on the CPU in double precision from
// the parameters that the library packed. Of the kernel it knows the signature, by position; how many bytes to take
// for each parameter it reads from the machine code, as the real driver does.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

struct FakeDriver {
  // Told by the test.
  bool has_device = true;
  int major = 8, minor = 0;
  int dtype = 0, head_dim = 0, block = 0;  // of the kernel that a launch runs: the machine code does not say
  std::string failing;                     // this function returns `error`
  int error = 1;
  unsigned long long generation = 0;  // goes into the contexts' numbers

  // Recorded.
  std::atomic<int> loads{0}, unloads{0}, launches{0};
  int loaded_for = 0;  // what the last module was compiled for: 90 = compute capability 9.0
  int attribute = 0, attribute_value = 0;
  unsigned grid[3] = {}, threads[3] = {}, shared_bytes = 0;
  void* stream = nullptr;
  std::vector<unsigned> sizes;   // bytes of each parameter
  std::vector<uint64_t> values;  // of the last launch, zero-extended
};

// dlsym(libcuda.so.1, "fake_driver")
using fake_driver_function = FakeDriver* (*)();
