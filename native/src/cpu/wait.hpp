// One wait of the stepping thread: for one tag of every active peer.
#pragma once

#include "group.hpp"

namespace eep {

struct Group::Wait {
  Exchange exchange;
  i32 layer;
  u64 tag;
  u32 pending_count = 0;
  u64 began_ns = 0;       // as the clock says
  u64 soft_began_ns = 0;  // moved by this rank's own absences: nobody is accused of them
  u64 looked_ns = 0;
  u64 rang_ns = 0;
  RankMask ended;  // peers whose pidfd told
  RankMask slow;   // peers already reported as slow
  u16 pending[kMaxRanks];  // indices into peers_
  // of each peer since the wait became slow
  u64 beacon[kMaxRanks];
  u64 moved_ns[kMaxRanks];
};

}  // namespace eep
