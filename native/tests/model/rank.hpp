// One rank of the model: its memory, its page, and launches as host threads that may crash.
#pragma once

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "../../src/cuda/sync.hpp"

#define CHECK(condition, ...)                                                       \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s does not hold: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                            \
      std::fprintf(stderr, "\n");                                                   \
      std::_Exit(1);                                                                \
    }                                                                               \
  } while (false)

namespace eep::gpu::model {

/// Thrown out of a rank's threads when it "crashes": nothing it would have written later is written.
struct Crashed {};

constexpr u64 kNs = 1, kMs = 1000000 * kNs;

struct Sizes {
  u32 ranks = 3, tokens = 3, hidden = 128, topk = 3, slots = 4, experts = 6, layers = 2;
  Wire wire = Wire::kBf16;
  bool pair_list = false;
  u32 blocks = 2, threads = 2;
};

class Rank;

/// A block: a barrier of its threads that a crash opens.
class ModelBlock final : public Block {
 public:
  ModelBlock(Rank& rank, u32 threads) : rank_(rank), threads_(threads) {}
  void barrier() override;
  void before_write() override;
  void while_waiting() override;

 private:
  Rank& rank_;
  const u32 threads_;
  std::atomic<u32> waiting_{0}, generation_{0};
};

/// Replicas of each expert in one table: expert → (rank, slot, weight), the same in all layers but shifted by the layer.
using Replicas = std::vector<std::vector<std::array<u32, 3>>>;

/// One rank: its memory, its page, its launches.
class Rank {
 public:
  Rank(u32 rank, const Sizes& sizes, u64 incarnation) : sizes_(sizes) {
    Geometry& g = params.geometry;
    g = Geometry{sizes.ranks, sizes.tokens, sizes.hidden, sizes.topk, sizes.slots, sizes.experts, sizes.layers, sizes.wire};
    params.rank = rank;
    params.fixed_ranks = sizes.ranks;
    params.incarnation = incarnation;
    params.chunk_stride = round_up(g.chunk_bytes(), 4096);
    params.replica_stride = sizes.ranks * sizes.slots;
    params.slot_capacity = g.max_rows();
    inbox_.reset(static_cast<u8*>(std::aligned_alloc(4096, params.chunk_stride * sizes.ranks)));
    std::memset(inbox_.get(), 0, params.chunk_stride * sizes.ranks);
    context_ = std::make_unique<Context>();
    page_ = std::make_unique<HostPage>();
    page_->activate_step[0] = page_->activate_step[1] = kNeverStep;
    limits_ = Limits{20000 * kMs, 60000 * kMs, 1000};
    offsets_.resize(2ULL * sizes.layers * (sizes.experts + 1));
    replicas_.resize(2ULL * sizes.layers * params.replica_stride);
    peers_.resize(2ULL * sizes.ranks, nullptr);
    links_.resize(sizes.ranks, nullptr);
    routes_.resize(sizes.tokens * sizes.topk);
    loads.resize(sizes.layers * sizes.experts);
    layer_rounds.resize(sizes.layers);
    waits_.resize(sizes.ranks);
    pair_rows_.resize(static_cast<size_t>(g.max_rows()) * sizes.topk);
    params.context = context_.get();
    params.page = page_.get();
    params.limits = &limits_;
    params.tables = tables_.data();
    params.offsets = offsets_.data();
    params.replicas = replicas_.data();
    params.peers = peers_.data();
    params.inbox = inbox_.get();
    params.routes = routes_.data();
    params.pair_rows = pair_rows_.data();
    params.loads = loads.data();
    params.layer_rounds = layer_rounds.data();
    params.waits = waits_.data();
    const size_t capacity = static_cast<size_t>(sizes.slots) * g.max_rows();
    rows.resize(capacity * g.payload_bytes());
    scales.resize(capacity * (sizes.hidden / kGroupWidth));
    counts.resize(sizes.slots + 1);
    pair_slots.resize(capacity, -1);
    pair_weights.resize(capacity);
    origins.resize(capacity);
    y.resize(capacity * sizes.hidden);
  }

  HostPage& page() { return *page_; }
  Limits& limits() { return limits_; }
  Context& context() { return *context_; }
  std::vector<u8> inbox_bytes() const { return {inbox_.get(), inbox_.get() + params.chunk_stride * sizes_.ranks}; }
  u8* chunk(u32 source) { return inbox_chunk(params, source); }
  void connect(u32 peer, u8* chunk_at_peer) { links_[peer] = chunk_at_peer; }
  u8* peer(u32 rank) const { return links_[rank]; }
  /// Proof that a process is gone, for whatever table is in use.
  void mark_dead(u32 peer) {
    for (auto& words : page_->dead) __atomic_fetch_or(&words[peer / 64], bit_of(peer), __ATOMIC_RELAXED);
  }

