// Compiled with -mavx512f -mavx512bw -mavx512vl; run only where the processor has them.
#include <immintrin.h>

#include "bfloat16.hpp"
#include "kernels.hpp"
#include "products.hpp"

namespace eep {

namespace {

__mmask16 lanes(u32 count) { return static_cast<__mmask16>(count >= 16 ? 0xFFFFU : (1U << count) - 1U); }

void sum_f32(float* out, const float* const* rows, const float* weights, u32 n, u32 values) {
  u32 i = 0;
  for (; i + 32 <= values; i += 32) {
    __m512 w = _mm512_set1_ps(weights[0]);
    __m512 a = _mm512_mul_ps(w, _mm512_loadu_ps(rows[0] + i)), b = _mm512_mul_ps(w, _mm512_loadu_ps(rows[0] + i + 16));
    for (u32 j = 1; j < n; ++j) {
      w = _mm512_set1_ps(weights[j]);
      a = _mm512_add_ps(a, _mm512_mul_ps(w, _mm512_loadu_ps(rows[j] + i)));
      b = _mm512_add_ps(b, _mm512_mul_ps(w, _mm512_loadu_ps(rows[j] + i + 16)));
    }
    _mm512_storeu_ps(out + i, a);
    _mm512_storeu_ps(out + i + 16, b);
  }
  for (; i < values; i += 16) {
    const __mmask16 mask = lanes(values - i);
    __m512 a = _mm512_mul_ps(_mm512_set1_ps(weights[0]), _mm512_maskz_loadu_ps(mask, rows[0] + i));
    for (u32 j = 1; j < n; ++j)
      a = _mm512_add_ps(a, _mm512_mul_ps(_mm512_set1_ps(weights[j]), _mm512_maskz_loadu_ps(mask, rows[j] + i)));
    _mm512_mask_storeu_ps(out + i, mask, a);
  }
}

__m512 widen(__m256i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16)); }

/// Round to nearest even on the bits: the processor's own conversion would take subnormal numbers for zero.
__m256i narrow(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
}

__m256i load16(const u16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

void sum_bf16(u16* out, const u16* const* rows, const float* weights, u32 n, u32 values) {
  u32 i = 0;
  for (; i + 64 <= values; i += 64) {
    __m512 w = _mm512_set1_ps(weights[0]);
    const u16* row = rows[0] + i;
    __m512 a = _mm512_mul_ps(w, widen(load16(row))), b = _mm512_mul_ps(w, widen(load16(row + 16)));
    __m512 c = _mm512_mul_ps(w, widen(load16(row + 32))), d = _mm512_mul_ps(w, widen(load16(row + 48)));
    for (u32 j = 1; j < n; ++j) {
      w = _mm512_set1_ps(weights[j]);
      row = rows[j] + i;
      a = _mm512_add_ps(a, _mm512_mul_ps(w, widen(load16(row))));
      b = _mm512_add_ps(b, _mm512_mul_ps(w, widen(load16(row + 16))));
      c = _mm512_add_ps(c, _mm512_mul_ps(w, widen(load16(row + 32))));
      d = _mm512_add_ps(d, _mm512_mul_ps(w, widen(load16(row + 48))));
    }
    const __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(narrow(a)), narrow(b), 1);
    const __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(narrow(c)), narrow(d), 1);
    auto* to = reinterpret_cast<__m512i*>(out + i);
    _mm512_storeu_si512(to, low);
    _mm512_storeu_si512(to + 1, high);
  }
  for (; i < values; i += 16) {
    const __mmask16 mask = lanes(values - i);
    __m512 a = _mm512_mul_ps(_mm512_set1_ps(weights[0]), widen(_mm256_maskz_loadu_epi16(mask, rows[0] + i)));
    for (u32 j = 1; j < n; ++j)
      a = _mm512_add_ps(a, _mm512_mul_ps(_mm512_set1_ps(weights[j]), widen(_mm256_maskz_loadu_epi16(mask, rows[j] + i))));
    _mm256_mask_storeu_epi16(out + i, mask, narrow(a));
  }
}

}  // namespace

const Kernels kAvx512{"avx512", sum_f32, sum_bf16, products<float>, products<u16>};

}  // namespace eep
