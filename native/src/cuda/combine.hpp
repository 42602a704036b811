// Combine: each rank sums what its experts made of a token and pushes one partial row back; the token's rank adds those in rank order.
#pragma once

#include "dispatch.hpp"

namespace eep::gpu {

struct Sum {
  float v[8] = {};
};
EEP_DEVICE void add_scaled(Sum& sum, const Vec16& row, float weight) {
#pragma unroll
  for (u32 w = 0; w < 4; ++w) {
    sum.v[2 * w] += weight * bf16_low(row.word[w]);
    sum.v[2 * w + 1] += weight * bf16_high(row.word[w]);
  }
}
EEP_DEVICE Vec16 rounded(const Sum& sum) {
  Vec16 out;
#pragma unroll
  for (u32 w = 0; w < 4; ++w) out.word[w] = to_bf16_pair(sum.v[2 * w], sum.v[2 * w + 1]);
  return out;
}

EEP_BOTH u64 combine_shared_bytes(const Geometry& g, u32 tokens, u32 blocks, u32 topk) {
  const u32 send = 2 * g.max_tokens * g.max_topk, receive = (divide_up(tokens, blocks) + 2) * (2 * topk + 1);
  return kHeadBytes + 4ULL * (send > receive ? send : receive);
}

/// Reads the places and weights of this block's share of one source's tokens.
EEP_DEVICE void read_places(const Thread& self, const Params& p, const View& v, const Combine& c, u32 source, u32 tokens,
                            const Share& share, i32* places, float* weights) {
  const Geometry& g = p.geometry;
  const u8* chunk = inbox_chunk(p, source);
  const u32 own = tokens > share.part ? divide_up(tokens - share.part, share.parts) : 0;
  for (u32 i = self.thread(); i < own * g.max_topk; i += self.threads()) {
    const u32 token = share.part + i / g.max_topk * share.parts, k = i % g.max_topk;
    const i32 place = p.pair_rows[(static_cast<u64>(source) * g.max_tokens + token) * g.max_topk + k];
    places[i] = place;
    if (c.weighted != 0 || place < 0) {
      weights[i] = 1.0F;
    } else {
      weights[i] = reinterpret_cast<const float*>(chunk + g.weights_at(v.parity(), token))[k];
    }
  }
}

EEP_DEVICE void push_partials(const Thread& self, const Params& p, const View& v, const Combine& c, u32 source, u32 tokens,
                              const Share& share, const i32* places, const float* weights) {
  const Geometry& g = p.geometry;
  u8* chunk = peers_of(p, v.table)[source];
  const u32 own = tokens > share.part ? divide_up(tokens - share.part, share.parts) : 0;
  const u32 vectors = g.hidden / 8, segments = divide_up(vectors, kSegmentPieces);
  for (u32 item = self.warp(); item < own * segments; item += self.warps()) {
    const u32 local = item / segments, first = item % segments * kSegmentPieces + self.lane();
    Sum sum[kUnroll];
    bool any = false;
    for (u32 k = 0; k < g.max_topk; ++k) {
      const i32 place = places[local * g.max_topk + k];
      if (place < 0) continue;
      any = true;
      const float weight = weights[local * g.max_topk + k];
      const u8* from = c.y + 2ULL * g.hidden * static_cast<u32>(place);
      Vec16 row[kUnroll] = {};
#pragma unroll
      for (u32 u = 0; u < kUnroll; ++u) {
        if (first + u * kLanes < vectors) row[u] = load_row(from + 16ULL * (first + u * kLanes));
      }
#pragma unroll
      for (u32 u = 0; u < kUnroll; ++u) add_scaled(sum[u], row[u], weight);
    }
    if (!any) continue;
    u8* to = chunk + g.partial_at(v.parity(), share.part + local * share.parts);
#pragma unroll
    for (u32 u = 0; u < kUnroll; ++u) {
      if (first + u * kLanes < vectors) store_row(to + 16ULL * (first + u * kLanes), rounded(sum[u]));
    }
  }
}

template <bool kElastic>
EEP_DEVICE void send_partials(const Thread& self, const Params& p, const View& v, const Combine& c) {
  const Geometry& g = p.geometry;
  i32* places = reinterpret_cast<i32*>(self.shared() + kHeadBytes);
  float* weights = reinterpret_cast<float*>(places + static_cast<u64>(g.max_tokens) * g.max_topk);
  const u32 sources = count_active(v);
  const Share share = share_of(self, sources);
  for (u32 index = share.source_index; index < sources; index += share.source_step) {
    const u32 source = nth_active(v, g, index);
    if (kElastic && (!v.live(source) || !in_mask(v.arrived, source))) continue;
    const u32 tokens = control_of(inbox_chunk(p, source))->dispatch[v.parity()].tokens;
    self.barrier();
    read_places(self, p, v, c, source, tokens, share, places, weights);
    self.barrier();
    push_partials(self, p, v, c, source, tokens, share, places, weights);
  }
  if (!last_block(self, &p.context->combine_ticket)) return;
  for (u32 rank = self.thread(); rank < g.max_ranks; rank += self.threads()) {
    if (!v.live(rank) || (kElastic && !in_mask(v.arrived, rank))) continue;
    publish(control_of(peers_of(p, v.table)[rank])->combine[v.parity()], tag_of(v.epoch, v.round), p.incarnation, c.batch.tokens,
            static_cast<i32>(c.batch.layer));
  }
}

/// For tokens [first, end): the ranks that hold a partial of each, ascending, and how many: the order of the sum does not depend on
/// who answered first, nor on the order of a token's experts.
EEP_DEVICE void order_ranks(const Thread& self, const Params& p, const Combine& c, u32 first, u32 end, u32* routes, u32* order, u32* counts) {
  const u32 topk = c.batch.topk;
  for (u32 i = self.thread(); i < (end - first) * topk; i += self.threads()) {
    routes[i] = p.routes[static_cast<u64>(first + i / topk) * p.geometry.max_topk + i % topk];
  }
  self.barrier();
  for (u32 i = self.thread(); i < (end - first) * topk; i += self.threads()) {
    const u32 base = i - i % topk;
    u32 before = 0, leads = 0;
    for (u32 j = base; j < base + topk; ++j) {
      if (!is_route(routes[j]) || (routes[j] & kLeads) == 0) continue;
      ++leads;
      if (rank_of(routes[j]) < rank_of(routes[i])) ++before;
    }
    if (i == base) counts[i / topk] = leads;
    if (is_route(routes[i]) && (routes[i] & kLeads) != 0) order[base + before] = rank_of(routes[i]);
  }
  self.barrier();
}

EEP_DEVICE void count_missing(const Thread& self, const Combine& c, u32 first, u32 end, const u32* routes, const u64* came) {
  for (u32 token = first + self.thread(); token < end; token += self.threads()) {
    u32 missing = 0;
    for (u32 k = 0; k < c.batch.topk; ++k) {
      const u32 route = routes == nullptr ? kNoRoute : routes[(token - first) * c.batch.topk + k];
      if (expert_of(c.batch, token, k) >= 0 && (!is_route(route) || !in_mask(came, rank_of(route)))) ++missing;
    }
    c.missing[token] = static_cast<u8>(missing);
  }
}

/// Items [begin, end) of (token, segment) that this block sums.
struct Range {
  u32 begin, end, segments;
};
EEP_DEVICE Range own_range(const Thread& self, const Geometry& g, u32 tokens) {
  const u32 segments = divide_up(g.hidden / 8, kSegmentPieces), items = tokens * segments;
  return Range{static_cast<u32>(static_cast<u64>(self.block()) * items / self.blocks()),
               static_cast<u32>((static_cast<u64>(self.block()) + 1) * items / self.blocks()), segments};
}

EEP_DEVICE void sum_partials(const Thread& self, const Params& p, const View& v, const Combine& c, const u64* came, u32* words) {
  const Geometry& g = p.geometry;
  const auto [begin, end, segments] = own_range(self, g, c.batch.tokens);
  if (begin >= end) return;
  const u32 vectors = g.hidden / 8;
  const u32 first_token = begin / segments, end_token = divide_up(end, segments), span = end_token - first_token;
  u32 *routes = words, *order = words + span * c.batch.topk, *counts = order + span * c.batch.topk;
  order_ranks(self, p, c, first_token, end_token, routes, order, counts);
  const u32 first_own = divide_up(begin, segments);
  count_missing(self, c, first_own, end_token, routes + (first_own - first_token) * c.batch.topk, came);
  for (u32 item = begin + self.warp(); item < end; item += self.warps()) {
    const u32 token = item / segments, first = item % segments * kSegmentPieces + self.lane();
    Sum sum[kUnroll];
    for (u32 i = 0; i < counts[token - first_token]; ++i) {
      const u32 rank = order[(token - first_token) * c.batch.topk + i];
      if (!in_mask(came, rank)) continue;
      const u8* from = inbox_chunk(p, rank) + g.partial_at(v.parity(), token);
      Vec16 row[kUnroll] = {};
#pragma unroll
      for (u32 u = 0; u < kUnroll; ++u) {
        if (first + u * kLanes < vectors) row[u] = load_row(from + 16ULL * (first + u * kLanes));
      }
#pragma unroll
      for (u32 u = 0; u < kUnroll; ++u) add_scaled(sum[u], row[u], 1.0F);
    }
    u8* to = c.out + 2ULL * g.hidden * token;
#pragma unroll
    for (u32 u = 0; u < kUnroll; ++u) {
      if (first + u * kLanes < vectors) store_row(to + 16ULL * (first + u * kLanes), rounded(sum[u]));
    }
  }
}

/// Counts the layer's rounds and halves its loads now and then: statistics of the last few thousand steps, whatever the load was before.
EEP_DEVICE void decay_loads(const Thread& self, const Params& p, u32 layer) {
  if ((p.layer_rounds[layer] + 2) % kHalfLife == 0) {  // before the next round's pairs are counted, as on the CPU
    float* loads = p.loads + static_cast<u64>(layer) * p.geometry.n_experts;
    for (u32 i = self.thread(); i < p.geometry.n_experts; i += self.threads()) store_relaxed(&loads[i], 0.5F * load_relaxed(&loads[i]));
  }
  self.barrier();  // everybody has read the count before it grows
  if (self.thread() == 0) p.layer_rounds[layer] += 1;
}

/// Ends the round: counts are zero for the next dispatch, the round has moved on, and the host can read how it went.
template <bool kElastic>
EEP_DEVICE void finish_round(const Thread& self, const Params& p, const View& v, const Combine& c) {
  if constexpr (kElastic) decay_loads(self, p, c.batch.layer);
  if (c.pair_slots != nullptr) {
    const u32 pairs = load_relaxed(&c.counts[p.geometry.max_slots]);
    for (u32 i = self.thread(); i < pairs; i += self.threads()) c.pair_slots[i] = -1;
    self.barrier();  // everybody has read the count before it is cleared
  }
  for (u32 i = self.thread(); i < p.geometry.max_slots + 1; i += self.threads()) store_relaxed(&c.counts[i], 0);
  if (self.thread() != 0) return;
  Context& context = *p.context;
  const u32 poison = load_relaxed(&context.poison);
  context.round = v.round + 1;
#pragma unroll
  for (u32 w = 0; w < kMaskWords; ++w) store_relaxed(&context.arrived[w], 0);
  if (poison == 0) {
    context.rounds_ok += 1;
    return;  // the host's page already says OK: nothing crosses the bus in the good case
  }
  context.rounds_lost += 1;
#pragma unroll
  for (u32 w = 0; w < kMaskWords; ++w) store_relaxed_system(&p.page->suspects[w], load_relaxed(&context.suspects[w]));
  store_release_system(&p.page->op_status, static_cast<u64>(status_of(poison)));
}

template <bool kElastic>
EEP_DEVICE void receive_partials(const Thread& self, const Params& p, const View& v, const Combine& c) {
  const Geometry& g = p.geometry;
  u64* came = head_of(self).came;
  u32* words = reinterpret_cast<u32*>(self.shared() + kHeadBytes);
  self.barrier();
  if (self.thread() < kMaskWords) came[self.thread()] = 0;
  self.barrier();
  if (v.poison == 0) {
    for (u32 rank = self.thread(); rank < g.max_ranks; rank += self.threads()) {
      if (!v.live(rank)) continue;
      const Line* line = &control_of(inbox_chunk(p, rank))->combine[v.parity()];
      if (wait_for<kElastic>(p, v, rank, line, tag_of(v.epoch, v.round), static_cast<i32>(c.batch.layer))) {
        or_relaxed(&came[rank / 64], bit_of(rank));
      }
    }
    self.barrier();
    sum_partials(self, p, v, c, came, words);
  } else {  // another block may have entered before the epoch was poisoned: each speaks for its own tokens
    const Range own = own_range(self, g, c.batch.tokens);
    count_missing(self, c, divide_up(own.begin, own.segments), divide_up(own.end, own.segments), nullptr, came);
  }
  if (last_block(self, &p.context->finish_ticket)) finish_round<kElastic>(self, p, v, c);
}

/// One combine. In a poisoned epoch it only says that everything is missing and ends the round, so that a captured graph drains.
template <bool kElastic>
EEP_DEVICE void combine(const Thread& self, const Params& p, const Combine& c, u32 phases) {
  begin_view<kElastic>(self, p);
  self.barrier();
  const View v = head_of(self).view;
  if (v.poison == 0 && (phases & kSendPhase) != 0) send_partials<kElastic>(self, p, v, c);
  if ((phases & kReceivePhase) != 0) receive_partials<kElastic>(self, p, v, c);
}

}  // namespace eep::gpu
