// Ranks crash, fall silent, or go on writing after they were excluded.
#pragma once

#include "world.hpp"

namespace eep::gpu::model {

/// A rank dies at its n-th write, for every n: survivors leave, and the same step under the next epoch is right bit for bit.
inline void crash(u32 seed) {
  u32 died = 0, degraded = 0;
  for (i64 point = 0;; point += 1 + static_cast<i64>(seed % 7)) {
    Sizes sizes;
    World world(sizes, seed);
    world.stage_all(1);
    std::vector<Input> inputs;
    for (u32 i = 0; i < 2 * sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
    const u32 victim = sizes.ranks - 1;
    world.ranks[victim]->writes_left = point;
    const auto step = [&](u32 r, Rank& rank) {
      rank.sync();
      bool ok = rank.ok();
      for (u32 layer = 0; layer < 2 && !rank.crashed; ++layer) {
        world.round(r, inputs[2 * r + layer], layer);
        // A result may be used only if nothing is missing; then it must be right, whoever died meanwhile.
        ok = ok && rank.ok();
        for (const u8 missing : rank.missing) CHECK(rank.crashed || missing <= sizes.topk, "rank %u: nobody counted what is missing", r);
        if (ok) world.expect(r, inputs[2 * r + layer], layer, "before the crash was seen");
      }
      if (!rank.crashed) return;
      for (const u32 survivor : {0U, 1U}) world.ranks[survivor]->mark_dead(victim);
    };
    world.together(std::set<u32>(world.active), step);
    if (!world.ranks[victim]->crashed) break;
    ++died;
    for (const u32 survivor : {0U, 1U}) degraded += world.ranks[survivor]->ok() ? 0 : 1;
    world.active.erase(victim);
    world.stage_all(2);
    world.together(std::set<u32>(world.active), [&](u32 r, Rank& rank) {
      rank.sync();
      for (u32 layer = 0; layer < 2; ++layer) {
        world.round(r, inputs[2 * r + layer], layer);
        CHECK(rank.ok(), "epoch 2, rank %u, crash at write %lld: %u", r, static_cast<long long>(point), static_cast<u32>(rank.status()));
        world.expect(r, inputs[2 * r + layer], layer, "after the crash");
      }
    });
  }
  CHECK(died > 20 && degraded > 10, "only %u crash points, %u degraded", died, degraded);
  std::printf("%u crash points, %u survivors left a step\n", died, degraded);
}

/// Only one survivor has evidence; the others leave by gossip, long before their own deadlines.
inline void gossip_leaves(u32 seed) {
  Sizes sizes;
  sizes.ranks = 4;
  World world(sizes, seed);
  world.stage_all(1);
  const u64 start = now_ns();
  world.ranks[0]->mark_dead(3);
  world.together(std::set<u32>{0, 1, 2}, [&](u32, Rank& rank) { rank.sync(); });
  CHECK(now_ns() - start < world.ranks[1]->limits().silence_ns, "survivors waited for their own deadlines");
  u32 evidence[3] = {};
  for (u32 r = 0; r < 3; ++r) {
    CHECK(world.ranks[r]->status() == Status::kSuspect, "rank %u: %u", r, static_cast<u32>(world.ranks[r]->status()));
    CHECK(in_mask(world.ranks[r]->page().suspects, 3), "rank %u does not suspect 3", r);
    evidence[r] = world.ranks[r]->page().faults[0].evidence;
  }
  CHECK(evidence[0] == static_cast<u32>(Evidence::kDead), "evidence %u", evidence[0]);
  CHECK(evidence[1] == static_cast<u32>(Evidence::kGossip) && evidence[2] == static_cast<u32>(Evidence::kGossip), "%u %u", evidence[1], evidence[2]);
}

/// Silence: a frozen peer is suspected at the deadline; one whose beacon moves is reported as slow and waited for.
inline void silence(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  for (const auto& rank : world.ranks) rank->limits() = Limits{1200 * kMs, 60000 * kMs, 10};
  world.together(world.active, [&](u32 r, Rank& rank) {
    if (r == 2) {  // late by three deadlines, alive all the time
      for (u64 tick = 1; tick <= 75; ++tick) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        for (u32 peer = 0; peer < 2; ++peer) store_relaxed_system(&control_of(rank.peer(peer))->beacon.tag, tick);
      }
    }
    rank.sync();
    CHECK(rank.ok(), "rank %u after a slow peer: %u", r, static_cast<u32>(rank.status()));
  });
  bool slow = false;
  for (const FaultEntry& entry : world.ranks[0]->page().faults) slow = slow || entry.evidence == static_cast<u32>(Evidence::kSlow);
  CHECK(slow, "nobody was reported as slow");
  world.together(std::set<u32>{0, 1}, [&](u32 r, Rank& rank) {
    const u64 start = now_ns();
    rank.sync();
    CHECK(rank.status() == Status::kSuspect && in_mask(rank.page().suspects, 2), "rank %u: %u", r, static_cast<u32>(rank.status()));
    CHECK(now_ns() - start < 20000 * kMs, "rank %u left late", r);
  });
}

/// An excluded rank goes on writing everything it ever mapped, before and after its place is taken by a new incarnation.
inline void zombie(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  std::vector<Input> inputs;
  for (u32 i = 0; i < sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
  const auto step = [&](u32 r, Rank& rank) {
    rank.sync();
    CHECK(rank.ok(), "rank %u: %u", r, static_cast<u32>(rank.status()));
    world.round(r, inputs[r], 0);
    world.expect(r, inputs[r], 0, "with a zombie about");
  };
  world.together(world.active, step);
  std::atomic<bool> stop{false};
  std::array<std::atomic<u8*>, 2> targets{};
  for (u32 r = 0; r < 2; ++r) targets[r] = world.ranks[2]->peer(r);
  const u64 bytes = world.ranks[0]->params.chunk_stride;
  std::array<std::atomic<u32>, 2> passes{};
  const auto scribble = [&] {
    std::minstd_rand random(seed + 1);
    while (!stop) {
      for (u32 r = 0; r < 2; ++r) {
        u8* chunk = targets[r];
        for (u64 i = 0; i < bytes; i += 8) {
          const u64 junk = (static_cast<u64>(random()) << 32) | random();
          std::memcpy(chunk + i, &junk, 8);
        }
        passes[r] += 1;
      }
      std::this_thread::yield();
    }
  };
  std::thread writer(scribble);
  world.active.erase(2);
  world.stage_all(2);
  for (u32 i = 0; i < 6; ++i) world.together(std::set<u32>(world.active), step);  // any read of the masked chunk is a reported race
  // The remap: from one moment on, the zombie's address means orphaned memory, and the chunk is fresh.
  std::array<std::vector<u8>, 2> orphans;
  stop = true;
  writer.join();
  for (u32 r = 0; r < 2; ++r) {
    orphans[r].resize(bytes);
    targets[r] = orphans[r].data();
    std::memset(world.ranks[r]->chunk(2), 0, bytes);
  }
  stop = false;
  std::thread again(scribble);
  world.add_rank(2, 777);
  world.link(2);
  world.active.insert(2);
  world.stage_all(3);
  for (u32 i = 0; i < 6; ++i) world.together(world.active, step);
  stop = true;
  again.join();
  CHECK(passes[0] > 1 && passes[1] > 1, "the zombie hardly ran");
}

/// A late tag of an old incarnation, with the right epoch and number, does not count.
inline void incarnation(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  Rank& rank = *world.ranks[0];
  for (const u32 peer : {1U, 2U}) {
    Line& line = control_of(rank.chunk(peer))->sync[1][0];
    line.incarnation = peer == 1 ? world.incarnations[1] : 5;
    line.tag = tag_of(1, 0);
  }
  rank.limits() = Limits{300 * kMs, 5000 * kMs, 10};
  rank.sync();
  CHECK(rank.status() == Status::kSuspect, "status %u", static_cast<u32>(rank.status()));
  CHECK(in_mask(rank.page().suspects, 2) && !in_mask(rank.page().suspects, 1), "the wrong one is suspected");
}

}  // namespace eep::gpu::model
