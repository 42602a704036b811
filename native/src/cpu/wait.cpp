// Waiting for peers: briefly on the processor, then by yielding it, then asleep on the doorbell and the peers' pidfds; and reading
// the evidence, best first, when a peer does not come.
#include "wait.hpp"

#include <poll.h>

#include "atomics.hpp"
#include "clock.hpp"

namespace eep {

namespace {

constexpr u32 kSpins = 400;          // ≈ 20 µs of pauses: longer than a hand-off between two cores
constexpr u32 kSpinsOversubscribed = 20;  // the peer may be waiting for this very core
constexpr u64 kYieldNs = 100'000;
constexpr u64 kFirstSliceNs = 500'000, kSliceNs = 1'000'000;
constexpr u64 kImpatientNs = 20'000'000;  // slices are short before
constexpr u64 kRingAgainNs = 10'000'000;
constexpr u64 kAbsenceNs = 50'000'000;    // a gap between two looks that was this rank's own absence

}  // namespace

const Line& Group::line_of(const Peer& peer, Exchange exchange) const {
  switch (exchange) {
    case Exchange::kDispatch: return peer.in->dispatch;
    case Exchange::kCombine: return peer.in->combine;
    case Exchange::kSync: break;
  }
  return peer.in->sync[epoch() & 1][sync_ & 1];
}

/// Takes those that came off the list; how many are left.
template <bool kElastic>
u32 Group::sweep(Wait& wait) {
  u32 left = 0;
  for (u32 i = 0; i < wait.pending_count; ++i) {
    Peer& peer = peers_[wait.pending[i]];
    const Line& line = line_of(peer, wait.exchange);
    if (load_acquire(line.tag) == wait.tag && (!kElastic || load_relaxed(line.incarnation) == peer.incarnation)) {
      peer.arrived = true;
      control_->note_wait(peer.rank, wait.began_ns == 0 ? 0.0F : static_cast<float>(now_ns() - wait.began_ns) * 1e-3F);
    } else {
      wait.pending[left++] = wait.pending[i];
    }
  }
  return wait.pending_count = left;
}

template <bool kElastic>
Status Group::await(Exchange exchange, i32 layer) {
  Wait wait{};
  wait.exchange = exchange;
  wait.layer = layer;
  wait.tag = tag_of(epoch(), exchange == Exchange::kSync ? sync_ : round_);
  for (u32 home = 0; home < peers_.size(); ++home) {
    peers_[home].arrived = home == self_;
    if (home != self_) wait.pending[wait.pending_count++] = static_cast<u16>(home);
  }
  if (sweep<kElastic>(wait) == 0) return Status::kOk;
  wait.began_ns = now_ns();
  const u32 spins = peers_.size() <= processors_ ? kSpins : kSpinsOversubscribed;
  for (u32 i = 0; i < spins; ++i) {
    pause();
    if (sweep<kElastic>(wait) == 0) return Status::kOk;
  }
  return await_slowly<kElastic>(wait);
}

template <bool kElastic>
Status Group::await_slowly(Wait& wait) {
  wait.looked_ns = wait.soft_began_ns = wait.rang_ns = wait.began_ns;
  for (u32 i = 0; i < wait.pending_count; ++i) {
    const Peer& peer = peers_[wait.pending[i]];
    wait.beacon[peer.rank] = load_relaxed(peer.out->owner.beacon);
    wait.moved_ns[peer.rank] = wait.began_ns;
  }
  for (;;) {
    if (sweep<kElastic>(wait) == 0) return Status::kOk;
    const u64 now = now_ns();
    if constexpr (kElastic) {
      if (const Status status = look_around(wait); status != Status::kOk) return status;
    }
    const u64 waited = now - wait.began_ns;
    if (waited >= options_.hard_ns) return give_up<kElastic>(wait);
    if (waited < kYieldNs) {
      sched_yield();
      continue;
    }
    if constexpr (kElastic) {
      if (const Status status = judge(wait, now); status != Status::kOk) return status;
    }
    sleep<kElastic>(wait, waited < kImpatientNs ? kFirstSliceNs : kSliceNs);
  }
}

/// The hard deadline: whoever is missing is suspected, alive or not.
template <bool kElastic>
Status Group::give_up(Wait& wait) {
  if (sweep<kElastic>(wait) == 0) return Status::kOk;
  bump(counters_.missed_deadlines);
  for (u32 i = 0; i < wait.pending_count; ++i) suspect(peers_[wait.pending[i]].rank, Evidence::kSlow);
  return leave_suspecting(wait.layer);
}

/// The last look at a peer before it is held against it: what it published before it went is counted.
bool Group::still_missing(const Wait& wait, const Peer& peer) const {
  const Line& line = line_of(peer, wait.exchange);
  return load_acquire(line.tag) != wait.tag || load_relaxed(line.incarnation) != peer.incarnation;
}

/// The peer is in the same epoch but in another place of the step, so both would wait for ever: it began the next sync while this rank
/// is in a round, or the next round while this rank syncs.
bool Group::disagrees(const Wait& wait, const Peer& peer) const {
  if (wait.exchange == Exchange::kSync) return load_acquire(peer.in->dispatch.tag) == tag_of(epoch(), round_);
  return load_acquire(peer.in->sync[epoch() & 1][sync_ & 1].tag) == tag_of(epoch(), sync_);
}

/// What the agent, the peers' gossip and the missing peers' own words say; cheap enough for every turn of the loop.
Status Group::look_around(Wait& wait) {
  if (control_->fenced()) return leave(Status::kFenced);
  if (control_->abort_epoch() > epoch()) return leave(Status::kAborted);
  if (RankMask accused; heard_gossip(accused) && !looks_itself(wait, accused)) return leave_with(accused, wait.layer);
  bool dead = false;
  for (u32 i = 0; i < wait.pending_count; ++i) {
    const Peer& peer = peers_[wait.pending[i]];
    const OwnerLine& owner = peer.out->owner;
    if (peer.link->owner_died() || wait.ended.has(peer.rank)) {
      if (!still_missing(wait, peer)) continue;
      suspect(peer.rank, Evidence::kDead);
      dead = true;
    } else if (load_acquire(owner.epoch) > epoch()) {
      // It published everything of our epoch before it moved on, so what is missing now will never come. Whom it suspects it said
      // before that, too.
      if (!still_missing(wait, peer)) continue;
      if (RankMask accused; heard_gossip(accused)) return leave_with(accused, wait.layer);
      return leave(load_relaxed(owner.admitted) == options_.incarnation ? Status::kEpochSkew : Status::kFenced);
    } else if (disagrees(wait, peer) && still_missing(wait, peer)) {
      return leave(Status::kEpochSkew);
    }
  }
  return dead ? leave_suspecting(wait.layer) : Status::kOk;
}

/// Whether to look on instead of leaving with the accusers. One accuser's word, passed on by all, is no quorum, and a leader that
/// hears of no second witness waits for one. So a rank that waits for an accused peer too is a witness itself: the peer is dead, or its
/// beacon has stood still here for half the time-out as well, which is waited for. A peer that moves ends it: the accuser is alone.
bool Group::looks_itself(const Wait& wait, const RankMask& accused) {
  const u64 now = now_ns();
  bool looking = false;
  for (u32 i = 0; i < wait.pending_count; ++i) {
    const Peer& peer = peers_[wait.pending[i]];
    if (!accused.has(peer.rank) || !still_missing(wait, peer)) continue;
    const OwnerLine& owner = peer.out->owner;
    if (peer.link->owner_died() || wait.ended.has(peer.rank)) {
      suspect(peer.rank, Evidence::kDead);
    } else if (load_relaxed(owner.beacon) != wait.beacon[peer.rank] || warms_up(static_cast<Phase>(load_relaxed(owner.phase)))) {
      continue;
    } else if (now - wait.moved_ns[peer.rank] < options_.silence_ns / 2) {
      looking = true;
    } else {
      suspect(peer.rank, Evidence::kSilent);
    }
  }
  return looking;
}

/// Silence: a beacon that stood still for the whole time-out. A beacon that moves makes a peer slow, which is told but not held
/// against it; one that declares warm-up may be silent until the hard deadline.
Status Group::judge(Wait& wait, u64 now) {
  const u64 gap = now - wait.looked_ns;
  wait.looked_ns = now;
  const u64 absence = gap > kAbsenceNs ? gap : 0;
  wait.soft_began_ns += absence;
  bool silent = false;
  for (u32 i = 0; i < wait.pending_count; ++i) {
    const Peer& peer = peers_[wait.pending[i]];
    const OwnerLine& owner = peer.out->owner;
    const u64 beacon = load_relaxed(owner.beacon);
    u64& moved = wait.moved_ns[peer.rank];
    moved += absence;
    if (beacon != wait.beacon[peer.rank]) {
      wait.beacon[peer.rank] = beacon;
      moved = now;
    }
    if (now - wait.soft_began_ns < options_.silence_ns || warms_up(static_cast<Phase>(load_relaxed(owner.phase)))) continue;
    if (now - moved >= options_.silence_ns) {
      if (!still_missing(wait, peer)) continue;
      suspect(peer.rank, Evidence::kSilent);
      silent = true;
    } else if (!wait.slow.has(peer.rank) && load_relaxed(owner.epoch) == epoch()) {
      wait.slow.add(peer.rank);
      report_slow(peer.rank, wait.layer);
    }
  }
  return silent ? leave_suspecting(wait.layer) : Status::kOk;
}

/// Asleep until a peer rings, a missing peer's process ends, the agent writes, or the slice is over.
template <bool kElastic>
void Group::sleep(Wait& wait, u64 slice_ns) {
  pollfd polled[kMaxRanks + 1];
  u32 homes[kMaxRanks + 1];
  u32 count = 0;
  polled[count++] = {doorbell_.get(), POLLIN, 0};
  for (u32 i = 0; kElastic && i < wait.pending_count; ++i) {
    const int fd = peers_[wait.pending[i]].link->pidfd();
    if (fd < 0) continue;
    homes[count] = wait.pending[i];
    polled[count++] = {fd, POLLIN, 0};
  }
  set_asleep(true);
  if (sweep<kElastic>(wait) != 0) {
    const timespec slice{0, static_cast<long>(slice_ns)};
    bump(counters_.slept);
    ::ppoll(polled, count, &slice, nullptr);
  }
  set_asleep(false);
  if ((polled[0].revents & POLLIN) != 0) quiet_doorbell();
  for (u32 i = 1; i < count; ++i) {
    if (polled[i].revents != 0) wait.ended.add(peers_[homes[i]].rank);
  }
  if (const u64 now = now_ns(); now - wait.rang_ns > kRingAgainNs) {
    wait.rang_ns = now;  // a ring can be stolen: whoever was ever linked holds the doorbell's descriptor
    wake_sleepers();
  }
}

void Group::quiet_doorbell() const {
  u64 rings = 0;
  [[maybe_unused]] const auto got = ::read(doorbell_.get(), &rings, sizeof rings);
}

template Status Group::await<true>(Exchange, i32);
template Status Group::await<false>(Exchange, i32);

}  // namespace eep
