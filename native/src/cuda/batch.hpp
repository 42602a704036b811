// What a dispatch and a combine are asked to do: kernel arguments by value, so a captured graph holds sizes and addresses only.
#pragma once

#include "state.hpp"

namespace eep::gpu {

/// What a dispatch or a combine is asked to do; captured by value, so only sizes and addresses.
struct Batch {
  u32 tokens;
  u32 topk;
  u32 layer;
  u32 ids_are_64;
  const void* ids;  // [tokens, topk], -1: none
};

/// Where this round's rows go besides the inboxes.
struct Outputs {
  u8* rows;          // expert-major [slots, capacity, row], or pair list [capacity, row]
  float* scales;     // fp8: [slots, hidden/128, capacity] (column-major for each slot, as masked grouped GEMMs take it)
  u32* counts;       // rows of each slot; pair list: counts[max_slots] is the number of pairs
  i32* pair_slots;   // pair list: slot of each pair
  float* pair_weights;
  i32* origins;      // (source rank · max_tokens + token) · max_topk + k of each row
  u32 pair_list;     // 0: expert-major
};

struct Dispatch {
  Batch batch;
  const u8* x;           // bf16 [tokens, hidden]
  const float* weights;  // [tokens, topk]
  Outputs out;
};

struct Combine {
  Batch batch;
  const u8* y;    // bf16, rows where dispatch put them
  u8* out;        // bf16 [tokens, hidden]
  u8* missing;    // [tokens]: contributions that are not in the sum
  u32 weighted;   // the experts' output is already multiplied by the router's weight
  u32* counts;    // of the dispatch: cleared at the end of the round
  i32* pair_slots;  // pair list: -1 again at the end of the round, so that rows that did not arrive are nobody's; else null
};

/// The phases may be launches of their own: work that needs no multiprocessor of the waiting kernel then runs between them.
constexpr u32 kSendPhase = 1;
constexpr u32 kReceivePhase = 2;

}  // namespace eep::gpu
