// The kernels: thin shells around the algorithms in the headers, one for each wire format and build.
#include "kernels.hpp"

#include "sync.hpp"

namespace eep::gpu {
namespace {

constexpr u32 kMaxThreads = 512;
constexpr u32 kSyncThreads = kMaxRanks;

template <bool kElastic, Wire kWire>
__global__ void __launch_bounds__(kMaxThreads, 1)
    dispatch_kernel(const __grid_constant__ Params p, const __grid_constant__ Dispatch d, const u32 phases) {
  dispatch<kElastic, kWire>(Thread{}, p, d, phases);
}

template <bool kElastic>
__global__ void __launch_bounds__(kMaxThreads, 1)
    combine_kernel(const __grid_constant__ Params p, const __grid_constant__ Combine c, const u32 phases) {
  combine<kElastic>(Thread{}, p, c, phases);
}

__global__ void __launch_bounds__(kSyncThreads, 1) sync_kernel(const __grid_constant__ Params p) { step_sync(Thread{}, p); }

__global__ void cross_kernel(const __grid_constant__ Params p) { cross(Thread{}, p); }

__global__ void beat_kernel(const __grid_constant__ Params p) { beat(Thread{}, p); }

__global__ void fault_probe_kernel(const __grid_constant__ Params p) { fault_probe(Thread{}, p); }

/// Asking for attributes loads a kernel. One that is loaded at its first launch may wait for the device: for a kernel that spins until
/// that very launch has run, or in the middle of a capture.
template <class Kernel>
cudaError_t load(Kernel kernel) {
  cudaFuncAttributes loaded{};
  return cudaFuncGetAttributes(&loaded, reinterpret_cast<const void*>(kernel));
}

template <class Kernel>
cudaError_t allow_shared(Kernel kernel, u32 bytes) {
  const cudaError_t result = load(kernel);
  if (result != cudaSuccess) return result;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class Argument>
cudaError_t launch(void (*kernel)(const Params, const Argument, const u32), const Params& p, const Argument& argument, u32 phases, Grid grid,
                   u64 shared_bytes, cudaStream_t stream) {
  kernel<<<grid.blocks, grid.threads, shared_bytes, stream>>>(p, argument, phases);
  return cudaGetLastError();
}

}  // namespace

cudaError_t prepare_kernels(u32 shared_bytes_limit) {
  const cudaError_t results[] = {
      allow_shared(dispatch_kernel<true, Wire::kBf16>, shared_bytes_limit), allow_shared(dispatch_kernel<true, Wire::kFp8>, shared_bytes_limit),
      allow_shared(dispatch_kernel<false, Wire::kBf16>, shared_bytes_limit), allow_shared(dispatch_kernel<false, Wire::kFp8>, shared_bytes_limit),
      allow_shared(combine_kernel<true>, shared_bytes_limit), allow_shared(combine_kernel<false>, shared_bytes_limit),
      load(sync_kernel), load(cross_kernel), load(beat_kernel), load(fault_probe_kernel)};
  for (const cudaError_t result : results) {
    if (result != cudaSuccess) return result;
  }
  return cudaSuccess;
}

u64 shared_bytes_needed(const Geometry& g, u32 replica_stride) {
  const u64 dispatch = dispatch_shared_bytes(g, replica_stride, g.max_tokens, 1, g.max_topk);
  const u64 combine = combine_shared_bytes(g, g.max_tokens, 1, g.max_topk);
  return dispatch > combine ? dispatch : combine;
}

cudaError_t launch_dispatch(const Params& p, const Dispatch& d, u32 phases, Build build, Grid grid, cudaStream_t stream) {
  const u64 shared = dispatch_shared_bytes(p.geometry, p.replica_stride, d.batch.tokens, grid.blocks, d.batch.topk);
  const bool fp8 = p.geometry.wire == Wire::kFp8;
  if (build == Build::kElastic) {
    return launch(fp8 ? dispatch_kernel<true, Wire::kFp8> : dispatch_kernel<true, Wire::kBf16>, p, d, phases, grid, shared, stream);
  }
  return launch(fp8 ? dispatch_kernel<false, Wire::kFp8> : dispatch_kernel<false, Wire::kBf16>, p, d, phases, grid, shared, stream);
}

cudaError_t launch_combine(const Params& p, const Combine& c, u32 phases, Build build, Grid grid, cudaStream_t stream) {
  const u64 shared = combine_shared_bytes(p.geometry, c.batch.tokens, grid.blocks, c.batch.topk);
  return launch(build == Build::kElastic ? combine_kernel<true> : combine_kernel<false>, p, c, phases, grid, shared, stream);
}

cudaError_t launch_sync(const Params& p, cudaStream_t stream) {
  sync_kernel<<<1, kSyncThreads, kHeadBytes, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_cross(const Params& p, cudaStream_t stream) {
  cross_kernel<<<1, 32, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_beat(const Params& p, cudaStream_t stream) {
  beat_kernel<<<1, 32, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_fault_probe(const Params& p, cudaStream_t stream) {
  fault_probe_kernel<<<1, 32, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace eep::gpu
