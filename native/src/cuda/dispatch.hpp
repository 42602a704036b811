// Dispatch: a token's row crosses to each destination rank once, with the slots it is for; what arrives is laid out for the experts.
#pragma once

#include "routing.hpp"

namespace eep::gpu {

/// Pieces of a row in flight in one lane: enough independent 16-byte loads to cover the trip to memory.
constexpr u32 kUnroll = 4;
constexpr u32 kSegmentPieces = kUnroll * kLanes;

struct Piece {
  Vec16 v[kPieceVectors];
};

EEP_DEVICE Piece load_piece(const u8* row, u32 piece) {
  Piece out;
#pragma unroll
  for (u32 i = 0; i < kPieceVectors; ++i) out.v[i] = load_row(row + (static_cast<u64>(piece) * kPieceVectors + i) * 16);
  return out;
}
EEP_DEVICE void store_piece(u8* row, u32 piece, const Piece& value) {
#pragma unroll
  for (u32 i = 0; i < kPieceVectors; ++i) store_row(row + (static_cast<u64>(piece) * kPieceVectors + i) * 16, value.v[i]);
}

/// A piece of bf16 values as e4m3, half as wide, and the scale of its 128-wide group: amax / 448, as grouped fp8 GEMMs expect it.
struct Quantized {
  u64 v[kPieceVectors];
  float scale;
};
EEP_DEVICE Quantized quantize(const Piece& piece) {
  float top = 1e-4F;  // an all-zero group gets a tiny scale instead of a division by zero
#pragma unroll
  for (u32 i = 0; i < kPieceVectors; ++i) {
#pragma unroll
    for (u32 w = 0; w < 4; ++w) {
      top = larger(top, larger(magnitude(bf16_low(piece.v[i].word[w])), magnitude(bf16_high(piece.v[i].word[w]))));
    }
  }
  top = group_max(top);
  const float inverse = 448.0F / top;
  Quantized out;
  out.scale = top / 448.0F;
#pragma unroll
  for (u32 i = 0; i < kPieceVectors; ++i) {
    const u32* w = piece.v[i].word;
    const u32 low = to_e4m3_quad(bf16_low(w[0]) * inverse, bf16_high(w[0]) * inverse, bf16_low(w[1]) * inverse, bf16_high(w[1]) * inverse);
    const u32 high = to_e4m3_quad(bf16_low(w[2]) * inverse, bf16_high(w[2]) * inverse, bf16_low(w[3]) * inverse, bf16_high(w[3]) * inverse);
    out.v[i] = static_cast<u64>(low) | (static_cast<u64>(high) << 32);
  }
  return out;
}
EEP_DEVICE void store_quantized(u8* row, u32 piece, const Quantized& value, u32 hidden) {
#pragma unroll
  for (u32 i = 0; i < kPieceVectors; ++i) store_half_row(row + (static_cast<u64>(piece) * kPieceVectors + i) * 8, value.v[i]);
  if (piece % kGroupLanes == 0) *reinterpret_cast<float*>(row + hidden + 4ULL * (piece / kGroupLanes)) = value.scale;
}

/// The slots and weights of tokens [first, end) for every active rank. A token that does not go to a rank still gets a line there,
/// full of "no slot": the receiver then needs no clearing between rounds.
EEP_DEVICE void send_slots(const Thread& self, const Params& p, const View& v, const Batch& b, const float* weights, u32 first, u32 end,
                           const u32* routes, u8* const* peers) {
  const Geometry& g = p.geometry;
  const u32 tasks = (end - first) * g.max_ranks;
  for (u32 task = self.thread(); task < tasks; task += self.threads()) {
    const u32 rank = task % g.max_ranks, local = task / g.max_ranks, token = first + local;
    if (!v.live(rank)) continue;
    const u32* mine = routes + local * b.topk;
    u8* slots_at = peers[rank] + g.slots_at(v.parity(), token);
    float* weights_at = reinterpret_cast<float*>(peers[rank] + g.weights_at(v.parity(), token));
    for (u32 base = 0; base < g.slots_stride(); base += 8) {
      Vec16 slots;
#pragma unroll
      for (u32 pair = 0; pair < 4; ++pair) {
        u32 word = 0;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
          const u32 k = base + 2 * pair + half;
          const bool here = k < b.topk && is_route(mine[k]) && rank_of(mine[k]) == rank;
          word |= (here ? slot_of(mine[k]) : static_cast<u32>(kNoSlot)) << (16 * half);
          if (here) weights_at[k] = weights[static_cast<u64>(token) * b.topk + k];
        }
        slots.word[pair] = word;
      }
      store_row(slots_at + 2ULL * base, slots);
    }
  }
}

