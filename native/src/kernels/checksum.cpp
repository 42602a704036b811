#include <bit>
#include <cstring>

#include "kernels.hpp"

namespace eep {

namespace {

// Odd constants with well-spread bits: the fractional parts of the golden ratio and of √2, √3.
constexpr u64 kMultiply = 0x9E3779B97F4A7C15ULL;
constexpr u64 kSpread = 0x6A09E667F3BCC909ULL;
constexpr u64 kFinish = 0xBB67AE8584CAA73BULL;
constexpr u32 kLanes = 8;  // independent chains hide the multiplier's latency

constexpr u64 mix(u64 z) {
  z = (z ^ (z >> 32)) * kSpread;
  z = (z ^ (z >> 29)) * kFinish;
  return z ^ (z >> 32);
}

constexpr u64 absorb(u64 lane, u64 word) { return (std::rotl(lane, 29) ^ word) * kMultiply; }

}  // namespace

u64 checksum(const void* data, u64 bytes) {
  const auto* at = static_cast<const u8*>(data);
  u64 lanes[kLanes];
  for (u32 i = 0; i < kLanes; ++i) lanes[i] = mix(kMultiply * (i + 1));
  u64 left = bytes;
  for (; left >= kLanes * 8; left -= kLanes * 8, at += kLanes * 8) {
    u64 words[kLanes];
    std::memcpy(words, at, sizeof words);
    for (u32 i = 0; i < kLanes; ++i) lanes[i] = absorb(lanes[i], words[i]);
  }
  u64 words[kLanes] = {};
  if (left != 0) std::memcpy(words, at, left);
  u64 result = mix(bytes);
  for (u32 i = 0; i < kLanes; ++i) result = mix(result ^ absorb(lanes[i], words[i]));
  return result;
}

}  // namespace eep
