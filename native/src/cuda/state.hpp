// What kernels and host share: the step context and tables in device memory, and the page in host memory that both read and write.
#pragma once

#include "geometry.hpp"

namespace eep::gpu {

/// How an operation ended; the numbers are those of the Python `Status`.
enum class Status : u32 { kOk = 0, kSuspect = 1, kAborted = 2, kEpochSkew = 3, kFenced = 4 };
/// Why a rank is suspected; the numbers are those of the Python `Evidence`.
enum class Evidence : u32 { kNone = 0, kDead = 1, kSilent = 2, kSlow = 3, kGossip = 4 };

/// Why the rest of a captured graph drains: sticky for an epoch, cleared only by entering a newer one.
enum Poison : u32 { kPoisonSuspect = 1, kPoisonAborted = 2, kPoisonSkew = 4, kPoisonFenced = 8 };

/// Waits, changed by the host while graphs that use them exist.
struct Limits {
  u64 silence_ns;      // a peer whose beacon stands still for so long is suspected
  u64 hard_ns;         // no wait is longer
  u64 min_polls;       // a waiter that was itself switched out must look so often before it accuses anybody
};

/// The header of one of two tables; replicas of all layers follow in memory of their own.
struct TableHeader {
  u32 epoch;
  u32 member;  // whether this rank is active in it
  u32 linked;  // whether every member was connected when it was staged: a sync may cross into it by itself
  u32 reserved;
  u64 active[kMaskWords];
  u64 incarnations[kMaxRanks];
};

/// Device memory that only kernels of this rank write, one kernel at a time: it changes at the end of a kernel or in a kernel of one
/// block, so every block of a launch sees the same values.
struct alignas(kLineBytes) Context {
  // the snapshot that every kernel reads first: one line
  u32 epoch;
  u32 table;  // which of the two tables the epoch uses
  u32 round;
  u32 sync;
  u32 poison;
  u32 fault_count;
  u64 suspects[kMaskWords];
  u64 arrived[kMaskWords];  // sources whose dispatch of this round came
  u64 step;
  u64 forwards;  // syncs ever, over all epochs: table activation is by this count
  // countdowns of blocks
  alignas(kLineBytes) u32 dispatch_ticket;
  u32 combine_ticket;
  u32 finish_ticket;
  // what a run did, for introspection
  alignas(kLineBytes) u64 rounds_ok;
  u64 rounds_lost;
  u64 masked;  // (token, k) pairs of this rank whose expert had no live replica
};

/// One entry of the fault ring: `serial` is written last, with release.
struct alignas(64) FaultEntry {
  u64 serial;
  u32 epoch;
  u32 round;
  i32 layer;  // -1: the step sync
  u32 suspect;
  u32 evidence;
  u32 reserved;
  u64 step;  // syncs begun, over all epochs
  u64 device_ns;
};
constexpr u32 kFaultRing = 256;

/// A peer's row of a sync.
struct SyncRow {
  u64 tokens, flags, prepared, committed, user;
};

/// Pinned host memory that the device maps. The host side writes the first group at any time, also while a graph spins: that is how
/// an epoch, an abort or a death reaches a captured graph without a driver call.
struct HostPage {
  // host → device
  alignas(kLineBytes) u64 abort_epoch;  // steps under lower epochs are called off
  u64 fenced;                           // nothing is written to anyone any more
  u64 dead[2][kMaskWords];              // by table: ranks whose process, of the incarnation that the table counts on, is gone
  u64 staged_epoch[2];                  // what each of the two tables holds
  u64 activate_step[2];                 // first step that may use it; all ones: not yet
  alignas(kLineBytes) SyncRow mine;
  u64 flip_when_prepared;  // a sync that sees everybody prepared and a commit crosses into the staged epoch by itself
  // device → host
  alignas(kLineBytes) u64 sync_serial;
  u64 sync_status;
  u64 running_epoch;
  u64 running_table;
  u64 running_sync;  // number of the next sync within the running epoch
  u64 suspects[kMaskWords];
  u64 op_status;
  u64 rows_present[kMaskWords];
  u64 probe;
  alignas(kLineBytes) SyncRow rows[kMaxRanks];
  FaultEntry faults[kFaultRing];
};
constexpr u64 kNeverStep = ~0ULL;

/// Rounds of a layer after which its load statistics are halved, as on the CPU.
constexpr u32 kHalfLife = 1024;

/// Pointers and sizes of one rank: a kernel argument by value, captured once. Everything that changes lies behind the pointers.
struct Params {
  Geometry geometry;
  u32 rank;
  u32 fixed_ranks;  // only the fixed-membership build: experts are divided among so many ranks
  u64 incarnation;
  u64 chunk_stride;  // from one source's chunk to the next in this rank's inbox
  u32 replica_stride;  // replicas per layer in `replicas`
  u32 slot_capacity;   // rows of one slot in the expert-major layout
  Context* context;
  HostPage* page;
  const Limits* limits;
  const TableHeader* tables;  // [2]
  const u32* offsets;         // [2][layers][experts + 1]
  const Replica* replicas;    // [2][layers][replica_stride]
  u8* const* peers;           // [2][max_ranks]: this rank's chunk at each peer. A table keeps the links it was activated with, so that
                              // a new incarnation's link changes nothing under a step that runs
  u8* inbox;                  // [max_ranks] chunks
  u32* routes;                // [max_tokens][max_topk]: where each pair of this rank went
  i32* pair_rows;             // [max_ranks][max_tokens][max_topk]: where each pair that came was put, or -1
  float* loads;               // [layers][experts]: pairs this rank has routed, halved every kHalfLife rounds of a layer
  u32* layer_rounds;          // [layers]
  float* waits;               // [max_ranks]: decayed mean of the waits that were longer than a first look, µs
};

/// Selects the word instead of indexing it: a mask in registers stays in registers.
EEP_BOTH bool in_mask(const u64* mask, u32 rank) { return (((rank < 64 ? mask[0] : mask[1]) >> (rank % 64)) & 1U) != 0; }
static_assert(kMaskWords == 2);
EEP_BOTH u64 bit_of(u32 rank) { return 1ULL << (rank % 64); }

EEP_BOTH Control* control_of(u8* chunk) { return reinterpret_cast<Control*>(chunk); }
/// This rank's chunks at its peers, as the table in use counts on them.
EEP_BOTH u8* const* peers_of(const Params& p, u32 table) { return p.peers + table * p.geometry.max_ranks; }
EEP_BOTH u8* inbox_chunk(const Params& p, u32 source) { return p.inbox + p.chunk_stride * source; }

}  // namespace eep::gpu