/// What the control plane balances by, and what best effort leaves out.
EEP_DEVICE void count_pair(const Params& p, const Batch& b, u32 token, u32 k, u32 route) {
  const i64 expert = expert_of(b, token, k);
  if (expert < 0 || expert >= static_cast<i64>(p.geometry.n_experts)) return;
  add_relaxed(&p.loads[static_cast<u64>(b.layer) * p.geometry.n_experts + static_cast<u32>(expert)], 1.0F);
  if (!is_route(route)) add_relaxed(&p.context->masked, static_cast<u64>(1));
}

/// Bytes of shared memory of a dispatch with `blocks` blocks.
EEP_BOTH u64 dispatch_shared_bytes(const Geometry& g, u32 replica_stride, u32 tokens, u32 blocks, u32 topk) {
  const u32 send_tokens = divide_up(tokens, blocks) + 2, receive_tokens = g.max_tokens;
  const u32 words = send_tokens * topk > receive_tokens * g.max_topk ? send_tokens * topk : receive_tokens * g.max_topk;
  return kHeadBytes + 16ULL * g.max_ranks + 4ULL * (table_words(g, replica_stride) + 2) + 4ULL * words;
}

/// What the sending phase keeps in shared memory behind the head.
struct SendShared {
  u8** peers;  // of both tables, before the step context says which one counts
  u32* tables;
  u32* routes;
};
template <bool kElastic>
EEP_DEVICE SendShared send_shared(const Thread& self, const Params& p) {
  u8** peers = reinterpret_cast<u8**>(self.shared() + kHeadBytes);
  u32* tables = reinterpret_cast<u32*>(peers + kTablesRead * p.geometry.max_ranks);
  return SendShared{peers, tables, tables + (kElastic ? round_up(table_words(p.geometry, p.replica_stride), 2) : 0)};
}

/// Peers and tables into shared memory, while the view is on its way; the caller puts the barrier.
template <bool kElastic>
EEP_DEVICE void begin_send(const Thread& self, const Params& p, const Dispatch& d) {
  const SendShared shared = send_shared<kElastic>(self, p);
#if defined(__CUDACC__)
  for (u32 i = self.thread(); i < 2 * p.geometry.max_ranks; i += self.threads()) shared.peers[i] = p.peers[i];
#else
  for (u32 i = self.thread(); i < p.geometry.max_ranks; i += self.threads()) shared.peers[i] = peers_of(p, p.context->table)[i];
#endif
  if constexpr (kElastic) read_layer(self, p, d.batch.layer, shared.tables);
}

