// The CUDA driver, found at run time: this extension is imported on machines without libcuda too, so nothing links it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace eep::gpu {

/// A CUDA call failed. The message names the call and what it was for.
class CudaError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t result, const char* what);
void check(CUresult result, const char* what);

/// The driver's functions that the runtime has no counterpart for.
struct Driver {
  decltype(&cuGetErrorString) get_error_string;
  decltype(&cuMemCreate) mem_create;
  decltype(&cuMemRelease) mem_release;
  decltype(&cuMemMap) mem_map;
  decltype(&cuMemUnmap) mem_unmap;
  decltype(&cuMemSetAccess) mem_set_access;
  decltype(&cuMemAddressReserve) mem_address_reserve;
  decltype(&cuMemAddressFree) mem_address_free;
  decltype(&cuMemExportToShareableHandle) mem_export;
  decltype(&cuMemImportFromShareableHandle) mem_import;
  decltype(&cuMemGetAllocationGranularity) mem_granularity;
  decltype(&cuDeviceGetDevResource) device_resource;
  decltype(&cuDevSmResourceSplitByCount) split_multiprocessors;
  decltype(&cuDevResourceGenerateDesc) resource_descriptor;
  decltype(&cuGreenCtxCreate) green_create;
  decltype(&cuGreenCtxDestroy) green_destroy;
  decltype(&cuGreenCtxStreamCreate) green_stream;
};

/// Throws CudaError where there is no driver, or one too old for virtual memory handles.
const Driver& driver();

}  // namespace eep::gpu
