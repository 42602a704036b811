// The second half of a round: each rank sends back, per row it got, the weighted sum over its own experts; the token's rank adds the
// sums of all ranks in rank order, so a result does not depend on who was faster.
#include <algorithm>
#include <string>

#include "atomics.hpp"
#include "group.hpp"
#include "guard.hpp"

namespace eep {

namespace {

constexpr std::array<float, kMaxRanks> all_ones() {
  std::array<float, kMaxRanks> ones{};
  ones.fill(1.0F);
  return ones;
}
constexpr std::array<float, kMaxRanks> kOnes = all_ones();

}  // namespace

CombineOutcome Group::combine(const u8* y, i64 y_stride, u32 pairs, u8* out, i64 out_stride, u32 tokens, bool weighted) {
  const StepGuard guard(stepping_);
  require_epoch();
  CombineOutcome outcome;
  outcome.status = early_status();
  if (outcome.status == Status::kOk) {
    if (!in_round_) throw std::runtime_error("combine without a dispatch");
    if (pairs != pair_count_) throw std::invalid_argument("y has " + std::to_string(pairs) + " rows, the dispatch had " + std::to_string(pair_count_) + " pairs");
    if (tokens != tokens_) throw std::invalid_argument("out has " + std::to_string(tokens) + " rows, the dispatch had " + std::to_string(tokens_) + " tokens");
    send_partials(y, y_stride, weighted);
    const auto layer = static_cast<i32>(layer_);
    outcome.status = options_.fixed ? await<false>(Exchange::kCombine, layer) : await<true>(Exchange::kCombine, layer);
    add_up(out, out_stride);
  } else {
    for (Peer& peer : peers_) peer.arrived = false;
  }
  outcome.missing = count_missing(tokens);
  outcome.suspects = suspected_;
  in_round_ = false;
  if (outcome.status == Status::kOk) {
    ++round_;
    rounds_.fetch_add(1, std::memory_order_relaxed);
    bump(counters_.rounds);
  }
  return outcome;
}

void Group::sum_rows(u8* out, const u8* const* rows, const float* weights, u32 n) const {
  if (shape_.dtype == DType::kFloat32) {
    kernels_.sum_f32(reinterpret_cast<float*>(out), reinterpret_cast<const float* const*>(rows), weights, n, shape_.hidden);
  } else {
    kernels_.sum_bf16(reinterpret_cast<u16*>(out), reinterpret_cast<const u16* const*>(rows), weights, n, shape_.hidden);
  }
}

/// Sums of the pairs [first, end), one for each of their rows; pairs of a row lie side by side.
void Group::partials_of(u32 first, u32 end, const u8* y, i64 y_stride, bool weighted, u8* to) const {
  const u8* rows[kMaxTopk];
  while (first < end) {
    u32 n = 0;
    const u32 begin = first;
    for (; first < end && n < kMaxTopk && row_of_[first] == row_of_[begin]; ++first) rows[n++] = y + first * y_stride;
    crash_point();
    sum_rows(to + row_of_[begin] * shape_.row_bytes(), rows, weighted ? kOnes.data() : weights_.data() + begin, n);
  }
}

void Group::send_partials(const u8* y, i64 y_stride, bool weighted) {
  u32 first = peers_[self_].pairs_in;
  for (const Peer& peer : peers_) {
    if (!peer.link) continue;
    partials_of(first, first + peer.pairs_in, y, y_stride, weighted, peer.out_chunk + shape_.partials_at());
    first += peer.pairs_in;
    publish(peer.out->combine, tag_of(epoch(), round_), peer.rows_in, peer.pairs_in, static_cast<i32>(layer_));
    bump(counters_.bytes_sent, peer.rows_in * shape_.row_values_bytes());
  }
  wake_sleepers();
  partials_of(0, peers_[self_].pairs_in, y, y_stride, weighted, inbox_.chunk(options_.rank) + shape_.partials_at());
}

void Group::add_up(u8* out, i64 out_stride) {
  const u8* rows[kMaxRanks];
  for (u32 token = 0; token < tokens_; ++token) {
    u32 n = 0;
    for (u32 i = first_contribution_[token]; i < first_contribution_[token + 1]; ++i) {
      const Contribution& part = contributions_[i];
      const Peer& peer = peers_[part.home];
      if (peer.arrived) rows[n++] = peer.in_chunk + shape_.partials_at() + part.row * shape_.row_bytes();
    }
    u8* to = out + token * out_stride;
    if (n == 0) {
      std::fill_n(to, shape_.row_values_bytes(), u8{0});
    } else {
      sum_rows(to, rows, kOnes.data(), n);
    }
  }
}

std::vector<u8> Group::count_missing(u32 tokens) const {
  std::vector<u8> missing(tokens);
  for (u32 token = 0; in_round_ && token < std::min(tokens, tokens_); ++token) {
    missing[token] = lost_[token];
    for (u32 i = first_contribution_[token]; i < first_contribution_[token + 1]; ++i) {
      if (!peers_[contributions_[i].home].arrived) missing[token] = static_cast<u8>(missing[token] + contributions_[i].pairs);
    }
  }
  return missing;
}

}  // namespace eep