template <bool kElastic, Wire kWire>
EEP_DEVICE void send_rows(const Thread& self, const Params& p, const View& v, const Dispatch& d) {
  const Geometry& g = p.geometry;
  const Batch& b = d.batch;
  const auto [both, tables, routes] = send_shared<kElastic>(self, p);
  u8* const* peers = both + (kTablesRead == 2 ? v.table * g.max_ranks : 0);
  LayerView table{nullptr, nullptr};
  if constexpr (kElastic) table = chosen_layer(p, tables, v.table);

  const u32 pieces = g.hidden / kPieceValues, segments = divide_up(pieces, kSegmentPieces);
  const u32 items = b.tokens * segments;
  const u32 begin = static_cast<u32>(static_cast<u64>(self.block()) * items / self.blocks());
  const u32 end = static_cast<u32>((static_cast<u64>(self.block()) + 1) * items / self.blocks());
  const u32 first_token = begin / segments, end_token = divide_up(end, segments);
  if (begin < end) {
    route_tokens<kElastic>(self, p, table, b, first_token, end_token, routes);
    // A token split over two blocks is described by the block that has its first segment.
    const u32 first_own = divide_up(begin, segments);
    send_slots(self, p, v, b, d.weights, first_own, end_token, routes + (first_own - first_token) * b.topk, peers);
    for (u32 i = self.thread(); i < (end_token - first_own) * b.topk; i += self.threads()) {
      const u32 token = first_own + i / b.topk, k = i % b.topk, route = routes[(first_own - first_token) * b.topk + i];
      p.routes[static_cast<u64>(token) * g.max_topk + k] = route;
      if constexpr (kElastic) count_pair(p, b, token, k, route);
    }
  }
  for (u32 item = begin + self.warp(); item < end; item += self.warps()) {
    const u32 token = item / segments, first_piece = item % segments * kSegmentPieces + self.lane();
    const u8* from = d.x + 2ULL * g.hidden * token;
    Piece piece[kUnroll] = {};
#pragma unroll
    for (u32 u = 0; u < kUnroll; ++u) {
      if (first_piece + u * kLanes < pieces) piece[u] = load_piece(from, first_piece + u * kLanes);
    }
    const u32* mine = routes + (token - first_token) * b.topk;
    if constexpr (kWire == Wire::kFp8) {
      Quantized q[kUnroll];
#pragma unroll
      for (u32 u = 0; u < kUnroll; ++u) q[u] = quantize(piece[u]);
      for (u32 k = 0; k < b.topk; ++k) {
        if (!is_route(mine[k]) || (mine[k] & kLeads) == 0) continue;
        u8* to = peers[rank_of(mine[k])] + g.row_at(v.parity(), token);
#pragma unroll
        for (u32 u = 0; u < kUnroll; ++u) {
          if (first_piece + u * kLanes < pieces) store_quantized(to, first_piece + u * kLanes, q[u], g.hidden);
        }
      }
    } else {
      for (u32 k = 0; k < b.topk; ++k) {
        if (!is_route(mine[k]) || (mine[k] & kLeads) == 0) continue;
        u8* to = peers[rank_of(mine[k])] + g.row_at(v.parity(), token);
#pragma unroll
        for (u32 u = 0; u < kUnroll; ++u) {
          if (first_piece + u * kLanes < pieces) store_piece(to, first_piece + u * kLanes, piece[u]);
        }
      }
    }
  }
  if (!last_block(self, &p.context->dispatch_ticket)) return;
  for (u32 rank = self.thread(); rank < g.max_ranks; rank += self.threads()) {
    if (!v.live(rank)) continue;
    publish(control_of(peers[rank])->dispatch[v.parity()], tag_of(v.epoch, v.round), p.incarnation, b.tokens, static_cast<i32>(b.layer));
  }
}

/// The n-th active rank, or max_ranks.
EEP_DEVICE u32 nth_active(const View& v, const Geometry& g, u32 n) {
  for (u32 rank = 0; rank < g.max_ranks; ++rank) {
    if (in_mask(v.active, rank) && n-- == 0) return rank;
  }
  return g.max_ranks;
}
EEP_DEVICE u32 count_active(const View& v) {
  u32 count = 0;
#pragma unroll
  for (u32 w = 0; w < kMaskWords; ++w) {
    for (u64 rest = v.active[w]; rest != 0; rest &= rest - 1) ++count;
  }
  return count;
}

/// How the blocks of a grid share the sources: several blocks for one source, or several sources for one block.
struct Share {
  u32 source_index, source_step, part, parts;
};
EEP_DEVICE Share share_of(const Thread& self, u32 sources) {
  if (sources == 0) return Share{0, 1, 0, 1};  // before the first epoch: a warm-up or a capture
  if (self.blocks() < sources) return Share{self.block(), self.blocks(), 0, 1};
  const u32 parts = self.blocks() / sources;
  const u32 index = self.block() / parts;
  return Share{index, sources, self.block() % parts, parts};
}

/// Gives every pair of one source's tokens its place, in `places` [own tokens, topk] and for the combine in `pair_rows`.
EEP_DEVICE void place_pairs(const Thread& self, const Params& p, const View& v, const Dispatch& d, u32 source, u32 tokens,
                            const Share& share, i32* places) {
  const Geometry& g = p.geometry;
  const u8* chunk = inbox_chunk(p, source);
  const u32 own = tokens > share.part ? divide_up(tokens - share.part, share.parts) : 0;
  for (u32 i = self.thread(); i < own * g.max_topk; i += self.threads()) {
    const u32 token = share.part + i / g.max_topk * share.parts, k = i % g.max_topk;
    const u16 slot = reinterpret_cast<const u16*>(chunk + g.slots_at(v.parity(), token))[k];
    const u32 pair = (source * g.max_tokens + token) * g.max_topk + k;
    i32 place = -1;
    if (slot < g.max_slots) {
      const u32 in_slot = add_relaxed(&d.out.counts[slot], 1);
      if (d.out.pair_list != 0) {
        place = static_cast<i32>(add_relaxed(&d.out.counts[g.max_slots], 1));
        d.out.pair_slots[place] = slot;
        d.out.pair_weights[place] = reinterpret_cast<const float*>(chunk + g.weights_at(v.parity(), token))[k];
      } else {
        place = static_cast<i32>(slot * p.slot_capacity + in_slot);
      }
      d.out.origins[place] = static_cast<i32>(pair);
    }
    p.pair_rows[pair] = place;
    places[i] = place;
  }
}

