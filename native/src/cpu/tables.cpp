#include "tables.hpp"

#include <limits>
#include <stdexcept>
#include <string>

namespace eep {

namespace {

[[noreturn]] void refuse(const std::string& field, u64 value, const std::string& remedy) {
  throw std::invalid_argument(field + "=" + std::to_string(value) + " " + remedy);
}

void check_sizes(const TableSource& source) {
  if (source.epoch == 0 || source.epoch > std::numeric_limits<u32>::max()) refuse("epoch", source.epoch, "must be in [1, 2**32)");
  if (source.offsets.size() != u64{source.n_layers} * (source.n_experts + 1))
    refuse("offsets", source.offsets.size(), "values do not make [layers, experts + 1]");
  const u64 entries = source.ranks.size();
  if (source.slots.size() != entries || source.weights.size() != entries)
    refuse("slots", source.slots.size(), "and weights must be as many as ranks (" + std::to_string(entries) + ")");
  if (source.incarnations.size() > kMaxRanks) refuse("incarnations", source.incarnations.size(), "exceeds the 128 ranks there may be");
}

RankMask active_mask(const TableSource& source) {
  RankMask mask;
  for (const u32 rank : source.active) {
    if (rank >= source.incarnations.size()) refuse("active rank", rank, "has no incarnation: incarnations must cover max_ranks");
    if (source.incarnations[rank] == 0) refuse("active rank", rank, "has incarnation 0, which no process has");
    mask.add(rank);
  }
  return mask;
}

void add_replicas(const TableSource& source, u32 begin, u32 end, TableData& table) {
  u64 share = 0;
  for (u32 i = begin; i < end; ++i) {
    if (source.weights[i] == 0) refuse("weights entry", i, "is 0: leave a replica that takes nothing out of the list");
    if (source.ranks[i] >= kMaxRanks || !table.active.has(source.ranks[i])) continue;
    share += source.weights[i];
    if (share > std::numeric_limits<u32>::max()) refuse("weights", share, "of one expert add up to more than 2**32");
    table.replicas.push_back({source.ranks[i], source.slots[i], static_cast<u32>(share)});
  }
}

}  // namespace

TableData build_table(const TableSource& source) {
  check_sizes(source);
  TableData table;
  table.epoch = static_cast<u32>(source.epoch);
  table.n_layers = source.n_layers;
  table.n_experts = source.n_experts;
  table.incarnations = source.incarnations;
  table.active = active_mask(source);
  table.offsets.reserve(source.offsets.size());
  for (u32 layer = 0; layer < source.n_layers; ++layer) {
    const i32* row = source.offsets.data() + u64{layer} * (source.n_experts + 1);
    table.offsets.push_back(static_cast<u32>(table.replicas.size()));
    for (u32 expert = 0; expert < source.n_experts; ++expert) {
      const i32 begin = row[expert], end = row[expert + 1];
      if (begin < 0 || end < begin || static_cast<u64>(end) > source.ranks.size())
        refuse("offsets of layer " + std::to_string(layer) + " expert", expert, "do not lie in ranks in ascending order");
      add_replicas(source, static_cast<u32>(begin), static_cast<u32>(end), table);
      table.offsets.push_back(static_cast<u32>(table.replicas.size()));
    }
  }
  return table;
}

TableData without(const TableData& table, u32 rank, u64 epoch) {
  if (epoch == 0 || epoch > std::numeric_limits<u32>::max()) refuse("epoch", epoch, "must be in [1, 2**32)");
  if (rank >= kMaxRanks || !table.active.has(rank)) refuse("rank", rank, "is not active in the table");
  TableData rest{static_cast<u32>(epoch), table.n_layers, table.n_experts, table.active, table.incarnations, {}, {}};
  rest.active.remove(rank);
  rest.incarnations[rank] = 0;
  rest.offsets.reserve(table.offsets.size());
  rest.replicas.reserve(table.replicas.size());
  for (u32 layer = 0; layer < table.n_layers; ++layer) {
    const LayerView view = table.layer(layer);
    rest.offsets.push_back(static_cast<u32>(rest.replicas.size()));
    for (u32 expert = 0; expert < table.n_experts; ++expert) {
      u32 before = 0, share = 0;
      for (u32 i = view.offsets[expert]; i < view.offsets[expert + 1]; ++i) {
        const Replica& replica = view.replicas[i];
        if (replica.rank != rank) rest.replicas.push_back({replica.rank, replica.slot, share += replica.cumulative - before});
        before = replica.cumulative;
      }
      rest.offsets.push_back(static_cast<u32>(rest.replicas.size()));
    }
  }
  return rest;
}

TablePair::TablePair(const Shape& shape) : shape_(shape) {}

void TablePair::stage(const TableData& table, u32 own_rank) {
  if (table.n_layers != shape_.n_layers) refuse("table layers", table.n_layers, "differ from the shape's n_layers");
  if (table.n_experts != shape_.n_experts) refuse("table experts", table.n_experts, "differ from the shape's n_experts");
  if (table.incarnations.size() != shape_.max_ranks) refuse("incarnations", table.incarnations.size(), "must be max_ranks values");
  if (!table.active.has(own_rank)) refuse("rank", own_rank, "is not active in the table: an excluded rank has nothing to stage");
  for (const Replica& replica : table.replicas) {
    if (replica.slot >= shape_.max_slots) refuse("slot", replica.slot, "is not below the shape's max_slots");
  }
  buffers_[1 - current_] = table;
  staged_epoch_ = table.epoch;
}

const TableData& TablePair::staged(u32 epoch) const {
  if (staged_epoch_ != epoch || epoch == 0)
    throw std::runtime_error("epoch " + std::to_string(epoch) + " is not staged (staged: " + std::to_string(staged_epoch_) +
                             "): stage its table first");
  return buffers_[1 - current_];
}

const TableData& TablePair::activate() {
  current_ = 1 - current_;
  staged_epoch_ = 0;
  return buffers_[current_];
}

}  // namespace eep
