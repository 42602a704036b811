// Where each (token, k) pair goes: the table's replica lists, or the division of a fixed membership that they are measured against.
#pragma once

#include "wait.hpp"

namespace eep::gpu {

/// A route in one word: slot in the low half, rank above it, and in the top bit whether this pair is the first of its token to go to
/// that rank (the one that carries the row).
constexpr u32 kNoRoute = 0x7FFFFFFFU;
constexpr u32 kLeads = 0x80000000U;
EEP_BOTH constexpr u32 pack_route(u32 rank, u32 slot) { return (rank << 16) | slot; }
EEP_BOTH constexpr bool is_route(u32 route) { return (route & kNoRoute) != kNoRoute; }
EEP_BOTH constexpr u32 rank_of(u32 route) { return (route >> 16) & 0x7FFFU; }
EEP_BOTH constexpr u32 slot_of(u32 route) { return route & 0xFFFFU; }

EEP_DEVICE i64 expert_of(const Batch& b, u32 token, u32 k) {
  const u64 at = static_cast<u64>(token) * b.topk + k;
  return b.ids_are_64 != 0 ? static_cast<const i64*>(b.ids)[at] : static_cast<i64>(static_cast<const i32*>(b.ids)[at]);
}

#if defined(__CUDACC__)
constexpr u32 kTablesRead = 2;  // both, before the step context says which one counts
#else
constexpr u32 kTablesRead = 1;  // the model's host may be writing the other
#endif

/// Words of shared memory that one layer's routing takes.
EEP_BOTH constexpr u32 table_words(const Geometry& g, u32 replica_stride) {
  return kTablesRead * (g.n_experts + 2 + 2 * replica_stride);
}

EEP_DEVICE void copy_words(const Thread& self, u32* to, const u32* from, u32 words) {
  for (u32 i = self.thread(); i < words; i += self.threads()) to[i] = from[i];
}

/// Words before the replicas, which lie on 8 bytes.
EEP_BOTH constexpr u32 offset_words(const Geometry& g) { return (g.n_experts + 2) / 2 * 2; }

/// One layer's table into shared memory, once per launch: an acquire load for each token would cost 5–9 % of the kernel (NIXL PR
/// #1751 measured it).
EEP_DEVICE void read_layer(const Thread& self, const Params& p, u32 layer, u32* shared) {
  const Geometry& g = p.geometry;
  const u32 words = offset_words(g) + 2 * p.replica_stride;
  for (u32 i = 0; i < kTablesRead; ++i) {
    const u64 table = (kTablesRead == 2 ? i : p.context->table) * static_cast<u64>(g.n_layers) + layer;
    copy_words(self, shared + i * words, p.offsets + table * (g.n_experts + 1), g.n_experts + 1);
    copy_words(self, shared + i * words + offset_words(g), reinterpret_cast<const u32*>(p.replicas + table * p.replica_stride),
               2 * p.replica_stride);
  }
}
EEP_DEVICE LayerView chosen_layer(const Params& p, const u32* shared, u32 chosen) {
  const u32* mine = shared + (kTablesRead == 2 ? chosen : 0) * (offset_words(p.geometry) + 2 * p.replica_stride);
  return LayerView{mine, reinterpret_cast<const Replica*>(mine + offset_words(p.geometry))};
}

template <bool kElastic>
EEP_DEVICE u32 route_pair(const Params& p, const LayerView& table, u32 token, u32 k, i64 expert) {
  if (expert < 0 || expert >= static_cast<i64>(p.geometry.n_experts)) return kNoRoute;
  const auto e = static_cast<u32>(expert);
  if constexpr (kElastic) {
    const u32 chosen = table.choose(p.rank, token, k, e);
    return chosen == kNoReplica ? kNoRoute : pack_route(table.replicas[chosen].rank, table.replicas[chosen].slot);
  } else {
    const u32 per_rank = p.geometry.n_experts / p.fixed_ranks;
    return pack_route(e / per_rank, e % per_rank);
  }
}

/// Routes of tokens [first, end) into `routes` [tokens, topk]; marks in each token's list the pair that carries the row to each rank.
template <bool kElastic>
EEP_DEVICE void route_tokens(const Thread& self, const Params& p, const LayerView& table, const Batch& b, u32 first, u32 end,
                             u32* routes) {
  const u32 pairs = (end - first) * b.topk;
  for (u32 i = self.thread(); i < pairs; i += self.threads()) {
    const u32 token = first + i / b.topk, k = i % b.topk;
    routes[i] = route_pair<kElastic>(p, table, token, k, expert_of(b, token, k));
  }
  self.barrier();
  for (u32 base = 0; base < pairs; base += self.threads()) {
    const u32 i = base + self.thread();
    bool leads = i < pairs && is_route(routes[i]);
    if (leads) {
      const u32 k = i % b.topk, rank = rank_of(routes[i]);
      for (u32 before = i - k; before < i; ++before) leads = leads && !(is_route(routes[before]) && rank_of(routes[before]) == rank);
    }
    self.barrier();  // every thread has read its neighbours before one of them gets its mark …
    if (leads) routes[i] |= kLeads;
    self.barrier();  // … and the marks are there before the next pass reads across the edge of this one
  }
}

}  // namespace eep::gpu
