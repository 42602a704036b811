#include "pack.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace eep::gpu {
namespace {

void check_replica(const Replica& replica, const Geometry& g) {
  if (replica.rank < g.max_ranks && replica.slot < g.max_slots) return;
  throw std::invalid_argument("table: rank " + std::to_string(replica.rank) + " slot " + std::to_string(replica.slot) + " is outside " +
                              std::to_string(g.max_ranks) + " ranks × " + std::to_string(g.max_slots) + " slots");
}

void pack_layer(const TableData& table, u32 layer, const Geometry& g, u32 replica_stride, PackedTable& out) {
  const LayerView view = table.layer(layer);
  const u32 first = view.offsets[0], count = view.offsets[g.n_experts] - first;
  if (count > replica_stride) throw std::invalid_argument("table: layer " + std::to_string(layer) + " has more replicas than max_ranks × max_slots");
  for (u32 i = first; i < first + count; ++i) check_replica(view.replicas[i], g);
  for (u32 expert = 0; expert <= g.n_experts; ++expert) out.offsets.push_back(view.offsets[expert] - first);
  std::copy_n(view.replicas + first, count, out.replicas.begin() + static_cast<std::ptrdiff_t>(layer) * replica_stride);
}

}  // namespace

PackedTable pack_table(const TableData& table, const Geometry& g, u32 own_rank, u32 replica_stride) {
  if (table.n_layers != g.n_layers || table.n_experts != g.n_experts) {
    throw std::invalid_argument("table: " + std::to_string(table.n_layers) + " layers × " + std::to_string(table.n_experts) +
                                " experts, the instance has " + std::to_string(g.n_layers) + " × " + std::to_string(g.n_experts));
  }
  if (table.incarnations.size() != g.max_ranks) {
    throw std::invalid_argument("incarnations: " + std::to_string(table.incarnations.size()) + " of them, max_ranks is " + std::to_string(g.max_ranks));
  }
  PackedTable out;
  out.header.epoch = table.epoch;
  out.header.member = table.active.has(own_rank) ? 1 : 0;
  std::copy(std::begin(table.active.words), std::end(table.active.words), out.header.active);
  std::copy(table.incarnations.begin(), table.incarnations.end(), out.header.incarnations);
  out.replicas.resize(static_cast<size_t>(g.n_layers) * replica_stride);
  for (u32 layer = 0; layer < g.n_layers; ++layer) pack_layer(table, layer, g, replica_stride, out);
  return out;
}

}  // namespace eep::gpu
