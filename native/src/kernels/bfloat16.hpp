// bfloat16 as bits: the upper half of a float, rounded to nearest even.
#pragma once

#include <bit>

#include "protocol/device.hpp"

namespace eep {

constexpr float to_float(u16 value) { return std::bit_cast<float>(static_cast<u32>(value) << 16); }

constexpr u16 to_bfloat16(float value) {
  const u32 bits = std::bit_cast<u32>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<u16>((bits >> 16) | 0x40U);  // NaN stays NaN
  return static_cast<u16>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace eep