  /// Writes the table that is not in use, as the host does, and lets the next sync take it (or a later flip).
  void stage(u32 epoch, const std::set<u32>& active, const std::vector<u64>& incarnations, const Replicas& replicas, bool activate) {
    const u32 index = 1 - static_cast<u32>(__atomic_load_n(&page_->running_table, __ATOMIC_RELAXED));
    __atomic_store_n(&page_->activate_step[index], kNeverStep, __ATOMIC_RELEASE);
    TableHeader& header = tables_[index];
    header = TableHeader{};
    header.epoch = epoch;
    header.member = active.count(params.rank) != 0 ? 1 : 0;
    for (const u32 rank : active) header.active[rank / 64] |= bit_of(rank);
    header.linked = 1;
    for (u32 rank = 0; rank < sizes_.ranks; ++rank) {
      header.incarnations[rank] = incarnations[rank];
      peers_[index * sizes_.ranks + rank] = active.count(rank) != 0 ? links_[rank] : nullptr;  // whoever is written to all the same crashes us
    }
    for (u64& word : page_->dead[index]) __atomic_store_n(&word, 0, __ATOMIC_RELAXED);
    for (u32 layer = 0; layer < sizes_.layers; ++layer) {
      u32* offsets = &offsets_[(index * sizes_.layers + layer) * (sizes_.experts + 1)];
      Replica* out = &replicas_[(index * sizes_.layers + layer) * params.replica_stride];
      u32 n = 0;
      for (u32 expert = 0; expert < sizes_.experts; ++expert) {
        offsets[expert] = n;
        u32 cumulative = 0;
        for (const auto& [rank, slot, weight] : replicas[(expert + layer) % sizes_.experts]) {
          if (active.count(rank) == 0) continue;
          cumulative += weight;
          out[n++] = Replica{static_cast<u16>(rank), static_cast<u16>(slot), cumulative};
        }
      }
      offsets[sizes_.experts] = n;
    }
    if (activate) __atomic_store_n(&page_->activate_step[index], 0, __ATOMIC_RELEASE);
  }

  void launch(const std::function<void(const Thread&)>& kernel, u32 blocks, u32 threads, u64 shared_bytes) {
    std::vector<std::unique_ptr<ModelBlock>> groups;
    std::vector<std::vector<u64>> shared(blocks, std::vector<u64>(shared_bytes / 8 + 2));
    std::vector<std::thread> running;
    for (u32 b = 0; b < blocks; ++b) groups.push_back(std::make_unique<ModelBlock>(*this, threads));
    for (u32 b = 0; b < blocks; ++b) {
      for (u32 t = 0; t < threads; ++t) {
        running.emplace_back([&, b, t] {
          current_block = groups[b].get();
          Thread self;
          self.thread_ = t, self.threads_ = threads, self.block_ = b, self.blocks_ = blocks;
          self.group = groups[b].get();
          self.shared_ = reinterpret_cast<u8*>(shared[b].data());
          try {
            kernel(self);
          } catch (const Crashed&) {
          }
        });
      }
    }
    for (auto& thread : running) thread.join();
  }

  void sync(const SyncRow& mine = {}) {
    __atomic_store_n(&page_->mine.tokens, mine.tokens, __ATOMIC_RELAXED);
    __atomic_store_n(&page_->mine.prepared, mine.prepared, __ATOMIC_RELAXED);
    __atomic_store_n(&page_->mine.committed, mine.committed, __ATOMIC_RELAXED);
    __atomic_store_n(&page_->mine.user, mine.user, __ATOMIC_RELAXED);
    launch([this](const Thread& self) { step_sync(self, params); }, 1, sizes_.threads, kHeadBytes);
  }

  Status status() { return static_cast<Status>(__atomic_load_n(&page_->op_status, __ATOMIC_ACQUIRE)); }
  bool ok() { return status() == Status::kOk && !crashed; }

  Params params{};
  std::vector<u8> rows, missing;
  std::vector<float> scales, loads;
  std::vector<u32> counts, layer_rounds;
  std::vector<i32> pair_slots, origins;
  std::vector<float> pair_weights;
  std::vector<u16> y, out;
  std::atomic<i64> writes_left{INT64_MAX};
  std::atomic<bool> crashed{false};
  u32 jitter = 0;

 private:
  const Sizes sizes_;
  struct Free {
    void operator()(u8* p) const { std::free(p); }
  };
  std::unique_ptr<u8, Free> inbox_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<HostPage> page_;
  Limits limits_{};
  std::array<TableHeader, 2> tables_{};
  std::vector<u32> offsets_, routes_;
  std::vector<Replica> replicas_;
  std::vector<u8*> peers_, links_;
  std::vector<float> waits_;
  std::vector<i32> pair_rows_;
};

inline void ModelBlock::barrier() {
  const u32 generation = generation_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    return;
  }
  while (generation_.load(std::memory_order_acquire) == generation) {
    if (rank_.crashed.load(std::memory_order_relaxed)) throw Crashed{};
    std::this_thread::yield();
  }
}

inline void ModelBlock::while_waiting() {
  if (rank_.crashed.load(std::memory_order_relaxed)) throw Crashed{};
}

inline void ModelBlock::before_write() {
  if (rank_.crashed.load(std::memory_order_relaxed)) throw Crashed{};
  if (rank_.writes_left.fetch_sub(1, std::memory_order_relaxed) <= 0) {
    rank_.crashed.store(true, std::memory_order_relaxed);
    throw Crashed{};
  }
  static thread_local std::minstd_rand random(std::hash<std::thread::id>{}(std::this_thread::get_id()));
  if (rank_.jitter != 0 && random() % rank_.jitter == 0) std::this_thread::yield();
}

}  // namespace eep::gpu::model
