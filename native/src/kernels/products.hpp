// A matrix times one row, included by each instruction set's file and compiled for it: sixteen partial sums, value i in lane i mod 16,
// added up by halves. The order of additions is the same everywhere, and so are the bits.
#pragma once

#include <cstring>

#include "bfloat16.hpp"
#include "protocol/device.hpp"

namespace eep {

namespace {

constexpr u32 kLanes = 16;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

inline void load(Lanes& lanes, const float* from) { std::memcpy(&lanes, from, sizeof lanes); }

inline void load(Lanes& lanes, const u16* from) {
  u16 halves __attribute__((vector_size(kLanes * sizeof(u16))));
  std::memcpy(&halves, from, sizeof halves);
  using Words = u32 __attribute__((vector_size(kLanes * sizeof(u32))));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&lanes, &words, sizeof lanes);
}

/// The last `count` values, with zeros after them.
template <class T>
inline void load_some(Lanes& lanes, const T* from, u32 count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  load(lanes, padded);
}

inline float add_up(const Lanes& lanes) {
  float sums[kLanes];
  std::memcpy(sums, &lanes, sizeof sums);
  for (u32 half = kLanes / 2; half != 0; half /= 2) {
    for (u32 i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

/// out[j] = matrix[j] · row for `kRows` rows at once: independent chains hide the additions' latency.
template <u32 kRows, class T>
inline void some_products(float* out, const T* matrix, const float* row, u32 values) {
  Lanes sums[kRows] = {};
  Lanes left, right;
  u32 i = 0;
  for (; i + kLanes <= values; i += kLanes) {
    load(right, row + i);
    for (u32 j = 0; j < kRows; ++j) {
      load(left, matrix + static_cast<u64>(j) * values + i);
      sums[j] += left * right;
    }
  }
  if (i < values) {
    load_some(right, row + i, values - i);
    for (u32 j = 0; j < kRows; ++j) {
      load_some(left, matrix + static_cast<u64>(j) * values + i, values - i);
      sums[j] += left * right;
    }
  }
  for (u32 j = 0; j < kRows; ++j) out[j] = add_up(sums[j]);
}

template <class T>
void products(float* out, const T* matrix, const float* row, u32 count, u32 values) {
  u32 j = 0;
  for (; j + 4 <= count; j += 4) some_products<4>(out + j, matrix + static_cast<u64>(j) * values, row, values);
  for (; j < count; ++j) some_products<1>(out + j, matrix + static_cast<u64>(j) * values, row, values);
}

}  // namespace

}  // namespace eep
