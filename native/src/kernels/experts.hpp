// SwiGLU experts over rows that each go to one slot, for the few rows of a decode step: where one product per row beats a library's
// matrix product for each slot, whose set-up costs more than the arithmetic.
#pragma once

#include "protocol/layout.hpp"

namespace eep {

/// One layer's slots: `w13` [slots, 2 × intermediate, hidden] with the gate's rows first, `w2` [slots, hidden, intermediate], dense.
struct Experts {
  const u8* w13;
  const u8* w2;
  u32 slots;
  u32 hidden;
  u32 intermediate;
  DType dtype;
};

/// `pairs` rows, in and out in the experts' dtype and dense, the slot of each and the weight of each one's output.
struct ExpertRows {
  const u8* rows;
  const i32* slots;
  const float* weights;
  u8* out;
  u32 pairs;
};

/// out = weight × w2 (silu(w13_gate row) × (w13_up row)); everything between is float32. Throws std::out_of_range for a slot that is none.
void swiglu(const Experts& experts, const ExpertRows& rows);

}  // namespace eep
