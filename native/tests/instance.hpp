// Small instances for the C++ tests: ranks that write stamps instead of activations, so that a row of another source, epoch, round or
// token is told at once.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/group.hpp"

namespace eep::test {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::fflush(stderr);
  std::_Exit(1);
}

inline void expect(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

inline Shape small_shape(u32 ranks, u32 layers) {
  Shape shape;
  shape.max_ranks = ranks;
  shape.max_tokens = 4;
  shape.hidden = 16;
  shape.max_topk = 2;
  shape.max_slots = 6;
  shape.n_experts = 6;
  shape.n_layers = layers;
  return shape;
}

/// Expert e of every layer in slot e of rank e modulo the members, and a second copy on the next one.
inline TableData table_of(u32 epoch, const std::vector<u64>& incarnations, u32 layers) {
  std::vector<u32> members;
  for (u32 rank = 0; rank < incarnations.size(); ++rank) {
    if (incarnations[rank] != 0) members.push_back(rank);
  }
  TableSource source;
  source.epoch = epoch;
  source.n_layers = layers;
  source.n_experts = 6;
  source.active = members;
  source.incarnations = incarnations;
  for (u32 layer = 0; layer < layers; ++layer) {
    source.offsets.push_back(static_cast<i32>(source.ranks.size()));
    for (u32 expert = 0; expert < source.n_experts; ++expert) {
      for (u32 copy = 0; copy < 2; ++copy) {
        source.ranks.push_back(static_cast<u16>(members[(expert + layer + copy) % members.size()]));
        source.slots.push_back(static_cast<u16>(expert));
        source.weights.push_back(static_cast<u16>(1 + copy));
      }
      source.offsets.push_back(static_cast<i32>(source.ranks.size()));
    }
  }
  return build_table(source);
}

/// One rank with its inputs and outputs.
struct Player {
  Shape shape;
  std::shared_ptr<ControlBlock> control;
  std::unique_ptr<Group> group;
  std::vector<float> x, y, out, weights;
  std::vector<i32> ids;

  Player(const Shape& shape_, const GroupOptions& options, const std::string& path) : shape(shape_) {
    control = std::make_shared<ControlBlock>(ControlBlock::create(path, options.rank, options.incarnation));
    control->set_phase(Phase::kServing);
    group = std::make_unique<Group>(shape, options, control);
    x.resize(shape.max_tokens * shape.hidden);
    out.resize(x.size());
    y.resize(shape.max_ranks * shape.max_pairs() * shape.hidden);
    ids.resize(shape.max_tokens * shape.max_topk);
    weights.resize(ids.size());
  }

  u32 rank() const { return group->options().rank; }

  /// A value that only this source, this round and this token give.
  float stamp(u32 epoch, u32 round, u32 token) const { return static_cast<float>(((epoch % 64) * 64 + round % 64) * 64 + rank() * 8 + token + 1); }

  void fill(u32 epoch, u32 round) {
    for (u32 token = 0; token < shape.max_tokens; ++token) {
      for (u32 i = 0; i < shape.hidden; ++i) x[token * shape.hidden + i] = stamp(epoch, round, token);
      for (u32 k = 0; k < shape.max_topk; ++k) {
        ids[token * shape.max_topk + k] = static_cast<i32>((token + round + 3 * k) % shape.n_experts);
        weights[token * shape.max_topk + k] = 1.0F;
      }
    }
  }

  /// One round with the identity as every expert: each token must come back twice itself, whoever computed it.
  Status round(u32 layer, u32 number) {
    const u32 epoch = group->epoch();
    fill(epoch, number);
    const i64 stride = static_cast<i64>(shape.hidden * sizeof(float));
    TokenBatch batch;
    batch.tokens = shape.max_tokens;
    batch.topk = shape.max_topk;
    batch.rows = reinterpret_cast<const u8*>(x.data());
    batch.row_stride = stride;
    batch.ids = reinterpret_cast<const u8*>(ids.data());
    batch.ids_stride = static_cast<i64>(shape.max_topk * sizeof(i32));
    batch.weights = reinterpret_cast<const u8*>(weights.data());
    batch.weights_stride = static_cast<i64>(shape.max_topk * sizeof(float));
    const DispatchOutcome sent = group->dispatch(layer, batch);
    if (sent.status != Status::kOk) return sent.status;
    const auto* rows = reinterpret_cast<const float*>(group->rows());
    for (u32 i = 0; i < sent.pairs * shape.hidden; ++i) {
      const u32 code = static_cast<u32>(rows[i]) - 1;
      expect(code / 4096 == epoch % 64 && code / 64 % 64 == number % 64, "a row of another epoch or round arrived");
      y[i] = rows[i];
    }
    const CombineOutcome got = group->combine(reinterpret_cast<const u8*>(y.data()), stride, sent.pairs,
                                              reinterpret_cast<u8*>(out.data()), stride, shape.max_tokens, false);
    for (u32 token = 0; token < shape.max_tokens; ++token) {
      const float present = static_cast<float>(shape.max_topk - got.missing[token]);
      for (u32 i = 0; i < shape.hidden; ++i)
        expect(out[token * shape.hidden + i] == present * stamp(epoch, number, token), "a sum differs from what its missing count says");
    }
    return got.status;
  }

  /// A sync and a round in every layer.
  Status step(u32 first_round) {
    SyncRow row;
    row.tokens = shape.max_tokens;
    row.user = rank() + 100;
    const SyncOutcome outcome = group->sync(row);
    if (outcome.status != Status::kOk) return outcome.status;
    for (const SyncRow& other : outcome.rows) expect(other.user == other.rank + 100, "a sync row of another rank");
    for (u32 layer = 0; layer < shape.n_layers; ++layer) {
      if (const Status status = round(layer, first_round + layer); status != Status::kOk) return status;
    }
    return Status::kOk;
  }
};

/// A folder of this run, for control blocks; removed at the end.
struct Folder {
  std::string path;
  Folder() {
    std::string name = "/tmp/eep-native-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) fail("mkdtemp");
    path = name;
  }
  std::string control(u32 rank, u64 incarnation) const { return path + "/" + std::to_string(rank) + "-" + std::to_string(incarnation); }
  ~Folder() {
    const std::string command = "rm -rf " + path;
    if (std::system(command.c_str()) != 0) std::fprintf(stderr, "%s is left\n", path.c_str());
  }
};

}  // namespace eep::test
