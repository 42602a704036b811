// What host code, kernels and the model agree on before anything else: integer names, and the mark of shared arithmetic.
#pragma once

#include "../protocol/device.hpp"

#if defined(__CUDACC__)
#define EEP_BOTH __host__ __device__ __forceinline__
#else
#define EEP_BOTH inline
#endif

namespace eep::gpu {

/// A scaling group of fp8 is 128 values wide.
constexpr u32 kGroupWidth = 128;

}  // namespace eep::gpu
