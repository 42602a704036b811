// The step sync: rows of every active rank, a full barrier, and the one place where a rank crosses into another epoch.
#pragma once

#include "combine.hpp"

namespace eep::gpu {

/// Crosses into the newest table whose step has come. Numbers start again at 0, and what the old epoch left (suspects, poison) is gone.
EEP_DEVICE void choose_table(const Params& p, Context& c) {
  for (u32 i = 0; i < 2; ++i) {
    const u64 step = load_acquire_system(&p.page->activate_step[i]);
    if (step == kNeverStep || step > c.forwards) continue;
    const u32 epoch = load_relaxed(&p.tables[i].epoch);  // past this multiprocessor's cache: it may be older than the step that was just read
    if (epoch <= c.epoch) continue;
    c.epoch = epoch;
    store_relaxed(&c.table, i);  // a heartbeat may look meanwhile
    c.round = 0;
    c.sync = 0;
    store_relaxed(&c.poison, 0);
    // Blocks of one launch may disagree on whether the epoch was poisoned already: those that did not take part left a ticket short.
    store_relaxed(&c.dispatch_ticket, 0);
    store_relaxed(&c.combine_ticket, 0);
#pragma unroll
    for (u32 w = 0; w < kMaskWords; ++w) {
      store_relaxed(&c.suspects[w], 0);
      store_relaxed(&c.arrived[w], 0);
    }
  }
  if (load_relaxed(&p.tables[c.table].member) == 0) or_relaxed(&c.poison, kPoisonFenced);
  if (load_relaxed_system(&p.page->fenced) != 0) or_relaxed(&c.poison, kPoisonFenced);
  if (load_acquire_system(&p.page->abort_epoch) > c.epoch) or_relaxed(&c.poison, kPoisonAborted);
  store_relaxed_system(&p.page->running_epoch, c.epoch);
  store_relaxed_system(&p.page->running_table, c.table);
  store_relaxed_system(&p.page->running_sync, c.sync);
}

/// A peer that goes on without us may overwrite the line while we read it (an abort that skips an epoch): the tag is taken away first
/// and looked at again after reading, so a row is whole or does not count.
EEP_DEVICE void write_row(Line& line, const SyncRow& row, u64 tag, u64 incarnation) {
  store_relaxed_system(&line.tag, 0);
  fence_system();
  store_relaxed_system(&line.incarnation, incarnation);
  store_relaxed_system(&line.row[0], row.tokens);
  store_relaxed_system(&line.row[1], row.flags);
  store_relaxed_system(&line.row[2], row.prepared);
  store_relaxed_system(&line.row[3], row.committed);
  store_relaxed_system(&line.row[4], row.user);
  store_release_system(&line.tag, tag);
}
EEP_DEVICE bool read_row(const Line& line, SyncRow& row, u64 tag) {
  row.tokens = load_acquire_system(&line.row[0]);
  row.flags = load_acquire_system(&line.row[1]);
  row.prepared = load_acquire_system(&line.row[2]);
  row.committed = load_acquire_system(&line.row[3]);
  row.user = load_acquire_system(&line.row[4]);
  return load_relaxed_system(&line.tag) == tag;
}

/// Whether everybody has prepared the epoch after `v.epoch`, somebody knows that it is committed, and we hold its table. All ranks see
/// the same rows, so all decide alike.
EEP_DEVICE bool may_flip(const Params& p, const View& v) {
  if (load_relaxed_system(&p.page->flip_when_prepared) == 0) return false;
  bool committed = false;
  for (u32 rank = 0; rank < p.geometry.max_ranks; ++rank) {
    if (!in_mask(v.active, rank)) continue;
    if (p.page->rows[rank].prepared <= v.epoch) return false;
    committed = committed || p.page->rows[rank].committed > v.epoch;
  }
  const TableHeader& next = p.tables[1 - v.table];
  // Not from this multiprocessor's cache: the view read this line before the wait, and the table may have been staged since. All ranks must
  // decide alike.
  return committed && load_relaxed(&next.epoch) == v.epoch + 1 && load_relaxed(&next.linked) != 0;
}

/// Exchanges rows once under the epoch of `v`.
EEP_DEVICE void exchange_rows(const Thread& self, const Params& p, const View& v, u64* came) {
  const u64 tag = tag_of(v.epoch, v.sync);
  SyncRow mine;
  mine.tokens = load_relaxed_system(&p.page->mine.tokens);
  mine.flags = load_relaxed_system(&p.page->mine.flags);
  mine.prepared = load_relaxed_system(&p.page->mine.prepared);
  mine.committed = load_relaxed_system(&p.page->mine.committed);
  mine.user = load_relaxed_system(&p.page->mine.user);
  for (u32 rank = self.thread(); rank < p.geometry.max_ranks; rank += self.threads()) {
    if (!v.live(rank)) continue;
    write_row(control_of(peers_of(p, v.table)[rank])->sync[v.epoch & 1U][v.sync & 1U], mine, tag, p.incarnation);
  }
  self.barrier();  // everybody is written to before anybody is waited for
  for (u32 rank = self.thread(); rank < p.geometry.max_ranks; rank += self.threads()) {
    if (!v.live(rank)) continue;
    const Line& line = control_of(inbox_chunk(p, rank))->sync[v.epoch & 1U][v.sync & 1U];
    SyncRow row;
    if (!wait_for<true>(p, v, rank, &line, tag, -1)) continue;
    if (!read_row(line, row, tag)) {
      or_relaxed(&p.context->poison, kPoisonSkew);
      continue;
    }
    p.page->rows[rank] = row;
    or_relaxed(&came[rank / 64], bit_of(rank));
  }
}

/// One step sync, in one block. Crosses into the next epoch and syncs again under it when the rows say so.
EEP_DEVICE void step_sync(const Thread& self, const Params& p) {
  Head& shared = head_of(self);
  Context& c = *p.context;
  for (u32 attempt = 0; attempt < 2; ++attempt) {
    if (self.thread() == 0) {
      choose_table(p, c);
      shared.came[0] = shared.came[1] = 0;
    }
    begin_view<true>(self, p);
    self.barrier();
    const View v = shared.view;
    if (v.poison == 0) exchange_rows(self, p, v, shared.came);
    self.barrier();
    if (self.thread() == 0) {
      const u32 poison = load_relaxed(&c.poison);
      c.sync = v.sync + 1;
      const bool flip = poison == 0 && attempt == 0 && may_flip(p, v);
      if (flip) store_release_system(&p.page->activate_step[1 - v.table], c.forwards);
      shared.flag = flip ? 1 : 0;
      if (!flip) {
        c.forwards += 1;
        c.step += poison == 0 ? 1 : 0;
        store_relaxed_system(&p.page->running_sync, c.sync);
#pragma unroll
        for (u32 w = 0; w < kMaskWords; ++w) {
          store_relaxed_system(&p.page->rows_present[w], shared.came[w]);
          store_relaxed_system(&p.page->suspects[w], load_relaxed(&c.suspects[w]));
        }
        store_relaxed_system(&p.page->op_status, static_cast<u64>(status_of(poison)));
        store_relaxed_system(&p.page->sync_status, static_cast<u64>(status_of(poison)));
        store_release_system(&p.page->sync_serial, c.forwards);
      }
    }
    self.barrier();
    if (shared.flag == 0) return;
  }
}

/// Crosses between steps, so that the host knows at once where it stands; a sync does the same for a table that is activated by word.
EEP_DEVICE void cross(const Thread& self, const Params& p) {
  if (self.block() != 0 || self.thread() != 0) return;
  choose_table(p, *p.context);
  fence_system();
}

/// The host's heartbeat: between two kernels that wait, long computations and compilations included, a live rank's beacon moves.
EEP_DEVICE void beat(const Thread& self, const Params& p) {
  if (self.block() != 0 || self.thread() != 0) return;
  const Context& c = *p.context;
  View v{};
  v.table = load_relaxed(&c.table);
#pragma unroll
  for (u32 w = 0; w < kMaskWords; ++w) {
    v.active[w] = p.tables[v.table].active[w];
    v.suspects[w] = load_relaxed(&c.suspects[w]);
  }
  if ((load_relaxed(&c.poison) & kPoisonFenced) == 0) show_life(p, v, now_ns());
}

/// G2 of the design: reports a fault and goes on spinning until the host, having seen it, calls the step off. Returns through the page how
/// long that took, or all ones when the hard deadline passed first.
EEP_DEVICE void fault_probe(const Thread& self, const Params& p) {
  if (self.block() != 0 || self.thread() != 0) return;
  const View v = read_view<true>(p);
  const u64 start = now_ns(), hard = load_relaxed_system(&p.limits->hard_ns);
  report(p, v, -1, p.rank, Evidence::kGossip);
  u64 now = start;
  while (load_acquire_system(&p.page->abort_epoch) <= v.epoch) {
    now = now_ns();
    if (now - start >= hard) {
      store_release_system(&p.page->probe, ~0ULL);
      return;
    }
  }
  store_release_system(&p.page->probe, now_ns() - start);
}

}  // namespace eep::gpu
