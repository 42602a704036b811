// Where everything lies in an inbox chunk, and what its tags are: constants of an instance and pure arithmetic, the same on the host,
// on the device and in the model. Nothing here depends on who is a member.
#pragma once

#include "types.hpp"
#include "../protocol/table.hpp"
#include "../protocol/tag.hpp"

namespace eep::gpu {

constexpr u16 kNoSlot = 0xFFFF;

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

EEP_BOTH constexpr u32 divide_up(u32 value, u32 unit) { return (value + unit - 1) / unit; }

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

}  // namespace eep::gpu
