// One rank's end of the elastic dispatch. Two threads may use it: the stepping thread (sync, dispatch, combine, activate,
// sync_arrived) and a control thread (links, stage). What the stepping thread reads of links and tables is the snapshot that
// `activate` took, so nothing the control thread does reaches into a running epoch.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "control.hpp"
#include "heartbeat.hpp"
#include "inbox.hpp"
#include "kernels/kernels.hpp"
#include "link.hpp"
#include "protocol/tag.hpp"
#include "tables.hpp"

namespace eep {

struct GroupOptions {
  u32 rank = 0;
  u64 incarnation = 0;
  u64 silence_ns = 1'000'000'000;   // a peer whose beacon stands still for so long is suspected
  u64 hard_ns = 30'000'000'000;     // no wait is longer
  bool fixed = false;               // the fixed-membership build of the same code
  Number first_number = 0;          // of syncs and rounds in every epoch; tests start near the wrap-around
};

struct SyncRow {
  u32 rank = 0;
  u64 tokens = 0, flags = 0, prepared_epoch = 0, committed_epoch = 0, user = 0;
};

struct SyncOutcome {
  Status status = Status::kOk;
  RankMask suspects;
  std::vector<SyncRow> rows;
};

/// Token rows and their routing, as the caller's arrays lie. Strides in bytes.
struct TokenBatch {
  u32 tokens = 0, topk = 0;
  const u8* rows = nullptr;
  i64 row_stride = 0;
  const u8* ids = nullptr;
  i64 ids_stride = 0;
  bool ids_are_64 = false;
  const u8* weights = nullptr;
  i64 weights_stride = 0;

  i64 id(u32 token, u32 k) const {
    const u8* at = ids + token * ids_stride;
    return ids_are_64 ? reinterpret_cast<const i64*>(at)[k] : reinterpret_cast<const i32*>(at)[k];
  }
  float weight(u32 token, u32 k) const { return reinterpret_cast<const float*>(weights + token * weights_stride)[k]; }
};

struct DispatchOutcome {
  Status status = Status::kOk;
  RankMask suspects;
  u32 pairs = 0;
  u32 masked = 0;
};

struct CombineOutcome {
  Status status = Status::kOk;
  RankMask suspects;
  std::vector<u8> missing;
};

struct Counters {
  u64 syncs = 0, rounds = 0, bytes_sent = 0, bytes_received = 0;
  u64 suspected_dead = 0, suspected_silent = 0, suspected_slow = 0, suspected_gossip = 0;
  u64 missed_deadlines = 0, slept = 0, renewed_inboxes = 0;
  u64 masked = 0;
};

class Group {
 public:
  Group(const Shape& shape, const GroupOptions& options, std::shared_ptr<ControlBlock> control);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  const Shape& shape() const { return shape_; }
  const GroupOptions& options() const { return options_; }
  u32 epoch() const { return epoch_.load(std::memory_order_relaxed); }
  u64 round() const { return rounds_.load(std::memory_order_relaxed); }

  // links: control thread
  int inbox_fd(u32 source) const;
  int renew_inbox(u32 source);
  int doorbell_fd() const;
  void connect(u32 peer, u64 incarnation, int inbox_fd, int doorbell_fd, int pid);
  /// A group of this very process.
  void connect_local(u32 peer, u64 incarnation, Group& other);
  void disconnect(u32 peer);
  std::map<u32, u64> linked() const;

  // tables
  void stage(const TableData& table);
  /// 0: none.
  u32 staged_epoch() const;
  void activate(u32 epoch);

  // steps: stepping thread
  bool sync_arrived();
  /// After a step that a death broke: whether more of the epoch's ranks have died since. The fault word then names them all.
  bool look_again();
  void ring();
  SyncOutcome sync(const SyncRow& row);
  DispatchOutcome dispatch(u32 layer, const TokenBatch& batch);
  CombineOutcome combine(const u8* y, i64 y_stride, u32 pairs, u8* out, i64 out_stride, u32 tokens, bool weighted);
  void close();

  // what a dispatch left: valid until its round's combine
  const u8* rows() const { return arrived_rows_.get(); }
  const i32* slots() const { return slots_.data(); }
  const float* weights() const { return weights_.data(); }

  /// float [layers, experts].
  void read_tokens_per_expert(float* to) const;
  Counters counters() const;

 private:
  enum class Exchange : u32 { kSync, kDispatch, kCombine };

  /// An active rank as the running epoch sees it; `link` is empty for this rank itself.
  struct Peer {
    u32 rank = 0;
    u64 incarnation = 0;
    std::shared_ptr<Link> link;
    Control* in = nullptr;    // it writes, in our inbox
    u8* in_chunk = nullptr;
    Control* out = nullptr;   // we write, in its inbox
    u8* out_chunk = nullptr;
    u32 rows_out = 0, pairs_out = 0;  // of the round in flight
    u32 rows_in = 0, pairs_in = 0;
    bool arrived = false;
  };

  /// A row that carries some of a token's pairs to one rank, and brings their sum back.
  struct Contribution {
    u16 home;  // index into `peers_`
    u16 row;
    u16 pairs;
  };

