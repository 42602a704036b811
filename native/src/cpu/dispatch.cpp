// The first half of a round: each token's row goes once to every rank that holds one of its experts, with the list of slots it is
// for; what arrives becomes one row per (token, slot) pair.
#include <cstring>
#include <limits>
#include <string>

#include "atomics.hpp"
#include "group.hpp"
#include "guard.hpp"

namespace eep {

namespace {

/// Rounds of a layer after which its counts of tokens per expert halve.
constexpr u32 kRoundsPerHalving = 1024;

}  // namespace

DispatchOutcome Group::dispatch(u32 layer, const TokenBatch& batch) {
  const StepGuard guard(stepping_);
  require_epoch();
  if (layer >= shape_.n_layers) throw std::invalid_argument("layer=" + std::to_string(layer) + " is not below n_layers");
  if (batch.tokens > shape_.max_tokens)
    throw std::invalid_argument("x has " + std::to_string(batch.tokens) + " tokens, max_tokens is " + std::to_string(shape_.max_tokens) +
                                ": dispatch in rounds");
  if (batch.topk > shape_.max_topk)
    throw std::invalid_argument("topk_ids has k=" + std::to_string(batch.topk) + ", max_topk is " + std::to_string(shape_.max_topk));
  DispatchOutcome outcome;
  outcome.status = early_status();
  if (outcome.status == Status::kOk) {
    if (in_round_) throw std::runtime_error("dispatch before the combine of the round in flight");
    outcome.status = options_.fixed ? dispatch_as<false>(layer, batch) : dispatch_as<true>(layer, batch);
    in_round_ = true;
    outcome.pairs = outcome.status == Status::kOk ? pair_count_ : 0;
    outcome.masked = masked_;
    bump(counters_.masked, masked_);
  }
  outcome.suspects = suspected_;
  return outcome;
}

template <bool kElastic>
Status Group::dispatch_as(u32 layer, const TokenBatch& batch) {
  layer_ = layer;
  tokens_ = batch.tokens;
  route<kElastic>(layer, batch);
  announce_rows(static_cast<i32>(layer));
  expand_own(batch);  // while the others' rows are on their way
  const Status status = await<kElastic>(Exchange::kDispatch, static_cast<i32>(layer));
  if (status != Status::kOk) return status;
  return receive_rows(static_cast<i32>(layer));
}

/// The table's choice, or the division of a fixed membership that it is measured against.
template <bool kElastic>
bool Group::place(const LayerView& table, u32 token, u32 k, u32 expert, u32& home, u16& slot) const {
  if constexpr (kElastic) {
    const u32 chosen = table.choose(options_.rank, token, k, expert);
    if (chosen == kNoReplica) return false;
    home = home_of_[table.replicas[chosen].rank];
    slot = table.replicas[chosen].slot;
  } else {
    home = expert / fixed_per_rank_;
    slot = static_cast<u16>(expert % fixed_per_rank_);
  }
  return true;
}

/// Routes every pair, copying each row the first time one of its pairs goes to a rank.
template <bool kElastic>
void Group::route(u32 layer, const TokenBatch& batch) {
  const LayerView table = table_->layer(layer);
  float* expert_tokens = expert_tokens_.data() + u64{layer} * shape_.n_experts;
  if (++layer_rounds_[layer] % kRoundsPerHalving == 0) {
    for (u32 expert = 0; expert < shape_.n_experts; ++expert) bump(expert_tokens[expert], expert_tokens[expert] * -0.5F);
  }
  contributions_.clear();
  own_pairs_.clear();
  masked_ = 0;
  for (Peer& peer : peers_) peer.rows_out = peer.pairs_out = 0;
  carried_.fill(0);
  for (u32 token = 0; token < batch.tokens; ++token) {
    first_contribution_[token] = static_cast<u32>(contributions_.size());
    lost_[token] = 0;
    for (u32 k = 0; k < batch.topk; ++k) {
      const i64 id = batch.id(token, k);
      if (id < 0) continue;
      if (id >= shape_.n_experts) throw std::invalid_argument("topk_ids holds " + std::to_string(id) + ", n_experts is " + std::to_string(shape_.n_experts));
      const auto expert = static_cast<u32>(id);
      bump(expert_tokens[expert], 1.0F);
      u32 home = 0;
      u16 slot = 0;
      if (!place<kElastic>(table, token, k, expert, home, slot)) {
        ++lost_[token];
        ++masked_;
        continue;
      }
      add_pair(batch, token, home, Pair{0, slot, batch.weight(token, k)});
    }
  }
  first_contribution_[batch.tokens] = static_cast<u32>(contributions_.size());
}

void Group::add_pair(const TokenBatch& batch, u32 token, u32 home, Pair pair) {
  Peer& peer = peers_[home];
  if (carried_[home] != token + 1) {
    carried_[home] = token + 1;
    carry(batch, token, home);
  }
  ++contributions_[carrier_[home]].pairs;
  pair.row = contributions_[carrier_[home]].row;
  if (home == self_) {
    own_pairs_.push_back(pair);
  } else {
    crash_point();
    reinterpret_cast<Pair*>(peer.out_chunk + shape_.pairs_at())[peer.pairs_out] = pair;
  }
  ++peer.pairs_out;
}

/// A token's first pair for a rank takes the row along. Contributions of a token stand in rank order, which is the order of the sum.
void Group::carry(const TokenBatch& batch, u32 token, u32 home) {
  Peer& peer = peers_[home];
  const u32 row = home == self_ ? token : peer.rows_out++;
  if (home != self_) {
    crash_point();
    std::memcpy(peer.out_chunk + shape_.rows_at() + row * shape_.row_bytes(), batch.rows + token * batch.row_stride, shape_.row_values_bytes());
  }
  u32 at = static_cast<u32>(contributions_.size());
  contributions_.push_back({});
  for (; at > first_contribution_[token] && contributions_[at - 1].home > home; --at) {
    contributions_[at] = contributions_[at - 1];
    carrier_[contributions_[at].home] = at;
  }
  contributions_[at] = {static_cast<u16>(home), static_cast<u16>(row), 0};
  carrier_[home] = at;
}

void Group::announce_rows(i32 layer) {
  for (const Peer& peer : peers_) {
    if (!peer.link) continue;
    publish(peer.out->dispatch, tag_of(epoch(), round_), peer.rows_out, peer.pairs_out, layer);
    bump(counters_.bytes_sent, peer.rows_out * shape_.row_values_bytes() + peer.pairs_out * sizeof(Pair));
  }
  wake_sleepers();
}

void Group::make_room(u32 pairs) {
  if (slots_.size() >= pairs) return;
  slots_.resize(pairs);
  weights_.resize(pairs);
  row_of_.resize(pairs);
}

void Group::expand_own(const TokenBatch& batch) {
  pair_count_ = static_cast<u32>(own_pairs_.size());
  make_room(pair_count_);
  const u64 bytes = shape_.row_values_bytes();
  for (u32 i = 0; i < pair_count_; ++i) {
    const Pair& pair = own_pairs_[i];
    slots_[i] = pair.slot;
    weights_[i] = pair.weight;
    row_of_[i] = pair.row;
    copy_row(arrived_rows_.get() + i * bytes, batch.rows + pair.row * batch.row_stride);
  }
  peers_[self_].pairs_in = pair_count_;
  peers_[self_].rows_in = batch.tokens;
}

/// What a peer says of its own numbers is checked: nobody's mistake may make this rank read or write elsewhere.
bool Group::accept(Peer& peer) {
  const Line& line = peer.in->dispatch;
  peer.rows_in = load_relaxed(line.rows);
  peer.pairs_in = load_relaxed(line.pairs);
  if (peer.rows_in > shape_.max_tokens || peer.pairs_in > shape_.max_pairs()) return false;
  const Pair* pairs = reinterpret_cast<const Pair*>(peer.in_chunk + shape_.pairs_at());
  make_room(pair_count_ + peer.pairs_in);
  for (u32 i = 0; i < peer.pairs_in; ++i) {
    const Pair pair = pairs[i];
    if (pair.row >= peer.rows_in || pair.slot >= shape_.max_slots) return false;
    slots_[pair_count_ + i] = pair.slot;
    weights_[pair_count_ + i] = pair.weight;
    row_of_[pair_count_ + i] = pair.row;
  }
  return true;
}

Status Group::receive_rows(i32 layer) {
  const u64 bytes = shape_.row_values_bytes();
  for (Peer& peer : peers_) {
    if (!peer.link) continue;
    if (load_relaxed(peer.in->dispatch.layer) != layer) return leave(Status::kEpochSkew);
    if (!accept(peer)) {
      suspect(peer.rank, Evidence::kSilent);
      return leave_suspecting(layer);
    }
    const u8* rows = peer.in_chunk + shape_.rows_at();
    for (u32 i = pair_count_; i < pair_count_ + peer.pairs_in; ++i)
      copy_row(arrived_rows_.get() + i * bytes, rows + row_of_[i] * shape_.row_bytes());
    pair_count_ += peer.pairs_in;
    bump(counters_.bytes_received, peer.rows_in * bytes + peer.pairs_in * sizeof(Pair));
  }
  return Status::kOk;
}

void Group::copy_row(u8* to, const u8* from) const { std::memcpy(to, from, shape_.row_values_bytes()); }

}  // namespace eep
