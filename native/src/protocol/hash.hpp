// Which replica of an expert takes a routed pair: a weighted hash, so that replicas share an expert's tokens in proportion to their
// weights and every retry of a step chooses alike.
#pragma once

#include "device.hpp"

namespace eep {

/// Mixes the identity of a routed pair into 32 well-spread bits (SplitMix64's finaliser; Steele, Lea, Flood 2014).
EEP_HD constexpr u32 pair_hash(u32 source, u32 token, u32 k, u32 expert) {
  u64 z = (static_cast<u64>(source) << 48) ^ (static_cast<u64>(expert) << 32) ^ (static_cast<u64>(token) << 8) ^ k;
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<u32>((z ^ (z >> 31)) >> 32);
}

/// Scales a hash to [0, total) without a division.
EEP_HD constexpr u32 scale_hash(u32 hash, u32 total) {
  return static_cast<u32>((static_cast<u64>(hash) * total) >> 32);
}

}  // namespace eep
