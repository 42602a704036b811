// Row arithmetic for one instruction set each, chosen once at run time. Products are rounded before they are added (no fused
// multiply-add) and added in the order given, so every instruction set gives the same bits.
#pragma once

#include "protocol/layout.hpp"

namespace eep {

struct Kernels {
  const char* name;
  /// out[i] = Σ weights[j] × rows[j][i], in the order of j; n ≥ 1. Ordinary stores: what is summed here is read at once by the next
  /// stage, and stores past the caches were 2–3 times slower up to 15 MB of rows and no faster at 30 MB.
  void (*sum_f32)(float* out, const float* const* rows, const float* weights, u32 n, u32 values);
  void (*sum_bf16)(u16* out, const u16* const* rows, const float* weights, u32 n, u32 values);
  /// out[j] = matrix[j] · row for `count` rows of a dense matrix, in float32.
  void (*products_f32)(float* out, const float* matrix, const float* row, u32 count, u32 values);
  void (*products_bf16)(float* out, const u16* matrix, const float* row, u32 count, u32 values);
};

/// The best one this processor has, or the one that EEP_ISA names (avx512, avx2, portable). Throws where that cannot run here.
const Kernels& kernels();

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

/// 64-bit checksum at memory speed: a change of any byte changes it, with overwhelming probability.
u64 checksum(const void* data, u64 bytes);

}  // namespace eep
