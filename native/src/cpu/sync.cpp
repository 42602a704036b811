// The step sync: rows exchanged with every active rank, a full barrier; and how an idle rank learns that one has begun.
#include <algorithm>
#include <string>

#include "atomics.hpp"
#include "group.hpp"
#include "guard.hpp"

namespace eep {

void Group::require_epoch() const {
  if (table_ == nullptr) throw std::runtime_error("no epoch is active: stage a table and activate it first");
}

/// Whether the epoch has ended for this rank, or the agent ends it now.
Status Group::early_status() {
  if (ended_ != Status::kOk) return ended_;
  if (control_->fenced()) return leave(Status::kFenced);
  if (control_->abort_epoch() > epoch()) return leave(Status::kAborted);
  return Status::kOk;
}

/// The payload comes before this in program order.
void Group::publish(Line& line, u64 tag, u32 rows, u32 pairs, i32 layer) const {
  store_relaxed(line.incarnation, options_.incarnation);
  store_relaxed(line.rows, rows);
  store_relaxed(line.pairs, pairs);
  store_relaxed(line.layer, layer);
  store_release(line.tag, tag);
}

bool Group::sync_arrived() {
  const StepGuard guard(stepping_);
  if (table_ == nullptr) return false;
  quiet_doorbell();
  set_asleep(true);
  const u64 tag = tag_of(epoch(), sync_);
  const bool arrived = std::any_of(peers_.begin(), peers_.end(), [&](const Peer& peer) {
    return peer.link && (load_acquire(peer.in->sync[epoch() & 1][sync_ & 1].tag) == tag ||
                         load_acquire(peer.out->owner.epoch) > epoch() || load_acquire(peer.in->gossip.tag) == tag_of(epoch(), 0));
  });
  if (arrived) set_asleep(false);
  return arrived;
}

void Group::ring() {
  const StepGuard guard(stepping_);
  for (const Peer& peer : peers_) {
    if (peer.link) peer.link->ring();
  }
}

SyncOutcome Group::sync(const SyncRow& row) {
  const StepGuard guard(stepping_);
  require_epoch();
  SyncOutcome outcome;
  outcome.status = early_status();
  if (outcome.status == Status::kOk) {
    if (in_round_) throw std::runtime_error("sync between a dispatch and its combine: end the round first");
    set_asleep(false);
    announce_row(row);
    outcome.status = options_.fixed ? await<false>(Exchange::kSync, -1) : await<true>(Exchange::kSync, -1);
    read_rows(row, outcome.rows);
  }
  outcome.suspects = suspected_;
  if (outcome.status == Status::kOk) {
    ++sync_;
    bump(counters_.syncs);
  }
  return outcome;
}

void Group::announce_row(const SyncRow& row) const {
  const u64 values[] = {row.tokens, row.flags, row.prepared_epoch, row.committed_epoch, row.user};
  for (const Peer& peer : peers_) {
    if (!peer.link) continue;
    Line& line = peer.out->sync[epoch() & 1][sync_ & 1];
    for (u32 i = 0; i < std::size(values); ++i) store_relaxed(line.row[i], values[i]);
    publish(line, tag_of(epoch(), sync_), 0, 0, -1);
  }
  wake_sleepers();
}

void Group::read_rows(const SyncRow& own, std::vector<SyncRow>& rows) const {
  for (const Peer& peer : peers_) {
    if (!peer.arrived) continue;
    SyncRow row = own;
    row.rank = peer.rank;
    if (peer.link) {
      const u64* values = peer.in->sync[epoch() & 1][sync_ & 1].row;
      row.tokens = load_relaxed(values[0]);
      row.flags = load_relaxed(values[1]);
      row.prepared_epoch = load_relaxed(values[2]);
      row.committed_epoch = load_relaxed(values[3]);
      row.user = load_relaxed(values[4]);
    }
    rows.push_back(row);
  }
}

}  // namespace eep
