// Several ranks of the model, their links, and what must come out of a round, bit for bit.
#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "rank.hpp"

namespace eep::gpu::model {

inline float from_bf16(u16 value) { return from_bits(static_cast<u32>(value) << 16); }
inline u16 bf16_of(float value) { return static_cast<u16>(to_bf16(value)); }
inline float from_e4m3(u8 code) {
  const float sign = (code & 0x80) != 0 ? -1.0F : 1.0F;
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10));
}
/// What an "expert" of the model does to a value: it depends on the expert, so a row in the wrong slot shows.
inline float expert_factor(u32 expert) { return 0.5F + 0.25F * static_cast<float>(expert); }

/// One rank's input of one round.
struct Input {
  std::vector<u16> x;
  std::vector<i32> ids;
  std::vector<float> weights;
  u32 tokens = 0;
};

/// Several ranks, their links, and a reference of what must come out.
class World {
 public:
  World(const Sizes& sizes, u32 seed) : sizes(sizes), random_(seed) {
    for (u32 r = 0; r < sizes.ranks; ++r) add_rank(r, 100 + r);
    for (u32 r = 0; r < sizes.ranks; ++r) link(r);
    replicas.resize(sizes.experts);
    for (u32 e = 0; e < sizes.experts; ++e) {  // two replicas each, on different ranks
      replicas[e].push_back({e % sizes.ranks, e / sizes.ranks, 3});
      replicas[e].push_back({(e + 1) % sizes.ranks, divide_up(sizes.experts, sizes.ranks) + e / sizes.ranks, 1});
    }
    for (u32 r = 0; r < sizes.ranks; ++r) active.insert(r);
  }

  void add_rank(u32 r, u64 incarnation) {
    if (ranks.size() <= r) ranks.resize(r + 1);
    ranks[r] = std::make_unique<Rank>(r, sizes, incarnation);
    incarnations.resize(sizes.ranks);
    incarnations[r] = incarnation;
  }
  /// Both directions between `r` and everybody, itself included.
  void link(u32 r) {
    for (u32 other = 0; other < sizes.ranks; ++other) {
      if (other >= ranks.size() || !ranks[other]) continue;
      ranks[r]->connect(other, ranks[other]->chunk(r));
      ranks[other]->connect(r, ranks[r]->chunk(other));
    }
  }
  void stage_all(u32 epoch, bool activate = true) {
    for (const u32 r : active) ranks[r]->stage(epoch, active, incarnations, replicas, activate);
  }

  Input input(u32 tokens) {
    Input in;
    in.tokens = tokens;
    std::normal_distribution<float> normal;
    for (u32 i = 0; i < tokens * sizes.hidden; ++i) in.x.push_back(bf16_of(normal(random_)));
    for (u32 t = 0; t < tokens; ++t) {
      std::vector<i32> all(sizes.experts);
      for (u32 e = 0; e < sizes.experts; ++e) all[e] = static_cast<i32>(e);
      std::shuffle(all.begin(), all.end(), random_);
      for (u32 k = 0; k < sizes.topk; ++k) {
        in.ids.push_back(random_() % 8 == 0 ? -1 : all[k]);
        in.weights.push_back(static_cast<float>(1 + random_() % 8) / 8.0F);
      }
    }
    return in;
  }

  /// Dispatch, experts, combine on one rank. `split` runs the send and the receive phases as launches of their own.
  void round(u32 r, const Input& in, u32 layer, bool split = false) {
    Rank& rank = *ranks[r];
    const Params& p = rank.params;
    rank.out.assign(static_cast<size_t>(in.tokens) * sizes.hidden, 0x7FC0);  // NaN: what is not written shows
    rank.missing.assign(in.tokens, 0xEE);
    const Batch batch{in.tokens, sizes.topk, layer, 0, in.ids.data()};
    Dispatch d{batch, reinterpret_cast<const u8*>(in.x.data()), in.weights.data(), {}};
    d.out = Outputs{rank.rows.data(), rank.scales.data(), rank.counts.data(), rank.pair_slots.data(), rank.pair_weights.data(),
                    rank.origins.data(), sizes.pair_list ? 1U : 0U};
    const u64 shared = dispatch_shared_bytes(p.geometry, p.replica_stride, in.tokens, sizes.blocks, sizes.topk);
    const std::vector<u32> phases = split ? std::vector<u32>{kSendPhase, kReceivePhase} : std::vector<u32>{kSendPhase | kReceivePhase};
    for (const u32 phase : phases) {
      rank.launch(
          [&](const Thread& self) {
            if (!elastic) {
              dispatch<false, Wire::kBf16>(self, p, d, phase);
            } else if (sizes.wire == Wire::kFp8) {
              dispatch<true, Wire::kFp8>(self, p, d, phase);
            } else {
              dispatch<true, Wire::kBf16>(self, p, d, phase);
            }
          },
          sizes.blocks, sizes.threads, shared);
    }
    if (rank.crashed) return;
    run_experts(rank, layer);
    const Combine c{batch, reinterpret_cast<const u8*>(rank.y.data()), reinterpret_cast<u8*>(rank.out.data()), rank.missing.data(), 0,
                    rank.counts.data(), sizes.pair_list ? rank.pair_slots.data() : nullptr};
    for (const u32 phase : phases) {
      rank.launch([&](const Thread& self) { elastic ? combine<true>(self, p, c, phase) : combine<false>(self, p, c, phase); }, sizes.blocks, sizes.threads,
                  combine_shared_bytes(p.geometry, in.tokens, sizes.blocks, sizes.topk));
    }
  }

