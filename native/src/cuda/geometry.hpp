// Where everything lies in an inbox chunk, and what its tags are: constants of an instance and pure arithmetic, the same on the host,
// on the device and in the model. Nothing here depends on who is a member.
#pragma once

#include "port.hpp"

namespace eep::gpu {

constexpr u32 kMaxRanks = 128;
constexpr u32 kMaskWords = kMaxRanks / 64;
constexpr u32 kMaxTopk = 16;
constexpr u16 kNoSlot = 0xFFFF;
/// The other side of a cache line, and of its neighbour that hardware prefetches with it.
constexpr u32 kLineBytes = 128;

/// How rows travel: bf16 as they are, or e4m3 with one float scale for each 128 values.
enum class Wire : u32 { kBf16 = 0, kFp8 = 1 };

/// A control line in a chunk: everything that `tag` publishes lies in the same line, so that it is revoked with the chunk.
struct alignas(kLineBytes) Line {
  u64 tag;          // epoch and number; written last, with release
  u64 incarnation;  // of the writer: a tag of another process of this rank does not count
  u32 tokens;
  i32 layer;
  u64 mask[kMaskWords];  // gossip: ranks that the writer suspects in the epoch of `tag`
  u64 row[5];            // sync: tokens, flags, prepared epoch, committed epoch, user
};
static_assert(sizeof(Line) == kLineBytes);

/// The control lines at the head of a chunk. Sync lines alternate with the epoch as well as with the number: a rank that crossed
/// into epoch e+1 publishes sync 0 of it while a slower one still reads the last sync of e, which may have an even number too.
struct Control {
  Line dispatch[2];
  Line combine[2];
  Line sync[2][2];
  Line gossip;
  Line beacon;
};
constexpr u64 kControlBytes = 4096;
static_assert(sizeof(Control) <= kControlBytes);

EEP_BOTH constexpr u64 round_up(u64 value, u64 unit) { return (value + unit - 1) / unit * unit; }
EEP_BOTH constexpr u32 divide_up(u32 value, u32 unit) { return (value + unit - 1) / unit; }

/// A number within an epoch. Numbers start at 0, tags at 1, so zeroed memory holds no valid tag.
EEP_BOTH constexpr u64 tag_of(u32 epoch, u32 number) { return (static_cast<u64>(epoch) << 32) | (static_cast<u64>(number) + 1U); }
EEP_BOTH constexpr u32 epoch_of(u64 tag) { return static_cast<u32>(tag >> 32); }

/// Sizes fixed at creation. All offsets are bytes from the start of a chunk.
struct Geometry {
  u32 max_ranks = 0, max_tokens = 0, hidden = 0, max_topk = 0, max_slots = 0, n_experts = 0, n_layers = 0;
  Wire wire = Wire::kBf16;

  /// Slot numbers of one token, padded to whole 16-byte writes.
  EEP_BOTH constexpr u32 slots_stride() const { return divide_up(max_topk, 8) * 8; }
  EEP_BOTH constexpr u64 scale_bytes() const { return wire == Wire::kFp8 ? static_cast<u64>(hidden) / kGroupWidth * 4 : 0; }
  EEP_BOTH constexpr u64 payload_bytes() const { return wire == Wire::kFp8 ? hidden : 2ULL * hidden; }
  EEP_BOTH constexpr u64 dispatch_row_bytes() const { return round_up(payload_bytes() + scale_bytes(), 16); }
  EEP_BOTH constexpr u64 combine_row_bytes() const { return 2ULL * hidden; }

  EEP_BOTH constexpr u64 slots_bytes() const { return 2ULL * slots_stride() * max_tokens; }
  EEP_BOTH constexpr u64 weights_bytes() const { return 4ULL * slots_stride() * max_tokens; }
  EEP_BOTH constexpr u64 dispatch_bytes() const {
    return round_up(slots_bytes() + weights_bytes() + dispatch_row_bytes() * max_tokens, kLineBytes);
  }
  EEP_BOTH constexpr u64 combine_bytes() const { return round_up(combine_row_bytes() * max_tokens, kLineBytes); }

  EEP_BOTH constexpr u64 slots_at(u32 parity, u32 token) const {
    return kControlBytes + parity * dispatch_bytes() + 2ULL * slots_stride() * token;
  }
  EEP_BOTH constexpr u64 weights_at(u32 parity, u32 token) const {
    return kControlBytes + parity * dispatch_bytes() + slots_bytes() + 4ULL * slots_stride() * token;
  }
  EEP_BOTH constexpr u64 row_at(u32 parity, u32 token) const {
    return kControlBytes + parity * dispatch_bytes() + slots_bytes() + weights_bytes() + dispatch_row_bytes() * token;
  }
  EEP_BOTH constexpr u64 partial_at(u32 parity, u32 token) const {
    return kControlBytes + 2 * dispatch_bytes() + parity * combine_bytes() + combine_row_bytes() * token;
  }
  /// What one source rank may write at one receiver.
  EEP_BOTH constexpr u64 chunk_bytes() const { return kControlBytes + 2 * dispatch_bytes() + 2 * combine_bytes(); }
  /// Rows that may arrive in one round, over all sources.
  EEP_BOTH constexpr u32 max_rows() const { return max_ranks * max_tokens; }
};

/// One replica of an expert: its place, and the cumulative share of the expert's tokens up to and including it.
struct Replica {
  u16 rank;
  u16 slot;
  u32 cumulative;
};
static_assert(sizeof(Replica) == 8);

/// Mixes the identity of a routed pair into 32 well-spread bits (Steele, Lea, Flood: SplitMix64's finaliser), so that replicas share
/// an expert's tokens in proportion to their weights, and every retry of a step chooses alike.
EEP_BOTH constexpr u32 pair_hash(u32 source, u32 token, u32 k, u32 expert) {
  u64 z = (static_cast<u64>(source) << 48) ^ (static_cast<u64>(expert) << 32) ^ (static_cast<u64>(token) << 8) ^ k;
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<u32>((z ^ (z >> 31)) >> 32);
}

/// The replica that takes a pair: the first whose cumulative share exceeds the hash scaled to the total (no division).
EEP_BOTH constexpr u32 choose_replica(const Replica* replicas, u32 count, u32 hash) {
  const u32 point = static_cast<u32>((static_cast<u64>(hash) * replicas[count - 1].cumulative) >> 32);
  u32 chosen = 0;
  while (chosen + 1 < count && replicas[chosen].cumulative <= point) ++chosen;
  return chosen;
}

}  // namespace eep::gpu