  struct Wait;

  // group.cpp
  std::vector<Peer> members_of(const TableData& table) const;
  void check_fixed(const TableData& table) const;

  // sync.cpp
  void require_epoch() const;
  Status early_status();
  void publish(Line& line, u64 tag, u32 rows, u32 pairs, i32 layer) const;
  void announce_row(const SyncRow& row) const;
  void read_rows(const SyncRow& own, std::vector<SyncRow>& rows) const;

  // wait.cpp
  template <bool kElastic>
  Status await(Exchange exchange, i32 layer);
  template <bool kElastic>
  Status await_slowly(Wait& wait);
  template <bool kElastic>
  u32 sweep(Wait& wait);
  template <bool kElastic>
  Status give_up(Wait& wait);
  template <bool kElastic>
  void sleep(Wait& wait, u64 slice_ns);
  Status look_around(Wait& wait);
  Status judge(Wait& wait, u64 now);
  bool still_missing(const Wait& wait, const Peer& peer) const;
  bool disagrees(const Wait& wait, const Peer& peer) const;
  bool looks_itself(const Wait& wait, const RankMask& accused);
  const Line& line_of(const Peer& peer, Exchange exchange) const;
  void quiet_doorbell() const;

  // suspicion.cpp
  void suspect(u32 rank, Evidence evidence);
  Status leave(Status status);
  Status leave_suspecting(i32 layer);
  Status leave_with(const RankMask& accused, i32 layer);
  void report_slow(u32 rank, i32 layer);
  void gossip() const;
  bool heard_gossip(RankMask& accused) const;
  void set_asleep(bool asleep) const;
  void wake_sleepers() const;

  // dispatch.cpp
  template <bool kElastic>
  Status dispatch_as(u32 layer, const TokenBatch& batch);
  template <bool kElastic>
  void route(u32 layer, const TokenBatch& batch);
  template <bool kElastic>
  bool place(const LayerView& table, u32 token, u32 k, u32 expert, u32& home, u16& slot) const;
  void add_pair(const TokenBatch& batch, u32 token, u32 home, Pair pair);
  void carry(const TokenBatch& batch, u32 token, u32 home);
  void announce_rows(i32 layer);
  void make_room(u32 pairs);
  void expand_own(const TokenBatch& batch);
  bool accept(Peer& peer);
  Status receive_rows(i32 layer);
  void copy_row(u8* to, const u8* from) const;

  // combine.cpp
  void send_partials(const u8* y, i64 y_stride, bool weighted);
  void partials_of(u32 first, u32 end, const u8* y, i64 y_stride, bool weighted, u8* to) const;
  void add_up(u8* out, i64 out_stride);
  std::vector<u8> count_missing(u32 tokens) const;
  void sum_rows(u8* out, const u8* const* rows, const float* weights, u32 n) const;

  Shape shape_;
  GroupOptions options_;
  std::shared_ptr<ControlBlock> control_;
  const Kernels& kernels_;
  Inbox inbox_;
  Descriptor doorbell_;
  std::unique_ptr<Heartbeat> heartbeat_;
  u32 processors_;

  mutable std::mutex mutex_;  // links_, tables_' idle side, active_, suspected_
  TablePair tables_;
  std::map<u32, std::shared_ptr<Link>> links_;
  RankMask active_;      // of the running epoch
  RankMask suspected_;   // in it
  std::atomic<u64> renewed_{0};

  // the stepping thread's
  std::atomic<bool> stepping_{false};
  std::atomic<u32> epoch_{0};
  const TableData* table_ = nullptr;
  std::vector<Peer> peers_;          // in rank order
  std::array<u8, kMaxRanks> home_of_{};  // rank → index into peers_
  u32 self_ = 0;                     // ours
  Number sync_ = 0, round_ = 0;
  std::atomic<u64> rounds_{0};  // of the epoch
  Status ended_ = Status::kOk;       // why nothing more runs in this epoch
  std::array<Evidence, kMaxRanks> evidence_{};
  bool in_round_ = false;
  u32 fixed_per_rank_ = 1;

  // the round in flight
  u32 layer_ = 0;
  u32 tokens_ = 0;
  u32 masked_ = 0;
  u32 pair_count_ = 0;
  std::vector<Contribution> contributions_;  // token by token, in rank order within a token
  std::vector<u32> first_contribution_;      // [tokens + 1]
  std::vector<u8> lost_;                     // [tokens]: pairs without a live replica
  std::vector<Pair> own_pairs_;
  std::array<u32, kMaxRanks> carried_{};     // per home: the last token carried there, + 1
  std::array<u32, kMaxRanks> carrier_{};     // per home: that token's entry in `contributions_`
  std::vector<i32> slots_;                   // [pairs]
  std::vector<float> weights_;               // [pairs]
  std::vector<u16> row_of_;                  // [pairs]
  Mapping arrived_rows_;                     // [pairs, hidden], dense

  std::vector<float> expert_tokens_;
  std::vector<u32> layer_rounds_;
  Counters counters_;
};

}  // namespace eep
