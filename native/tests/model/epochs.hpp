// Crossing from epoch to epoch: planned, by an abort, and by number.
#pragma once

#include "world.hpp"

namespace eep::gpu::model {

/// Planned changes under way while steps run: every rank crosses at the same sync, also a slow one, also many times over.
inline void flips(u32 seed) {
  Sizes sizes;
  sizes.blocks = 1;
  World world(sizes, seed);
  world.stage_all(1);
  constexpr u32 kSteps = 40;
  std::vector<Input> inputs;
  for (u32 i = 0; i < sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
  std::atomic<u32> committed{1};
  std::array<std::atomic<u32>, 3> prepared{};
  std::array<std::array<u64, kSteps>, 3> epochs{};
  world.together(world.active, [&](u32 r, Rank& rank) {
    rank.page().flip_when_prepared = 1;
    rank.jitter = r == 1 ? 2 : 40;
    u32 staged = 1;
    for (u32 step = 0; step < kSteps; ++step) {
      const u32 running = static_cast<u32>(rank.page().running_epoch);
      if (running == staged && step > r) {  // prepare the next one; not all at the same step
        staged = running + 1;
        rank.stage(staged, world.active, world.incarnations, world.replicas, false);
        prepared[r] = staged;
      }
      if (r == 0 && prepared[0] == prepared[1] && prepared[1] == prepared[2]) committed = prepared[0].load();
      rank.sync({0, 0, staged, r == 0 ? committed.load() : 0, 0});
      CHECK(rank.ok(), "rank %u step %u: %u", r, step, static_cast<u32>(rank.status()));
      epochs[r][step] = rank.page().running_epoch;
      world.round(r, inputs[r], step % 2);
      world.expect(r, inputs[r], step % 2, "around a flip");
    }
  });
  for (u32 step = 0; step < kSteps; ++step) {
    CHECK(epochs[0][step] == epochs[1][step] && epochs[1][step] == epochs[2][step], "step %u ran under two epochs", step);
  }
  CHECK(epochs[0][kSteps - 1] >= 4, "only %llu epochs", static_cast<unsigned long long>(epochs[0][kSteps - 1]));
  std::printf("%llu epochs in %u steps\n", static_cast<unsigned long long>(epochs[0][kSteps - 1]), kSteps);
}

/// Abort, fence and a newer epoch end a step in bounded time, and the abandoned step replays bit for bit.
inline void abort_and_replay(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  const Input in = world.input(sizes.tokens);
  std::thread agent([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    for (const u32 r : {0U, 1U}) __atomic_store_n(&world.ranks[r]->page().abort_epoch, 2, __ATOMIC_RELEASE);
  });
  world.together(std::set<u32>{0, 1}, [&](u32 r, Rank& rank) {  // rank 2 never comes
    rank.sync();
    CHECK(rank.status() == Status::kAborted, "rank %u: %u", r, static_cast<u32>(rank.status()));
    for (u32 layer = 0; layer < 2; ++layer) {  // the rest of the graph drains without waiting for anybody
      world.round(r, in, layer);
      for (u32 t = 0; t < in.tokens; ++t) {
        u32 wanted = 0;
        for (u32 k = 0; k < sizes.topk; ++k) wanted += in.ids[t * sizes.topk + k] >= 0 ? 1 : 0;
        CHECK(rank.missing[t] == wanted, "token %u of a drained step misses %u of %u", t, rank.missing[t], wanted);
      }
    }
  });
  agent.join();
  world.active.erase(2);
  world.stage_all(2);
  world.together(std::set<u32>(world.active), [&](u32 r, Rank& rank) {
    rank.sync();
    CHECK(rank.ok(), "rank %u: %u", r, static_cast<u32>(rank.status()));
    world.round(r, in, 0);
    world.expect(r, in, 0, "replay");
  });
  __atomic_store_n(&world.ranks[0]->page().fenced, 1, __ATOMIC_RELEASE);
  const u64 before = control_of(world.ranks[1]->chunk(0))->sync[0][1].tag;
  world.ranks[0]->sync();
  CHECK(world.ranks[0]->status() == Status::kFenced, "status %u", static_cast<u32>(world.ranks[0]->status()));
  CHECK(control_of(world.ranks[1]->chunk(0))->sync[0][1].tag == before, "a fenced rank wrote to a peer");
  // A peer in a newer epoch, in the very line this rank waits on.
  control_of(world.ranks[1]->chunk(0))->sync[0][1].tag = tag_of(4, 1);
  world.ranks[1]->sync();
  CHECK(world.ranks[1]->status() == Status::kEpochSkew, "status %u", static_cast<u32>(world.ranks[1]->status()));
}

/// A table for a later step waits for it; one for the past is taken at once; an older epoch never comes back.
inline void activation(u32 seed) {
  Sizes sizes;
  sizes.ranks = 1, sizes.slots = 12;
  World world(sizes, seed);
  world.stage_all(1);
  Rank& rank = *world.ranks[0];
  rank.sync();
  CHECK(rank.page().running_epoch == 1, "epoch");
  rank.stage(7, world.active, world.incarnations, world.replicas, false);
  __atomic_store_n(&rank.page().activate_step[1 - rank.page().running_table], 3, __ATOMIC_RELEASE);
  rank.sync(), rank.sync();
  CHECK(rank.page().running_epoch == 1, "taken before its step");
  rank.context().round = 0xFFFFFFFEU;
  const Input in = world.input(sizes.tokens);
  for (u32 i = 0; i < 3; ++i) {  // numbers wrap within an epoch only after 2^32 rounds; the parity goes on
    if (i < 1) world.round(0, in, 0);
  }
  world.expect(0, in, 0, "late round number");
  rank.sync();
  CHECK(rank.page().running_epoch == 7 && rank.context().round == 0, "not taken at its step");
  rank.stage(5, world.active, world.incarnations, world.replicas, true);
  rank.sync();
  CHECK(rank.page().running_epoch == 7, "an older epoch came back");
}

}  // namespace eep::gpu::model
