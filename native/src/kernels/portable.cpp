#include "bfloat16.hpp"
#include "kernels.hpp"
#include "products.hpp"

namespace eep {

namespace {

void sum_f32(float* out, const float* const* rows, const float* weights, u32 n, u32 values) {
  for (u32 i = 0; i < values; ++i) out[i] = weights[0] * rows[0][i];
  for (u32 j = 1; j < n; ++j) {
    for (u32 i = 0; i < values; ++i) out[i] += weights[j] * rows[j][i];
  }
}

void sum_bf16(u16* out, const u16* const* rows, const float* weights, u32 n, u32 values) {
  constexpr u32 kBlock = 256;  // sums of a block stay in the first-level cache
  float sums[kBlock];
  for (u32 base = 0; base < values; base += kBlock) {
    const u32 count = values - base < kBlock ? values - base : kBlock;
    for (u32 i = 0; i < count; ++i) sums[i] = weights[0] * to_float(rows[0][base + i]);
    for (u32 j = 1; j < n; ++j) {
      for (u32 i = 0; i < count; ++i) sums[i] += weights[j] * to_float(rows[j][base + i]);
    }
    for (u32 i = 0; i < count; ++i) out[base + i] = to_bfloat16(sums[i]);
  }
}

}  // namespace

const Kernels kPortable{"portable", sum_f32, sum_bf16, products<float>, products<u16>};

}  // namespace eep
