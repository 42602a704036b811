// Waiting for a peer's tag, and what happens when it does not come: evidence, gossip, the fault ring, and the drain of what is left.
#pragma once

#include "batch.hpp"
#include "port.hpp"

namespace eep::gpu {

/// What a launch knows about the epoch it runs in: read once, the same in every block.
struct View {
  u32 epoch, table, round, sync, poison;
  u64 suspects[kMaskWords];
  u64 arrived[kMaskWords];
  u64 active[kMaskWords];

  EEP_DEVICE bool live(u32 rank) const { return in_mask(active, rank) && !in_mask(suspects, rank); }
  EEP_DEVICE u32 parity() const { return round & 1U; }
};

/// Reads the step context; for one thread. Both tables' masks are read beside it, and the choice is made when all have come: the dependent second
/// trip to memory is what a table switch would otherwise cost every launch. Relaxed, because a sync reads them again after it has waited, and an
/// ordinary load may then show what the first one left in the multiprocessor's cache. (The model reads only the chosen one: the host may
/// be writing the other.)
template <bool kElastic>
EEP_DEVICE View read_view(const Params& p) {
  View v;
  const Context& c = *p.context;
#if defined(__CUDACC__)
  u64 both[2][kMaskWords];
  if constexpr (kElastic) {
#pragma unroll
    for (u32 w = 0; w < kMaskWords; ++w) {
      both[0][w] = load_relaxed(&p.tables[0].active[w]);
      both[1][w] = load_relaxed(&p.tables[1].active[w]);
    }
  }
#endif
  v.epoch = c.epoch;
  v.table = c.table;
  v.round = c.round;
  v.sync = c.sync;
  v.poison = load_relaxed(&c.poison);
#pragma unroll
  for (u32 w = 0; w < kMaskWords; ++w) {
    v.suspects[w] = load_relaxed(&c.suspects[w]);
    v.arrived[w] = load_relaxed(&c.arrived[w]);
    if constexpr (kElastic) {
#if defined(__CUDACC__)
      v.active[w] = v.table == 0 ? both[0][w] : both[1][w];
#else
      v.active[w] = p.tables[v.table].active[w];
#endif
    } else {
      const u32 here = p.fixed_ranks > w * 64 ? p.fixed_ranks - w * 64 : 0;
      v.active[w] = here >= 64 ? ~0ULL : (1ULL << here) - 1;
    }
  }
  return v;
}

/// The head of every kernel's shared memory. The view is read by one thread for its whole block: poison and suspicion may change
/// while a launch runs, and threads that disagree about them would part at the next barrier.
struct Head {
  u32 flag;
  u32 reserved[3];
  u64 came[kMaskWords];
  View view;
};
constexpr u32 kHeadBytes = 128;
static_assert(sizeof(Head) <= kHeadBytes);
EEP_DEVICE Head& head_of(const Thread& self) { return *reinterpret_cast<Head*>(self.shared()); }

/// The block's view; the caller puts the barrier, together with whatever else it reads meanwhile.
template <bool kElastic>
EEP_DEVICE void begin_view(const Thread& self, const Params& p) {
  if (self.thread() == 0) head_of(self).view = read_view<kElastic>(p);
}

/// Appends to the ring that the host reads without a driver call.
EEP_DEVICE void report(const Params& p, const View& v, i32 layer, u32 suspect, Evidence evidence) {
  const u32 index = add_relaxed(&p.context->fault_count, 1);
  FaultEntry& entry = p.page->faults[index % kFaultRing];
  entry.epoch = v.epoch;
  entry.round = v.round;
  entry.layer = layer;
  entry.suspect = suspect;
  entry.evidence = static_cast<u32>(evidence);
  entry.step = p.context->step;
  entry.device_ns = now_ns();
  store_release_system(&entry.serial, static_cast<u64>(index) + 1);
}

/// Tells every active peer whom this rank suspects, so that all survivors leave the step within one hop. Two threads that suspect
/// different ranks at once may lose one bit on the way; the peer leaves all the same, and the host's ring has both.
EEP_DEVICE void gossip(const Params& p, const View& v) {
  if ((load_relaxed(&p.context->poison) & kPoisonFenced) != 0) return;  // a fenced rank writes to nobody
  u64 mask[kMaskWords];
#pragma unroll
  for (u32 w = 0; w < kMaskWords; ++w) mask[w] = load_relaxed(&p.context->suspects[w]);
  for (u32 rank = 0; rank < p.geometry.max_ranks; ++rank) {
    if (rank == p.rank || !in_mask(v.active, rank) || in_mask(mask, rank)) continue;
    Line& line = control_of(peers_of(p, v.table)[rank])->gossip;
#pragma unroll
    for (u32 w = 0; w < kMaskWords; ++w) store_relaxed_system(&line.mask[w], mask[w]);
    store_release_system(&line.tag, tag_of(v.epoch, 0));
  }
}

/// Marks a rank as suspected for the rest of the epoch. Only the first to notice reports it.
EEP_DEVICE void suspect(const Params& p, const View& v, i32 layer, u32 rank, Evidence evidence) {
  const u64 before = or_relaxed(&p.context->suspects[rank / 64], bit_of(rank));
  if ((before & bit_of(rank)) != 0) return;
  or_relaxed(&p.context->poison, kPoisonSuspect);
  report(p, v, layer, rank, evidence);
  if (evidence != Evidence::kGossip) gossip(p, v);  // the one who told us told everybody
}

/// What the host and the peers say; true when this launch should stop waiting.
EEP_DEVICE bool told_to_leave(const Params& p, const View& v, i32 layer) {
  Context& c = *p.context;
  if (load_relaxed_system(&p.page->fenced) != 0) or_relaxed(&c.poison, kPoisonFenced);
  if (load_acquire_system(&p.page->abort_epoch) > v.epoch) or_relaxed(&c.poison, kPoisonAborted);
  const u64* words = p.page->dead[v.table];
  const u64 dead[kMaskWords] = {load_relaxed_system(&words[0]), load_relaxed_system(&words[1])};
  for (u32 rank = 0; rank < p.geometry.max_ranks; ++rank) {
    if (rank == p.rank || !in_mask(v.active, rank)) continue;
    if (in_mask(dead, rank)) suspect(p, v, layer, rank, Evidence::kDead);
    const Line& line = control_of(inbox_chunk(p, rank))->gossip;
    if (load_acquire_system(&line.tag) != tag_of(v.epoch, 0)) continue;
    for (u32 other = 0; other < p.geometry.max_ranks; ++other) {
      if ((load_relaxed_system(&line.mask[other / 64]) & bit_of(other)) != 0) suspect(p, v, layer, other, Evidence::kGossip);
    }
  }
  return load_relaxed(&c.poison) != 0;
}

/// Shows the peers that this rank is alive though it waits itself: its beacon moves.
EEP_DEVICE void show_life(const Params& p, const View& v, u64 now) {
  for (u32 rank = 0; rank < p.geometry.max_ranks; ++rank) {
    if (rank == p.rank || !in_mask(v.active, rank) || in_mask(v.suspects, rank)) continue;
    store_relaxed_system(&control_of(peers_of(p, v.table)[rank])->beacon.tag, now);
  }
}

/// Several blocks may wait for one source at once: one of their figures is lost then, which a mean can bear.
EEP_DEVICE void note_wait(const Params& p, u32 source, u64 waited_ns) {
  const float before = load_relaxed(&p.waits[source]);
  store_relaxed(&p.waits[source], before + (static_cast<float>(waited_ns) * 1e-3F - before) / 16.0F);
}

/// A look goes over the bus and takes as long as twenty polls, in which a tag that comes is not seen: it must be rarer than the waits of a
/// healthy round are long. Some 0.1 ms on a Hopper device: what the host says is heeded within that.
constexpr u32 kPollsPerLook = 256;

/// One thread's wait for one tag of one source. Returns whether it came; if not, the context says why.
///
/// Time is judged on the global timer, which does not follow the clocks of the multiprocessors. A waiter that was itself switched out
/// finds a gap between two looks and moves its deadline by it: nobody is accused of the waiter's own absence. The hard deadline is
/// absolute.
template <bool kElastic>
EEP_DEVICE bool wait_for(const Params& p, const View& v, u32 source, const Line* line, u64 tag, i32 layer) {
  if (load_acquire_system(&line->tag) == tag && (!kElastic || line->incarnation == p.tables[v.table].incarnations[source])) return true;
  const u64 incarnation = kElastic ? p.tables[v.table].incarnations[source] : 0;
  const u64 silence = load_relaxed_system(&p.limits->silence_ns);
  const u64 hard = load_relaxed_system(&p.limits->hard_ns);
  const u64 least_polls = load_relaxed_system(&p.limits->min_polls);
  const u64* beacon_at = &control_of(inbox_chunk(p, source))->beacon.tag;
  const u64 start = now_ns();
  u64 deadline = start + silence, last = start, shown = start, polls = 0;
  u64 beacon = load_relaxed_system(beacon_at);
  bool slow = false;
  for (;;) {
    const u64 seen = load_acquire_system(&line->tag);
    if (seen == tag && (!kElastic || line->incarnation == incarnation)) {
      if constexpr (kElastic) note_wait(p, source, now_ns() - start);
      return true;
    }
    if (++polls % kPollsPerLook != 0) {
      if (polls % 8 == 0) {
        if (load_relaxed(&p.context->poison) != 0) break;
        pause();
      }
      continue;
    }
    const u64 now = now_ns();
    if (now - start >= hard) {
      suspect(p, v, layer, source, Evidence::kSilent);
      break;
    }
    if constexpr (kElastic) {
      if (told_to_leave(p, v, layer)) break;
      if (epoch_of(seen) > v.epoch) {
        or_relaxed(&p.context->poison, kPoisonSkew);
        break;
      }
      if (now - last > silence / 4) deadline += now - last;
      if (now - shown > silence / 8) {
        show_life(p, v, now);
        shown = now;
      }
      last = now;
      if (now >= deadline && polls >= least_polls) {
        const u64 moved = load_relaxed_system(beacon_at);
        if (moved == beacon) {
          suspect(p, v, layer, source, Evidence::kSilent);
          break;
        }
        if (!slow) report(p, v, layer, source, Evidence::kSlow);
        slow = true;
        beacon = moved;
        deadline = now + silence;
      }
    }
  }
  // A last sweep: what came while this thread was leaving is counted, so that fewer tokens are reported missing than were lost.
  return load_acquire_system(&line->tag) == tag && (!kElastic || line->incarnation == incarnation);
}

EEP_DEVICE Status status_of(u32 poison) {
  if ((poison & kPoisonFenced) != 0) return Status::kFenced;
  if ((poison & kPoisonAborted) != 0) return Status::kAborted;
  if ((poison & kPoisonSkew) != 0) return Status::kEpochSkew;
  return poison != 0 ? Status::kSuspect : Status::kOk;
}

/// Whether this block is the last of its grid to come here: everything the other blocks wrote is then visible to it, and what it
/// publishes next is published after them. Leaves the ticket at zero for the next launch.
EEP_DEVICE bool last_block(const Thread& self, u32* ticket) {
  u32* shared_flag = &head_of(self).flag;
  self.barrier();
  if (self.thread() == 0) {
    const bool last = add_acquire_release(ticket, 1) + 1 == self.blocks();
    if (last) store_relaxed(ticket, 0);
    *shared_flag = last ? 1 : 0;
  }
  self.barrier();
  const bool last = *shared_flag != 0;
  self.barrier();
  return last;
}

/// Publishes a tag to one peer. The payload was ordered before it by `last_block`.
EEP_DEVICE void publish(Line& line, u64 tag, u64 incarnation, u32 tokens, i32 layer) {
  line.incarnation = incarnation;
  line.tokens = tokens;
  line.layer = layer;
  store_release_system(&line.tag, tag);
}

}  // namespace eep::gpu
