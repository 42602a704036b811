// Nothing breaks: rounds, running ahead, ranks left out, and the build without elasticity.
#pragma once

#include <numeric>

#include "world.hpp"

namespace eep::gpu::model {

/// Steps of sync and two layers on every rank, with shapes, layouts and both wire formats; every output bit for bit.
inline void rounds(u32 seed) {
  for (const bool pair_list : {false, true}) {
    for (const Wire wire : {Wire::kBf16, Wire::kFp8}) {
      for (const u32 blocks : {1U, 2U, 5U}) {
        Sizes sizes;
        sizes.hidden = 256, sizes.wire = wire, sizes.pair_list = pair_list, sizes.blocks = blocks, sizes.threads = blocks == 5 ? 1 : 3;
        World world(sizes, seed);
        world.stage_all(1);
        std::array<std::array<float, 2>, 3> expected{};  // pairs that each rank routed in each layer
        for (u32 step = 0; step < 4; ++step) {
          std::vector<Input> inputs;
          for (u32 i = 0; i < 2 * sizes.ranks; ++i) inputs.push_back(world.input(world.any(sizes.tokens + 1)));
          for (u32 r = 0; r < sizes.ranks; ++r) {
            for (u32 layer = 0; layer < 2; ++layer) {
              for (const i32 id : inputs[2 * r + layer].ids) expected[r][layer] += id >= 0 ? 1.0F : 0.0F;
            }
          }
          world.together(world.active, [&](u32 r, Rank& rank) {
            rank.jitter = 50;
            rank.sync({inputs[r].tokens, 0, 0, 0, r});
            CHECK(rank.ok(), "sync of rank %u: %u", r, static_cast<u32>(rank.status()));
            for (u32 other = 0; other < sizes.ranks; ++other) CHECK(rank.page().rows[other].user == other, "row of rank %u", other);
            for (u32 layer = 0; layer < 2; ++layer) {
              world.round(r, inputs[2 * r + layer], layer, step % 2 != 0);
              world.expect(r, inputs[2 * r + layer], layer, "healthy round");
            }
          });
        }
        for (const auto& rank : world.ranks) {
          for (const i32 slot : rank->pair_slots) CHECK(slot == -1, "a pair's slot outlived its round: %d", slot);
          for (u32 layer = 0; layer < 2; ++layer) {
            const float* loads = &rank->loads[layer * sizes.experts];
            const float counted = std::accumulate(loads, loads + sizes.experts, 0.0F);
            CHECK(counted == expected[rank->params.rank][layer], "rank %u layer %u: %g pairs", rank->params.rank, layer, counted);
          }
          for (const u32 rounds_of_layer : rank->layer_rounds) CHECK(rounds_of_layer == 4, "%u rounds of a layer", rounds_of_layer);
        }
        for (const auto& rank : world.ranks) CHECK(rank->context().rounds_ok == 8, "rounds: %llu", static_cast<unsigned long long>(rank->context().rounds_ok));
      }
    }
  }
}

/// Many rounds without a sync between them: a fast rank never overwrites what a slow one has not read (the run-ahead rule).
inline void run_ahead(u32 seed) {
  Sizes sizes;
  sizes.ranks = 3, sizes.blocks = 1, sizes.threads = 2;
  World world(sizes, seed);
  world.stage_all(1);
  std::vector<std::vector<Input>> inputs(sizes.ranks);
  for (auto& list : inputs) {
    for (u32 i = 0; i < 60; ++i) list.push_back(world.input(1 + world.any(sizes.tokens)));
  }
  world.together(world.active, [&](u32 r, Rank& rank) {
    rank.jitter = r == 0 ? 3 : 0;
    rank.sync();
    for (u32 i = 0; i < 60; ++i) {
      world.round(r, inputs[r][i], i % 2);
      world.expect(r, inputs[r][i], i % 2, "run ahead");
    }
  });
}

/// Nobody writes to a rank that the epoch leaves out: not a byte of its inboxes changes.
inline void masked(u32 seed) {
  Sizes sizes;
  sizes.ranks = 4;
  World world(sizes, seed);
  world.stage_all(1);
  std::vector<Input> inputs;
  for (u32 i = 0; i < sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
  const auto step = [&](u32 r, Rank& rank) {
    rank.sync();
    CHECK(rank.ok(), "rank %u: %u", r, static_cast<u32>(rank.status()));
    world.round(r, inputs[r], 0);
    world.expect(r, inputs[r], 0, "beside a masked rank");
  };
  world.together(world.active, step);
  const std::vector<u8> before = world.ranks[1]->inbox_bytes();
  CHECK(std::any_of(before.begin(), before.end(), [](u8 byte) { return byte != 0; }), "nothing was ever written");
  world.active.erase(1);
  world.stage_all(2);
  for (u32 i = 0; i < 4; ++i) world.together(std::set<u32>(world.active), step);
  CHECK(world.ranks[1]->inbox_bytes() == before, "somebody wrote to the masked rank");
}

/// The fixed-membership build gives what the elastic one gives: what it costs is then comparable.
inline void fixed_build(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  const u32 per_rank = sizes.experts / sizes.ranks;
  for (u32 e = 0; e < sizes.experts; ++e) world.replicas[e] = {{e / per_rank, e % per_rank, 1}};
  world.stage_all(1);
  world.together(world.active, [&](u32, Rank& rank) { rank.sync(); });
  for (u32 i = 0; i < 6; ++i) {
    std::vector<Input> inputs;
    for (u32 r = 0; r < sizes.ranks; ++r) inputs.push_back(world.input(sizes.tokens));
    world.elastic = i % 2 == 0;
    world.together(world.active, [&](u32 r, Rank&) {
      world.round(r, inputs[r], 0);
      world.expect(r, inputs[r], 0, "fixed and elastic by turns");
    });
  }
}

}  // namespace eep::gpu::model
