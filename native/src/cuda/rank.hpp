// One rank on a device: its memory, its tables, its links, and the launches that use them.
#pragma once

#include "../cpu/control.hpp"
#include "heartbeat.hpp"
#include "kernels.hpp"
#include "pack.hpp"

namespace eep::gpu {

/// What a rank is created with; nothing of it changes later.
struct RankOptions {
  int device = 0;
  u32 rank = 0;
  u64 incarnation = 0;
  Geometry geometry;
  Grid grid{16, 512};
  bool fixed = false;    // the fixed-membership build, for comparison
  u32 fixed_ranks = 0;
  /// The page shared with the agent; without one nobody watches over this rank: its beacon moves only while its kernels wait.
  std::shared_ptr<ControlBlock> control;
  int doorbell = -1;  // rung when the agent has written; stays the caller's
};

struct Fault {
  u64 serial, epoch, round, step, device_ns;
  i32 layer;
  u32 suspect, evidence;
};

struct SyncOutcome {
  bool finished;  // false: the kernel has not ended within the time
  u32 status;
  std::vector<u32> present, suspects;
};

class DeviceRank {
 public:
  explicit DeviceRank(const RankOptions& options);
  ~DeviceRank();
  DeviceRank(const DeviceRank&) = delete;
  DeviceRank& operator=(const DeviceRank&) = delete;

  // links
  int inbox_descriptor(u32 source) const { return inbox_.descriptor(source); }
  int renew_inbox(u32 source);
  /// `pid` 0: a virtual rank of this process. A running epoch keeps the link it began with.
  void connect(u32 peer, u64 incarnation, int descriptor, int pid);
  void disconnect(u32 peer) { links_.disconnect(peer); }
  std::map<u32, u64> linked() const { return links_.linked(); }
  u64 chunk_address(u32 source) const { return reinterpret_cast<u64>(inbox_.base() + inbox_.stride() * source); }
  u64 peer_address(u32 peer) const { return peer == options_.rank ? chunk_address(peer) : links_.address_of(peer); }
  u64 chunk_bytes() const { return inbox_.stride(); }

  // tables
  /// Copies into the idle one of the two device tables.
  void stage(const TableData& table);
  u32 staged_epoch() const;
  /// Crosses into the staged table now: between steps. Throws std::runtime_error unless it is staged and every member is connected.
  void activate(u32 epoch);
  /// Crosses at this rank's sync `at_step` (counted over all epochs; 0: the next one) by a plain store, without a driver call, also while
  /// a graph runs. Stage nothing else until it has crossed.
  void activate_at(u32 epoch, u64 at_step);
  u64 running_epoch() const;

  // words that a running graph reads
  void set_limits(u64 silence_ns, u64 hard_ns, u64 min_polls);
  void set_row(const SyncRow& row);
  void set_flip(bool flip);
  void call_off(u64 epoch);
  void fence();
  void mark_dead(u32 rank);
  std::vector<Fault> faults(u64 after) const;
  u32 status() const;
  std::vector<u32> suspects() const;
  u64 syncs_done() const;
  /// Number of the next sync within the running epoch.
  u64 next_sync() const;
  SyncOutcome wait_sync(u64 after, double timeout_s) const;
  SyncRow row_of(u32 rank) const;
  u64 probe_ns() const;
  /// Hands new faults to the control block at once; the heartbeat does it every few milliseconds.
  void publish_faults();

  // launches
  void launch_sync(cudaStream_t stream);
  void launch_dispatch(const Dispatch& d, u32 phases, cudaStream_t stream);
  void launch_combine(const Combine& c, u32 phases, cudaStream_t stream);
  void launch_probe(cudaStream_t stream);
  void set_grid(Grid grid) { options_.grid = grid; }
  /// What the device counted; synchronises with the device.
  Context context() const;
  /// [layers][experts].
  std::vector<float> loads() const;
  const RankOptions& options() const { return options_; }
  u32 slot_capacity() const { return params_.slot_capacity; }

 private:
  /// A thread starts on device 0; streams and copies are of this rank's.
  void use_device() const { check(cudaSetDevice(options_.device), "choose the device"); }
  u32 idle_table() const;
  void write_links(u32 index, const TableData& table);
  void check_staged(u32 index, u32 epoch) const;
  void write_dead(u32 index);
  void heed_agent();
  void beat();
  void publish_waits();
  void check_batch(const Batch& batch) const;
  template <class T>
  std::vector<T> copy_out(const DeviceArray<T>& from) const;

  RankOptions options_;
  Inbox inbox_;
  cudaStream_t control_ = nullptr;  // host-side changes go here, beside whatever the engine's streams do
  u32 replica_stride_;
  Links links_;
  HostShared<HostPage> page_;
  DeviceArray<Context> context_;
  DeviceArray<Limits> limits_;
  DeviceArray<TableHeader> tables_;
  DeviceArray<u32> offsets_, routes_;
  DeviceArray<Replica> replicas_;
  DeviceArray<u8*> peers_;
  DeviceArray<i32> pair_rows_;
  DeviceArray<float> loads_;
  DeviceArray<u32> layer_rounds_;
  DeviceArray<float> waits_;
  mutable std::mutex tables_mutex_;  // a preparing thread stages, the stepping one activates, the heartbeat looks
  TableData staged_[2];
  std::mutex faults_mutex_;
  u64 published_ = 0;
  u32 agent_serial_ = 0, beats_ = 0;
  std::atomic<bool> entered_{false};  // an epoch: before that nobody expects a sign of life, and a capture may be under way
  bool between_ = true;  // no dispatch waits for its combine
  Params params_{};
  std::unique_ptr<Heartbeat> heartbeat_;  // last: it uses everything above
};

}  // namespace eep::gpu
