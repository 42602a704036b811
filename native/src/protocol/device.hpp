// Integer names, and the mark of functions that are the same arithmetic on the host and on a device.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define EEP_HD __host__ __device__
#else
#define EEP_HD
#endif

namespace eep {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr u32 kMaxRanks = 128;
constexpr u32 kMaskWords = kMaxRanks / 64;
constexpr u32 kMaxTopk = 32;

/// The other side of a cache line, and of its neighbour that hardware prefetches with it.
constexpr u32 kLineBytes = 128;

EEP_HD constexpr u64 round_up(u64 value, u64 unit) { return (value + unit - 1) / unit * unit; }

/// A set of ranks.
struct RankMask {
  u64 words[kMaskWords] = {};

  EEP_HD constexpr bool has(u32 rank) const { return ((words[rank / 64] >> (rank % 64)) & 1U) != 0; }
  EEP_HD constexpr void add(u32 rank) { words[rank / 64] |= u64{1} << (rank % 64); }
  EEP_HD constexpr void remove(u32 rank) { words[rank / 64] &= ~(u64{1} << (rank % 64)); }
  EEP_HD constexpr bool any() const { return (words[0] | words[1]) != 0; }
  constexpr bool operator==(const RankMask&) const = default;
};
static_assert(kMaskWords == 2);

}  // namespace eep
