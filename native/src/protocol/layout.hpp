// Where everything lies in an inbox chunk: what one source rank may write at one receiver. Constants of an instance and pure
// arithmetic; nothing here depends on who is a member.
#pragma once

#include "device.hpp"

namespace eep {

enum class DType : u32 { kFloat32 = 0, kBfloat16 = 1 };

EEP_HD constexpr u64 value_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// One exchange's announcement, written by the source: the rest of the line first, `tag` last with release.
struct alignas(kLineBytes) Line {
  u64 tag;
  u64 incarnation;  // of the writer: a tag of another process of this rank does not count
  u32 rows;
  u32 pairs;
  i32 layer;
  u32 reserved;
  u64 row[5];  // sync: tokens, flags, prepared epoch, committed epoch, user
};
static_assert(sizeof(Line) == kLineBytes);

/// Whom the source suspects in the epoch of `tag`: adopted by every reader, so all survivors leave within one hop.
struct alignas(kLineBytes) Gossip {
  u64 tag;
  u64 mask[kMaskWords];
};

/// Written by the chunk's owner, read by the source: how the source knows that the owner lives, and that it is still wanted.
struct alignas(kLineBytes) OwnerLine {
  u32 life;       // robust futex word: thread id of the owner's heartbeat; the kernel adds FUTEX_OWNER_DIED when it dies
  u32 asleep;     // the owner sleeps on its doorbell: ring it
  u32 phase;      // the owner's Phase: warm-up is never mistaken for silence
  u32 epoch;      // the owner runs under
  u64 admitted;   // incarnation of the source that the owner's epoch counts on; 0: none
  u64 beacon;     // grows while the owner's process runs
};

/// The lines at the head of a chunk. A sync follows a sync directly, so its lines alternate by number; they alternate by epoch as
/// well: a rank that crossed into e+1 publishes its sync 0 while a slower one still reads the last sync of e. Dispatch and
/// combine need one line and one row area each: round r+1 is dispatched to a peer only after its combine tag of round r came, by
/// which it had read the dispatch of r; partial sums of r+1 are pushed only after its dispatch tag of r+1, by which it had read
/// those of r; and nobody dispatches under e+1 before everybody's sync 0 of e+1.
struct Control {
  Line dispatch;
  Line combine;
  Line sync[2][2];
  Gossip gossip;
  OwnerLine owner;
};

/// One (row, slot) pair of a dispatch.
struct Pair {
  u16 row;
  u16 slot;
  float weight;
};
static_assert(sizeof(Pair) == 8);

constexpr u64 kControlBytes = 4096;
static_assert(sizeof(Control) <= kControlBytes);

struct Shape {
  u32 max_ranks = 0, max_tokens = 0, hidden = 0, max_topk = 0, max_slots = 0, n_experts = 0, n_layers = 0;
  DType dtype = DType::kFloat32;

  EEP_HD constexpr u64 row_values_bytes() const { return hidden * value_bytes(dtype); }
  /// Rows start on 64 bytes: one vector register, one cache line.
  EEP_HD constexpr u64 row_bytes() const { return round_up(row_values_bytes(), 64); }
  EEP_HD constexpr u64 max_pairs() const { return static_cast<u64>(max_tokens) * max_topk; }
  EEP_HD constexpr u64 area_bytes() const { return row_bytes() * max_tokens; }
  EEP_HD constexpr u64 pairs_at() const { return kControlBytes; }
  EEP_HD constexpr u64 rows_at() const { return pairs_at() + round_up(max_pairs() * sizeof(Pair), kLineBytes); }
  EEP_HD constexpr u64 partials_at() const { return rows_at() + area_bytes(); }
  /// A multiple of `page`: 4 KiB on the host, the allocation granularity of a device.
  EEP_HD constexpr u64 chunk_bytes(u64 page = 4096) const { return round_up(partials_at() + area_bytes(), page); }
};

}  // namespace eep
