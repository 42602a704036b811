// What happens when a peer's contribution does not come: suspicion, gossip, the fault word.
#include "atomics.hpp"
#include "clock.hpp"
#include "group.hpp"

namespace eep {

void Group::suspect(u32 rank, Evidence evidence) {
  if (rank >= shape_.max_ranks || evidence_[rank] != Evidence::kNone) return;
  evidence_[rank] = evidence;
  {
    const std::lock_guard lock(mutex_);
    suspected_.add(rank);
  }
  switch (evidence) {
    case Evidence::kDead: bump(counters_.suspected_dead); break;
    case Evidence::kSilent: bump(counters_.suspected_silent); break;
    case Evidence::kSlow: bump(counters_.suspected_slow); break;
    case Evidence::kGossip: bump(counters_.suspected_gossip); break;
    case Evidence::kNone: break;
  }
}

/// Ends the epoch for this rank: nothing more runs until a newer one is activated.
Status Group::leave(Status status) {
  ended_ = status;
  return status;
}

Status Group::leave_suspecting(i32 layer) {
  gossip();
  FaultRecord record;
  record.epoch = epoch();
  record.step = control_->step();
  record.layer = layer;
  record.unix_ns = unix_ns();
  record.suspects = suspected_;
  record.evidence = evidence_;
  control_->publish_fault(record);
  return leave(Status::kSuspect);
}

/// Leaves on the word of peers: whom they accuse this rank suspects, too.
Status Group::leave_with(const RankMask& accused, i32 layer) {
  for (u32 rank = 0; rank < shape_.max_ranks; ++rank) {
    if (accused.has(rank)) suspect(rank, Evidence::kGossip);
  }
  return leave_suspecting(layer);
}

/// A fault seldom takes one rank alone, and no two processes of a host end at the same instant.
bool Group::look_again() {
  if (ended_ != Status::kSuspect) return false;
  bool more = false;
  for (const Peer& peer : peers_) {
    if (!peer.link || evidence_[peer.rank] != Evidence::kNone) continue;
    if (!peer.link->owner_died() && !peer.link->process_ended()) continue;
    suspect(peer.rank, Evidence::kDead);
    more = true;
  }
  if (more) leave_suspecting(-1);  // seen in no layer
  return more;
}

/// Told, not acted upon: the wait goes on to its hard deadline.
void Group::report_slow(u32 rank, i32 layer) {
  bump(counters_.missed_deadlines);
  FaultRecord record;
  record.epoch = epoch();
  record.step = control_->step();
  record.layer = layer;
  record.unix_ns = unix_ns();
  record.suspects.add(rank);
  record.evidence[rank] = Evidence::kSlow;
  control_->publish_fault(record);
}

/// Tells every active peer that is not itself suspected, so that all survivors leave the step within one hop.
void Group::gossip() const {
  for (const Peer& peer : peers_) {
    if (!peer.link || suspected_.has(peer.rank)) continue;
    Gossip& line = peer.out->gossip;
    for (u32 w = 0; w < kMaskWords; ++w) store_relaxed(line.mask[w], suspected_.words[w]);
    store_release(line.tag, tag_of(epoch(), 0));
  }
  wake_sleepers();
}

/// Adds whom peers accuse; whether any does.
bool Group::heard_gossip(RankMask& accused) const {
  bool heard = false;
  for (const Peer& peer : peers_) {
    if (!peer.link || load_acquire(peer.in->gossip.tag) != tag_of(epoch(), 0)) continue;
    heard = true;
    for (u32 w = 0; w < kMaskWords; ++w) accused.words[w] |= load_relaxed(peer.in->gossip.mask[w]);
  }
  return heard;
}

/// The other half of `wake_sleepers`: whoever publishes after this sees the mark, or this rank sees what was published.
void Group::set_asleep(bool asleep) const {
  for (const Peer& peer : peers_) {
    if (peer.link) store_relaxed(peer.in->owner.asleep, asleep ? 1U : 0U);
  }
  if (asleep) order_stores_before_loads();
}

void Group::wake_sleepers() const {
  order_stores_before_loads();
  for (const Peer& peer : peers_) {
    if (peer.link && !suspected_.has(peer.rank)) peer.link->wake();
  }
}

}  // namespace eep
