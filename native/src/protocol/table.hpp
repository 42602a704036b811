// The routing table of one epoch as flat arrays: per layer an offset for each expert into a list of replicas.
#pragma once

#include "hash.hpp"

namespace eep {

/// One replica of an expert: its place, and the cumulative share of the expert's tokens up to and including it.
struct Replica {
  u16 rank;
  u16 slot;
  u32 cumulative;
};
static_assert(sizeof(Replica) == 8);

constexpr u32 kNoReplica = 0xFFFFFFFFU;

/// The replicas of one layer's experts; only those on active ranks are listed.
struct LayerView {
  const u32* offsets;  // [experts + 1]
  const Replica* replicas;

  /// Index into `replicas` of the one that takes this pair; kNoReplica when the expert has no live copy.
  EEP_HD constexpr u32 choose(u32 source, u32 token, u32 k, u32 expert) const {
    const u32 first = offsets[expert], end = offsets[expert + 1];
    if (first == end) return kNoReplica;
    if (end - first == 1) return first;
    const u32 point = scale_hash(pair_hash(source, token, k, expert), replicas[end - 1].cumulative);
    u32 chosen = first;
    while (chosen + 1 < end && replicas[chosen].cumulative <= point) ++chosen;
    return chosen;
  }
};

}  // namespace eep
