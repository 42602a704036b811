// Launches: the only names that host code needs of the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "batch.hpp"

namespace eep::gpu {

/// How a rank's kernels are spread over its multiprocessors. One block on each: a spinning block then never keeps a peer's block from
/// starting, as long as the ranks' blocks together fit the device.
struct Grid {
  u32 blocks;
  u32 threads;
};

/// Which build of the same source runs: the one with tables, masks, tags and evidence, or the fixed membership it is measured against.
enum class Build : u32 { kElastic = 0, kFixed = 1 };

/// Raises the shared-memory limit of every kernel to what the device allows; once for each device.
cudaError_t prepare_kernels(u32 shared_bytes_limit);

/// Shared memory of the hungriest launch that an instance of this shape can make.
u64 shared_bytes_needed(const Geometry& geometry, u32 replica_stride);

cudaError_t launch_dispatch(const Params& p, const Dispatch& d, u32 phases, Build build, Grid grid, cudaStream_t stream);
cudaError_t launch_combine(const Params& p, const Combine& c, u32 phases, Build build, Grid grid, cudaStream_t stream);
cudaError_t launch_sync(const Params& p, cudaStream_t stream);
cudaError_t launch_cross(const Params& p, cudaStream_t stream);
cudaError_t launch_beat(const Params& p, cudaStream_t stream);
cudaError_t launch_fault_probe(const Params& p, cudaStream_t stream);

}  // namespace eep::gpu
