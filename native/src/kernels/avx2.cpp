// Compiled with -mavx2; run only where the processor has it.
#include <immintrin.h>

#include "bfloat16.hpp"
#include "kernels.hpp"
#include "products.hpp"

namespace eep {

namespace {

void sum_f32(float* out, const float* const* rows, const float* weights, u32 n, u32 values) {
  u32 i = 0;
  for (; i + 8 <= values; i += 8) {
    __m256 a = _mm256_mul_ps(_mm256_set1_ps(weights[0]), _mm256_loadu_ps(rows[0] + i));
    for (u32 j = 1; j < n; ++j) a = _mm256_add_ps(a, _mm256_mul_ps(_mm256_set1_ps(weights[j]), _mm256_loadu_ps(rows[j] + i)));
    _mm256_storeu_ps(out + i, a);
  }
  for (; i < values; ++i) {
    float a = weights[0] * rows[0][i];
    for (u32 j = 1; j < n; ++j) a += weights[j] * rows[j][i];
    out[i] = a;
  }
}

__m256 widen(const u16* from) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/// Eight bfloat16 in the low 16 bits of each lane.
__m256i narrow(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
}

void sum_bf16(u16* out, const u16* const* rows, const float* weights, u32 n, u32 values) {
  u32 i = 0;
  for (; i + 16 <= values; i += 16) {
    __m256 w = _mm256_set1_ps(weights[0]);
    __m256 a = _mm256_mul_ps(w, widen(rows[0] + i)), b = _mm256_mul_ps(w, widen(rows[0] + i + 8));
    for (u32 j = 1; j < n; ++j) {
      w = _mm256_set1_ps(weights[j]);
      a = _mm256_add_ps(a, _mm256_mul_ps(w, widen(rows[j] + i)));
      b = _mm256_add_ps(b, _mm256_mul_ps(w, widen(rows[j] + i + 8)));
    }
    // Packing works within 128-bit halves; the permutation puts the quarters back in order.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow(a), narrow(b)), 0b11'01'10'00);
    auto* to = reinterpret_cast<__m256i*>(out + i);
    _mm256_storeu_si256(to, packed);
  }
  for (; i < values; ++i) {
    float a = weights[0] * to_float(rows[0][i]);
    for (u32 j = 1; j < n; ++j) a += weights[j] * to_float(rows[j][i]);
    out[i] = to_bfloat16(a);
  }
}

}  // namespace

const Kernels kAvx2{"avx2", sum_f32, sum_bf16, products<float>, products<u16>};

}  // namespace eep
