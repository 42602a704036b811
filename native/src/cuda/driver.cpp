#include "driver.hpp"

namespace eep::gpu {
namespace {

template <class Function>
void find(Function& function, const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t result = cudaGetDriverEntryPointByVersion(name, &address, CUDA_VERSION,  // whose cuda.h declares the types
                                                               cudaEnableDefault, &found);
  if (result != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    throw CudaError(std::string("CUDA driver function ") + name + " is not there (" + cudaGetErrorString(result) +
                    "); install the NVIDIA driver of this CUDA release or newer");
  }
  function = reinterpret_cast<Function>(address);
}

Driver load() {
  Driver d{};
  find(d.get_error_string, "cuGetErrorString");
  find(d.mem_create, "cuMemCreate");
  find(d.mem_release, "cuMemRelease");
  find(d.mem_map, "cuMemMap");
  find(d.mem_unmap, "cuMemUnmap");
  find(d.mem_set_access, "cuMemSetAccess");
  find(d.mem_address_reserve, "cuMemAddressReserve");
  find(d.mem_address_free, "cuMemAddressFree");
  find(d.mem_export, "cuMemExportToShareableHandle");
  find(d.mem_import, "cuMemImportFromShareableHandle");
  find(d.mem_granularity, "cuMemGetAllocationGranularity");
  find(d.device_resource, "cuDeviceGetDevResource");
  find(d.split_multiprocessors, "cuDevSmResourceSplitByCount");
  find(d.resource_descriptor, "cuDevResourceGenerateDesc");
  find(d.green_create, "cuGreenCtxCreate");
  find(d.green_destroy, "cuGreenCtxDestroy");
  find(d.green_stream, "cuGreenCtxStreamCreate");
  return d;
}

}  // namespace

void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) throw CudaError(std::string(what) + ": " + cudaGetErrorString(result));
}

void check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  driver().get_error_string(result, &text);
  throw CudaError(std::string(what) + ": " + (text != nullptr ? text : "unknown driver error") + " (" + std::to_string(result) + ")");
}

const Driver& driver() {
  static const Driver found = load();
  return found;
}

}  // namespace eep::gpu
