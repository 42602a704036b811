// The links of one rank: its chunks at its peers. A table keeps the links it was activated with until another takes its buffer, so nothing
// that a running step may still write to is unmapped under it.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "../cpu/handles.hpp"
#include "../cpu/tables.hpp"
#include "memory.hpp"

namespace eep::gpu {

/// What a rank writes into a peer's doorbell, a pipe: it stays readable until it is read, and says which step began.
struct Ring {
  u32 source;  // kMaxRanks: nobody, only a reason to wake
  u32 epoch;
  u64 sync;
};
static_assert(sizeof(Ring) == 16);

/// One peer process, and our chunk in its inbox.
struct Link {
  Link(u32 peer_, u64 incarnation_, int device, int descriptor, u64 bytes, int pid);
  const u32 peer;
  const u64 incarnation;
  SharedMemory chunk;
  Descriptor pidfd;  // none for a virtual rank of this process
  std::atomic<bool> dead{false};
};

/// Thread-safe.
class Links {
 public:
  using LinkPointer = std::shared_ptr<Link>;

  Links(u32 rank, u32 max_ranks) : rank_(rank), max_ranks_(max_ranks) {}

  void connect(LinkPointer link);
  void disconnect(u32 peer);
  std::map<u32, u64> linked() const;
  /// Where our chunk at a peer is mapped; 0: not connected.
  u64 address_of(u32 peer) const;
  /// The first member of a table that is not connected in the incarnation that it names; `max_ranks` if all are.
  u32 unlinked(const TableData& table) const;

  /// Makes the links of a table's members those of table buffer `index`; what the buffer held before is unmapped unless it is still
  /// connected. The addresses, by rank: `own` for this rank, null for who is not connected.
  std::vector<u8*> hold(u32 index, const TableData& table, u8* own);
  /// The dead among the links that table buffer `index` holds.
  std::array<u64, kMaskWords> dead_in(u32 index) const;
  /// Proof that the process behind the present link is gone.
  void mark_dead(u32 peer);
  bool is_dead(u32 peer) const;
  /// Every link whose process can be waited for and has not ended yet.
  std::vector<LinkPointer> watched() const;

 private:
  const u32 rank_, max_ranks_;
  mutable std::mutex mutex_;
  std::map<u32, LinkPointer> links_;
  std::vector<LinkPointer> held_[2];
};

}  // namespace eep::gpu
