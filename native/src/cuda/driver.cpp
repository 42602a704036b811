#include "driver.hpp"

namespace eep::gpu {
namespace {

template <class Function>
void find(Function& function, const char* name, unsigned version) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t result = cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found);
  if (result != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    throw CudaError(std::string("CUDA driver function ") + name + " is not there (" + cudaGetErrorString(result) +
                    "); install an NVIDIA driver of release 550 or newer");
  }
  function = reinterpret_cast<Function>(address);
}

Driver load() {
  constexpr unsigned kVirtualMemory = 12000, kGreenContexts = 12050;  // releases whose signatures cuda.h declares
  Driver d{};
  find(d.get_error_string, "cuGetErrorString", kVirtualMemory);
  find(d.mem_create, "cuMemCreate", kVirtualMemory);
  find(d.mem_release, "cuMemRelease", kVirtualMemory);
  find(d.mem_map, "cuMemMap", kVirtualMemory);
  find(d.mem_unmap, "cuMemUnmap", kVirtualMemory);
  find(d.mem_set_access, "cuMemSetAccess", kVirtualMemory);
  find(d.mem_address_reserve, "cuMemAddressReserve", kVirtualMemory);
  find(d.mem_address_free, "cuMemAddressFree", kVirtualMemory);
  find(d.mem_export, "cuMemExportToShareableHandle", kVirtualMemory);
  find(d.mem_import, "cuMemImportFromShareableHandle", kVirtualMemory);
  find(d.mem_granularity, "cuMemGetAllocationGranularity", kVirtualMemory);
  find(d.device_attribute, "cuDeviceGetAttribute", kVirtualMemory);
  find(d.device_resource, "cuDeviceGetDevResource", kGreenContexts);
  find(d.split_multiprocessors, "cuDevSmResourceSplitByCount", kGreenContexts);
  find(d.resource_descriptor, "cuDevResourceGenerateDesc", kGreenContexts);
  find(d.green_create, "cuGreenCtxCreate", kGreenContexts);
  find(d.green_destroy, "cuGreenCtxDestroy", kGreenContexts);
  find(d.green_stream, "cuGreenCtxStreamCreate", kGreenContexts);
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
