#include "experts.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "bfloat16.hpp"
#include "kernels.hpp"

namespace eep {

namespace {

void widen(float* out, const float* from, u32 values) { std::copy_n(from, values, out); }
void widen(float* out, const u16* from, u32 values) {
  for (u32 i = 0; i < values; ++i) out[i] = to_float(from[i]);
}

void store(float& out, float value) { out = value; }
void store(u16& out, float value) { out = to_bfloat16(value); }

void products(float* out, const float* matrix, const float* row, u32 count, u32 values) {
  kernels().products_f32(out, matrix, row, count, values);
}
void products(float* out, const u16* matrix, const float* row, u32 count, u32 values) {
  kernels().products_bf16(out, matrix, row, count, values);
}

template <class T>
void run(const Experts& experts, const ExpertRows& pairs) {
  const u64 hidden = experts.hidden, half = experts.intermediate;
  std::vector<float> scratch(2 * hidden + 2 * half);
  float *row = scratch.data(), *gate = row + hidden, *up = gate + half, *result = up + half;
  for (u64 pair = 0; pair < pairs.pairs; ++pair) {
    const u64 slot = static_cast<u64>(pairs.slots[pair]);
    widen(row, reinterpret_cast<const T*>(pairs.rows) + pair * hidden, experts.hidden);
    products(gate, reinterpret_cast<const T*>(experts.w13) + slot * 2 * half * hidden, row, 2 * experts.intermediate, experts.hidden);
    for (u64 i = 0; i < half; ++i) gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
    products(result, reinterpret_cast<const T*>(experts.w2) + slot * hidden * half, gate, experts.hidden, experts.intermediate);
    T* out = reinterpret_cast<T*>(pairs.out) + pair * hidden;
    for (u64 i = 0; i < hidden; ++i) store(out[i], result[i] * pairs.weights[pair]);
  }
}

}  // namespace

void swiglu(const Experts& experts, const ExpertRows& pairs) {
  for (u32 pair = 0; pair < pairs.pairs; ++pair) {
    if (pairs.slots[pair] < 0 || static_cast<u32>(pairs.slots[pair]) >= experts.slots)
      throw std::out_of_range("slots[" + std::to_string(pair) + "]=" + std::to_string(pairs.slots[pair]) + " must lie in [0, " +
                              std::to_string(experts.slots) + ")");
  }
  if (experts.dtype == DType::kFloat32) {
    run<float>(experts, pairs);
  } else {
    run<u16>(experts, pairs);
  }
}

}  // namespace eep