  /// What `round` must leave in `out` on rank r, bit for bit, when everybody in `from` takes part.
  std::vector<u16> reference(u32 r, const Input& in, u32 layer) const {
    std::vector<u16> out;
    for (u32 t = 0; t < in.tokens; ++t) {
      std::map<u32, std::vector<float>> partials;
      for (u32 k = 0; k < sizes.topk; ++k) {
        const i32 id = in.ids[t * sizes.topk + k];
        if (id < 0) continue;
        std::vector<Replica> live;
        u32 total = 0;
        const u32 source = (static_cast<u32>(id) + layer) % sizes.experts;
        for (const auto& [rank, slot, weight] : replicas[source]) {
          if (active.count(rank) != 0) live.push_back(Replica{static_cast<u16>(rank), static_cast<u16>(slot), total += weight});
        }
        if (live.empty()) continue;
        std::vector<u32> offsets(sizes.experts + 1, 0);
        for (u32 e = static_cast<u32>(id); e < sizes.experts; ++e) offsets[e + 1] = static_cast<u32>(live.size());
        const u32 chosen = eep::LayerView{offsets.data(), live.data()}.choose(r, t, k, static_cast<u32>(id));
        auto& sum = partials[live[chosen].rank];
        sum.resize(sizes.hidden);
        const u16* row = &in.x[static_cast<size_t>(t) * sizes.hidden];
        for (u32 h = 0; h < sizes.hidden; ++h) {
          const float y = from_bf16(bf16_of(through_wire(row, h) * expert_factor(source)));
          sum[h] += in.weights[t * sizes.topk + k] * y;
        }
      }
      std::vector<float> sum(sizes.hidden);
      for (const auto& [rank, partial] : partials) {
        for (u32 h = 0; h < sizes.hidden; ++h) sum[h] += from_bf16(bf16_of(partial[h]));
      }
      for (const float value : sum) out.push_back(bf16_of(value));
    }
    return out;
  }

  void expect(u32 r, const Input& in, u32 layer, const char* when) const {
    const Rank& rank = *ranks[r];
    for (u32 t = 0; t < in.tokens; ++t) CHECK(rank.missing[t] == 0, "%s: rank %u token %u misses %u", when, r, t, rank.missing[t]);
    const std::vector<u16> wanted = reference(r, in, layer);
    for (size_t i = 0; i < wanted.size(); ++i) {
      CHECK(rank.out[i] == wanted[i], "%s: rank %u value %zu is %04x, not %04x", when, r, i, rank.out[i], wanted[i]);
    }
  }

  /// Runs `work` on every rank of `who` at once.
  template <class Who, class Work>
  void together(const Who& who, Work work) {
    std::vector<std::thread> threads;
    for (const u32 r : who) threads.emplace_back([=, this] { work(r, *ranks[r]); });
    for (auto& thread : threads) thread.join();
  }

  u32 any(u32 below) { return static_cast<u32>(random_() % below); }

  const Sizes sizes;
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<u64> incarnations;
  std::set<u32> active;
  Replicas replicas;
  bool elastic = true;

 private:
  float through_wire(const u16* row, u32 h) const {
    if (sizes.wire == Wire::kBf16) return from_bf16(row[h]);
    float top = 1e-4F;
    for (u32 i = h / kGroupWidth * kGroupWidth; i < (h / kGroupWidth + 1) * kGroupWidth; ++i) top = larger(top, magnitude(from_bf16(row[i])));
    return from_e4m3(static_cast<u8>(to_e4m3(from_bf16(row[h]) * (448.0F / top)))) * (top / 448.0F);
  }

  void run_experts(Rank& rank, u32 layer) {
    const Params& p = rank.params;
    std::vector<u32> expert_at(sizes.slots, 0);
    for (u32 e = 0; e < sizes.experts; ++e) {
      for (const auto& [r, slot, weight] : replicas[e]) {
        if (r == p.rank) expert_at[slot] = e;
      }
    }
    (void)layer;
    const u32 groups = sizes.hidden / kGroupWidth;
    const auto one = [&](u32 place, u32 slot) {
      for (u32 h = 0; h < sizes.hidden; ++h) {
        float value;
        if (sizes.wire == Wire::kBf16) {
          u16 raw;
          std::memcpy(&raw, &rank.rows[(static_cast<size_t>(place) * sizes.hidden + h) * 2], 2);
          value = from_bf16(raw);
        } else {
          const size_t at = sizes.pair_list ? static_cast<size_t>(place) * groups + h / kGroupWidth
                                            : (static_cast<size_t>(slot) * groups + h / kGroupWidth) * p.slot_capacity + place % p.slot_capacity;
          value = from_e4m3(rank.rows[static_cast<size_t>(place) * sizes.hidden + h]) * rank.scales[at];
        }
        rank.y[static_cast<size_t>(place) * sizes.hidden + h] = bf16_of(value * expert_factor(expert_at[slot]));
      }
    };
    if (sizes.pair_list) {
      for (u32 i = 0; i < rank.counts[sizes.slots]; ++i) one(i, static_cast<u32>(rank.pair_slots[i]));
    } else {
      for (u32 slot = 0; slot < sizes.slots; ++slot) {
        for (u32 i = 0; i < rank.counts[slot]; ++i) one(slot * p.slot_capacity + i, slot);
      }
    }
  }

  std::mt19937 random_;
};

}  // namespace eep::gpu::model
