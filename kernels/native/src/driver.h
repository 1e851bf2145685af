// The few functions of NVIDIA's driver that a launch needs, found at run time: no header, no link, no GPU required.
// Types and numbers are those of the CUDA driver API (cuda.h); its ABI is fixed.
#pragma once

#include <cstddef>

#include "fairy/kernels.h"

namespace fairy {

using CUresult = int;
using CUdevice = int;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;

constexpr CUresult CUDA_SUCCESS = 0;
constexpr CUresult CUDA_ERROR_NO_DEVICE = 100;
constexpr int CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76;

struct Driver {
  CUresult (*cuInit)(unsigned flags);
  CUresult (*cuGetErrorName)(CUresult error, const char** name);
  CUresult (*cuCtxGetCurrent)(CUcontext* context);
  CUresult (*cuCtxGetDevice)(CUdevice* device);
  CUresult (*cuDeviceGetAttribute)(int* value, int attribute, CUdevice device);
  CUresult (*cuModuleLoadData)(CUmodule* module, const void* image);
  CUresult (*cuModuleUnload)(CUmodule module);
  CUresult (*cuModuleGetFunction)(CUfunction* function, CUmodule module, const char* name);
  CUresult (*cuFuncSetAttribute)(CUfunction function, int attribute, int value);
  CUresult (*cuLaunchKernel)(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
                             void** parameters, void** extra);
  // Null in drivers older than CUDA 12: contexts are then told apart by their address alone.
  CUresult (*cuCtxGetId)(CUcontext context, unsigned long long* id);
};

// The initialised driver, or why there is none (FAIRY_ERROR_NO_DRIVER, FAIRY_ERROR_NO_DEVICE, FAIRY_ERROR_DRIVER).
fairy_status get_driver(const Driver** driver);

// FAIRY_SUCCESS, or FAIRY_ERROR_DRIVER with a message that names the call and the driver's error.
fairy_status checked(const Driver& driver, CUresult result, const char* call) noexcept;

}  // namespace fairy
