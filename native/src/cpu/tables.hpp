// Routing tables: immutable data as handed over, and the two buffers that a group switches between at a step boundary.
#pragma once

#include <vector>

#include "protocol/layout.hpp"
#include "protocol/table.hpp"

namespace eep {

/// One version of the routing table of all layers, over active ranks only.
struct TableData {
  u32 epoch = 0;
  u32 n_layers = 0, n_experts = 0;
  RankMask active;
  std::vector<u64> incarnations;   // [max_ranks]
  std::vector<u32> offsets;        // [layers, experts + 1]
  std::vector<Replica> replicas;

  LayerView layer(u32 index) const { return {offsets.data() + u64{index} * (n_experts + 1), replicas.data()}; }
};

/// The flat lists as the control side gives them.
struct TableSource {
  u64 epoch = 0;
  u32 n_layers = 0, n_experts = 0;
  std::vector<u32> active;
  std::vector<u64> incarnations;
  std::vector<i32> offsets;
  std::vector<u16> ranks, slots, weights;
};

/// Checks everything that can be checked without a shape. Throws std::invalid_argument that names the field.
TableData build_table(const TableSource& source);

/// `table` without one of its ranks, as version `epoch`: what the other replicas of an expert take stays in proportion. An expert that
/// only that rank held has none in it. Throws std::invalid_argument when the rank is not active.
TableData without(const TableData& table, u32 rank, u64 epoch);

/// Two buffers: the step side reads the current one while the control side fills the other. The caller serialises staging and
/// activating; reading the current one needs no lock.
class TablePair {
 public:
  explicit TablePair(const Shape& shape);
  /// Copies into the idle buffer, in place of whatever was staged before.
  void stage(const TableData& table, u32 own_rank);
  /// 0: none.
  u32 staged_epoch() const { return staged_epoch_; }
  /// The staged table, which must be of `epoch`.
  const TableData& staged(u32 epoch) const;
  /// The staged table becomes current; the former one may be overwritten from now on.
  const TableData& activate();

 private:
  Shape shape_;
  TableData buffers_[2];
  u32 current_ = 0;
  u32 staged_epoch_ = 0;
};

}  // namespace eep
