// One function per part of the module; none does more than hand over.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "protocol/device.hpp"

namespace eep {

void bind_vocabulary(pybind11::module_& module);
void bind_control(pybind11::module_& module);
void bind_group(pybind11::module_& module);
void bind_experts(pybind11::module_& module);

inline std::vector<u32> ranks_of(const RankMask& mask) {
  std::vector<u32> ranks;
  for (u32 rank = 0; rank < kMaxRanks; ++rank) {
    if (mask.has(rank)) ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace eep
