// A table as a device holds it: plain host arithmetic, the same on a machine without a device.
#pragma once

#include <vector>

#include "../cpu/tables.hpp"
#include "state.hpp"

namespace eep::gpu {

struct PackedTable {
  TableHeader header{};
  std::vector<u32> offsets;       // [layers][experts + 1], from the start of the layer's own lists
  std::vector<Replica> replicas;  // [layers][replica_stride]: a kernel copies one layer
};

/// Throws std::invalid_argument, naming what does not fit the instance.
PackedTable pack_table(const TableData& table, const Geometry& geometry, u32 own_rank, u32 replica_stride);

}  // namespace eep::gpu