template <Wire kWire>
EEP_DEVICE void copy_rows(const Thread& self, const Params& p, const View& v, const Dispatch& d, u32 source, u32 tokens,
                          const Share& share, const i32* places) {
  const Geometry& g = p.geometry;
  const u8* chunk = inbox_chunk(p, source);
  const u32 own = tokens > share.part ? divide_up(tokens - share.part, share.parts) : 0;
  const u32 vectors = static_cast<u32>(g.payload_bytes() / 16), groups = g.hidden / kGroupWidth;
  const u32 segments = divide_up(vectors, kSegmentPieces);
  for (u32 item = self.warp(); item < own * segments; item += self.warps()) {
    const i32* mine = places + item / segments * g.max_topk;
    bool any = false;
    for (u32 k = 0; k < g.max_topk; ++k) any = any || mine[k] >= 0;
    if (!any) continue;
    const u8* from = chunk + g.row_at(v.parity(), share.part + item / segments * share.parts);
    const u32 first = item % segments * kSegmentPieces + self.lane();
    Vec16 row[kUnroll] = {};
#pragma unroll
    for (u32 u = 0; u < kUnroll; ++u) {
      if (first + u * kLanes < vectors) row[u] = load_row(from + 16ULL * (first + u * kLanes));
    }
    for (u32 k = 0; k < g.max_topk; ++k) {
      if (mine[k] < 0) continue;
      u8* to = d.out.rows + g.payload_bytes() * static_cast<u32>(mine[k]);
#pragma unroll
      for (u32 u = 0; u < kUnroll; ++u) {
        if (first + u * kLanes < vectors) store_row(to + 16ULL * (first + u * kLanes), row[u]);
      }
      if constexpr (kWire == Wire::kFp8) {
        if (item % segments != 0) continue;
        const float* scales = reinterpret_cast<const float*>(from + g.payload_bytes());
        const u32 place = static_cast<u32>(mine[k]);
        for (u32 i = self.lane(); i < groups; i += kLanes) {
          // Expert-major: column-major within a slot, as masked grouped GEMMs read it. Pair list: beside its row.
          const u64 at = d.out.pair_list != 0 ? static_cast<u64>(place) * groups + i
                                              : (static_cast<u64>(place / p.slot_capacity) * groups + i) * p.slot_capacity +
                                                    place % p.slot_capacity;
          d.out.scales[at] = scales[i];
        }
      }
    }
  }
}

template <bool kElastic, Wire kWire>
EEP_DEVICE void receive_rows(const Thread& self, const Params& p, const View& v, const Dispatch& d) {
  u32* came = &head_of(self).flag;
  i32* places = reinterpret_cast<i32*>(self.shared() + kHeadBytes);
  const u32 sources = count_active(v);
  const Share share = share_of(self, sources);
  for (u32 index = share.source_index; index < sources; index += share.source_step) {
    const u32 source = nth_active(v, p.geometry, index);
    const Line* line = &control_of(inbox_chunk(p, source))->dispatch[v.parity()];
    self.barrier();
    if (self.thread() == 0) {
      *came = wait_for<kElastic>(p, v, source, line, tag_of(v.epoch, v.round), static_cast<i32>(d.batch.layer)) ? 1 : 0;
      if (*came != 0 && share.part == 0) or_relaxed(&p.context->arrived[source / 64], bit_of(source));
    }
    self.barrier();
    if (*came == 0) continue;
    place_pairs(self, p, v, d, source, line->tokens, share, places);
    self.barrier();
    copy_rows<kWire>(self, p, v, d, source, line->tokens, share, places);
  }
}

/// One dispatch, or one of its two phases. A launch in a poisoned epoch does nothing at all: that is how a captured graph drains.
template <bool kElastic, Wire kWire>
EEP_DEVICE void dispatch(const Thread& self, const Params& p, const Dispatch& d, u32 phases) {
  begin_view<kElastic>(self, p);
  if ((phases & kSendPhase) != 0) begin_send<kElastic>(self, p, d);
  self.barrier();
  const View v = head_of(self).view;
  if (v.poison != 0) return;
  if ((phases & kSendPhase) != 0) send_rows<kElastic, kWire>(self, p, v, d);
  if ((phases & kReceivePhase) != 0) receive_rows<kElastic, kWire>(self, p, v, d);
}

}  // namespace eep::gpu
