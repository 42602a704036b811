// One rank on a device: its memory, its tables, its links, and the launches that use them.
#pragma once

#include <map>

#include "../cpu/tables.hpp"
#include "kernels.hpp"
#include "memory.hpp"

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
};

struct Fault {
  u64 serial, epoch, round, device_ns;
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
  void connect(u32 peer, int descriptor);
  void disconnect(u32 peer);
  u64 chunk_address(u32 source) const { return reinterpret_cast<u64>(inbox_.base() + inbox_.stride() * source); }
  u64 peer_address(u32 peer) const { return links_.count(peer) != 0 ? reinterpret_cast<u64>(links_.at(peer)->base()) : 0; }
  u64 chunk_bytes() const { return inbox_.stride(); }

  // tables
  /// Copies into the idle one of the two device tables.
  void stage(const TableData& table);
  u32 staged_epoch() const;
  /// From the sync number `at_step` of this rank on (counted over all epochs); 0: the next. Takes no driver call.
  void activate(u32 epoch, u64 at_step);
  u64 running_epoch() const;

  // words that a running graph reads
  void set_limits(u64 silence_ns, u64 hard_ns, u64 min_polls);
  void set_row(const SyncRow& row);
  void set_flip(bool flip);
  void call_off(u64 epoch);
  void fence();
  void mark_dead(u32 rank);
  void clear_dead(u32 rank);
  std::vector<Fault> faults(u64 after) const;
  u32 status() const;
  std::vector<u32> suspects() const;
  u64 syncs_done() const;
  SyncOutcome wait_sync(u64 after, double timeout_s) const;
  SyncRow row_of(u32 rank) const;
  u64 probe_ns() const;

  // launches
  void launch_sync(cudaStream_t stream);
  void launch_dispatch(const Dispatch& d, u32 phases, cudaStream_t stream);
  void launch_combine(const Combine& c, u32 phases, cudaStream_t stream);
  void launch_probe(cudaStream_t stream);
  void set_grid(Grid grid) { options_.grid = grid; }
  /// What the device counted; synchronises with the device.
  Context context() const;
  const RankOptions& options() const { return options_; }
  u32 slot_capacity() const { return params_.slot_capacity; }

 private:
  void patch_peer(u32 peer, u8* address);
  u32 idle_table() const;
  void check_batch(const Batch& batch) const;

  RankOptions options_;
  Inbox inbox_;
  cudaStream_t control_ = nullptr;  // host-side changes go here, beside whatever the engine's streams do
  u32 replica_stride_;
  HostShared<HostPage> page_;
  DeviceArray<Context> context_;
  DeviceArray<Limits> limits_;
  DeviceArray<TableHeader> tables_;
  DeviceArray<u32> offsets_, routes_;
  DeviceArray<Replica> replicas_;
  DeviceArray<u8*> peers_;
  DeviceArray<i32> pair_rows_;
  std::map<u32, std::unique_ptr<ImportedChunk>> links_;
  u32 staged_[2] = {0, 0};
  bool between_ = true;  // no dispatch waits for its combine
  Params params_{};
};

}  // namespace eep::gpu
