// The device algorithms as host threads: ranks × blocks × threads run the very headers that nvcc compiles, under ThreadSanitizer.
//
// Usage: model SCENARIO [seed]. Prints one line and exits 0 when everything held. What it cannot show: warp intrinsics, the device's own
// memory model beyond acquire/release, and time.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../src/cuda/sync.hpp"

namespace {

using namespace eep;
using namespace eep::gpu;

#define CHECK(condition, ...)                                                       \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s does not hold: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                            \
      std::fprintf(stderr, "\n");                                                   \
      std::_Exit(1);                                                                \
    }                                                                               \
  } while (false)

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

void ModelBlock::barrier() {
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

void ModelBlock::while_waiting() {
  if (rank_.crashed.load(std::memory_order_relaxed)) throw Crashed{};
}

void ModelBlock::before_write() {
  if (rank_.crashed.load(std::memory_order_relaxed)) throw Crashed{};
  if (rank_.writes_left.fetch_sub(1, std::memory_order_relaxed) <= 0) {
    rank_.crashed.store(true, std::memory_order_relaxed);
    throw Crashed{};
  }
  static thread_local std::minstd_rand random(std::hash<std::thread::id>{}(std::this_thread::get_id()));
  if (rank_.jitter != 0 && random() % rank_.jitter == 0) std::this_thread::yield();
}

float from_bf16(u16 value) { return from_bits(static_cast<u32>(value) << 16); }
u16 bf16_of(float value) { return static_cast<u16>(to_bf16(value)); }
float from_e4m3(u8 code) {
  const float sign = (code & 0x80) != 0 ? -1.0F : 1.0F;
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10));
}
/// What an "expert" of the model does to a value: it depends on the expert, so a row in the wrong slot shows.
float expert_factor(u32 expert) { return 0.5F + 0.25F * static_cast<float>(expert); }

/// One rank's input of one round.
struct Input {
  std::vector<u16> x;
  std::vector<i32> ids;
  std::vector<float> weights;
  u32 tokens = 0;
};

/// Several ranks, their links, and a reference of what must come out.
class World {
 public:
  World(const Sizes& sizes, u32 seed) : sizes(sizes), random_(seed) {
    for (u32 r = 0; r < sizes.ranks; ++r) add_rank(r, 100 + r);
    for (u32 r = 0; r < sizes.ranks; ++r) link(r);
    replicas.resize(sizes.experts);
    for (u32 e = 0; e < sizes.experts; ++e) {  // two replicas each, on different ranks
      replicas[e].push_back({e % sizes.ranks, e / sizes.ranks, 3});
      replicas[e].push_back({(e + 1) % sizes.ranks, divide_up(sizes.experts, sizes.ranks) + e / sizes.ranks, 1});
    }
    for (u32 r = 0; r < sizes.ranks; ++r) active.insert(r);
  }

  void add_rank(u32 r, u64 incarnation) {
    if (ranks.size() <= r) ranks.resize(r + 1);
    ranks[r] = std::make_unique<Rank>(r, sizes, incarnation);
    incarnations.resize(sizes.ranks);
    incarnations[r] = incarnation;
  }
  /// Both directions between `r` and everybody, itself included.
  void link(u32 r) {
    for (u32 other = 0; other < sizes.ranks; ++other) {
      if (other >= ranks.size() || !ranks[other]) continue;
      ranks[r]->connect(other, ranks[other]->chunk(r));
      ranks[other]->connect(r, ranks[r]->chunk(other));
    }
  }
  void stage_all(u32 epoch, bool activate = true) {
    for (const u32 r : active) ranks[r]->stage(epoch, active, incarnations, replicas, activate);
  }

  Input input(u32 tokens) {
    Input in;
    in.tokens = tokens;
    std::normal_distribution<float> normal;
    for (u32 i = 0; i < tokens * sizes.hidden; ++i) in.x.push_back(bf16_of(normal(random_)));
    for (u32 t = 0; t < tokens; ++t) {
      std::vector<i32> all(sizes.experts);
      for (u32 e = 0; e < sizes.experts; ++e) all[e] = static_cast<i32>(e);
      std::shuffle(all.begin(), all.end(), random_);
      for (u32 k = 0; k < sizes.topk; ++k) {
        in.ids.push_back(random_() % 8 == 0 ? -1 : all[k]);
        in.weights.push_back(static_cast<float>(1 + random_() % 8) / 8.0F);
      }
    }
    return in;
  }

  /// Dispatch, experts, combine on one rank. `split` runs the send and the receive phases as launches of their own.
  void round(u32 r, const Input& in, u32 layer, bool split = false) {
    Rank& rank = *ranks[r];
    const Params& p = rank.params;
    rank.out.assign(static_cast<size_t>(in.tokens) * sizes.hidden, 0x7FC0);  // NaN: what is not written shows
    rank.missing.assign(in.tokens, 0xEE);
    const Batch batch{in.tokens, sizes.topk, layer, 0, in.ids.data()};
    Dispatch d{batch, reinterpret_cast<const u8*>(in.x.data()), in.weights.data(), {}};
    d.out = Outputs{rank.rows.data(), rank.scales.data(), rank.counts.data(), rank.pair_slots.data(), rank.pair_weights.data(),
                    rank.origins.data(), sizes.pair_list ? 1U : 0U};
    const u64 shared = dispatch_shared_bytes(p.geometry, p.replica_stride, in.tokens, sizes.blocks, sizes.topk);
    const std::vector<u32> phases = split ? std::vector<u32>{kSendPhase, kReceivePhase} : std::vector<u32>{kSendPhase | kReceivePhase};
    for (const u32 phase : phases) {
      rank.launch(
          [&](const Thread& self) {
            if (!elastic) {
              dispatch<false, Wire::kBf16>(self, p, d, phase);
            } else if (sizes.wire == Wire::kFp8) {
              dispatch<true, Wire::kFp8>(self, p, d, phase);
            } else {
              dispatch<true, Wire::kBf16>(self, p, d, phase);
            }
          },
          sizes.blocks, sizes.threads, shared);
    }
    if (rank.crashed) return;
    run_experts(rank, layer);
    const Combine c{batch, reinterpret_cast<const u8*>(rank.y.data()), reinterpret_cast<u8*>(rank.out.data()), rank.missing.data(), 0,
                    rank.counts.data(), sizes.pair_list ? rank.pair_slots.data() : nullptr};
    for (const u32 phase : phases) {
      rank.launch([&](const Thread& self) { elastic ? combine<true>(self, p, c, phase) : combine<false>(self, p, c, phase); }, sizes.blocks, sizes.threads,
                  combine_shared_bytes(p.geometry, in.tokens, sizes.blocks, sizes.topk));
    }
  }

  /// What `round` must leave in `out` on rank r, bit for bit, when everybody in `from` takes part.
  std::vector<u16> reference(u32 r, const Input& in, u32 layer) const {
    std::vector<u16> out;
    for (u32 t = 0; t < in.tokens; ++t) {
      std::map<u32, std::vector<float>> partials;
      for (u32 k = 0; k < sizes.topk; ++k) {
        const i32 id = in.ids[t * sizes.topk + k];
        if (id < 0) continue;
        std::vector<Replica> live;
        u32 total = 0;
        const u32 source = (static_cast<u32>(id) + layer) % sizes.experts;
        for (const auto& [rank, slot, weight] : replicas[source]) {
          if (active.count(rank) != 0) live.push_back(Replica{static_cast<u16>(rank), static_cast<u16>(slot), total += weight});
        }
        if (live.empty()) continue;
        std::vector<u32> offsets(sizes.experts + 1, 0);
        for (u32 e = static_cast<u32>(id); e < sizes.experts; ++e) offsets[e + 1] = static_cast<u32>(live.size());
        const u32 chosen = eep::LayerView{offsets.data(), live.data()}.choose(r, t, k, static_cast<u32>(id));
        auto& sum = partials[live[chosen].rank];
        sum.resize(sizes.hidden);
        const u16* row = &in.x[static_cast<size_t>(t) * sizes.hidden];
        for (u32 h = 0; h < sizes.hidden; ++h) {
          const float y = from_bf16(bf16_of(through_wire(row, h) * expert_factor(source)));
          sum[h] += in.weights[t * sizes.topk + k] * y;
        }
      }
      std::vector<float> sum(sizes.hidden);
      for (const auto& [rank, partial] : partials) {
        for (u32 h = 0; h < sizes.hidden; ++h) sum[h] += from_bf16(bf16_of(partial[h]));
      }
      for (const float value : sum) out.push_back(bf16_of(value));
    }
    return out;
  }

  void expect(u32 r, const Input& in, u32 layer, const char* when) const {
    const Rank& rank = *ranks[r];
    for (u32 t = 0; t < in.tokens; ++t) CHECK(rank.missing[t] == 0, "%s: rank %u token %u misses %u", when, r, t, rank.missing[t]);
    const std::vector<u16> wanted = reference(r, in, layer);
    for (size_t i = 0; i < wanted.size(); ++i) {
      CHECK(rank.out[i] == wanted[i], "%s: rank %u value %zu is %04x, not %04x", when, r, i, rank.out[i], wanted[i]);
    }
  }

  /// Runs `work` on every rank of `who` at once.
  template <class Who, class Work>
  void together(const Who& who, Work work) {
    std::vector<std::thread> threads;
    for (const u32 r : who) threads.emplace_back([=, this] { work(r, *ranks[r]); });
    for (auto& thread : threads) thread.join();
  }

  u32 any(u32 below) { return static_cast<u32>(random_() % below); }

  const Sizes sizes;
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<u64> incarnations;
  std::set<u32> active;
  Replicas replicas;
  bool elastic = true;

 private:
  float through_wire(const u16* row, u32 h) const {
    if (sizes.wire == Wire::kBf16) return from_bf16(row[h]);
    float top = 1e-4F;
    for (u32 i = h / kGroupWidth * kGroupWidth; i < (h / kGroupWidth + 1) * kGroupWidth; ++i) top = larger(top, magnitude(from_bf16(row[i])));
    return from_e4m3(static_cast<u8>(to_e4m3(from_bf16(row[h]) * (448.0F / top)))) * (top / 448.0F);
  }

  void run_experts(Rank& rank, u32 layer) {
    const Params& p = rank.params;
    std::vector<u32> expert_at(sizes.slots, 0);
    for (u32 e = 0; e < sizes.experts; ++e) {
      for (const auto& [r, slot, weight] : replicas[e]) {
        if (r == p.rank) expert_at[slot] = e;
      }
    }
    (void)layer;
    const u32 groups = sizes.hidden / kGroupWidth;
    const auto one = [&](u32 place, u32 slot) {
      for (u32 h = 0; h < sizes.hidden; ++h) {
        float value;
        if (sizes.wire == Wire::kBf16) {
          u16 raw;
          std::memcpy(&raw, &rank.rows[(static_cast<size_t>(place) * sizes.hidden + h) * 2], 2);
          value = from_bf16(raw);
        } else {
          const size_t at = sizes.pair_list ? static_cast<size_t>(place) * groups + h / kGroupWidth
                                            : (static_cast<size_t>(slot) * groups + h / kGroupWidth) * p.slot_capacity + place % p.slot_capacity;
          value = from_e4m3(rank.rows[static_cast<size_t>(place) * sizes.hidden + h]) * rank.scales[at];
        }
        rank.y[static_cast<size_t>(place) * sizes.hidden + h] = bf16_of(value * expert_factor(expert_at[slot]));
      }
    };
    if (sizes.pair_list) {
      for (u32 i = 0; i < rank.counts[sizes.slots]; ++i) one(i, static_cast<u32>(rank.pair_slots[i]));
    } else {
      for (u32 slot = 0; slot < sizes.slots; ++slot) {
        for (u32 i = 0; i < rank.counts[slot]; ++i) one(slot * p.slot_capacity + i, slot);
      }
    }
  }

  std::mt19937 random_;
};

/// Steps of sync and two layers on every rank, with shapes, layouts and both wire formats; every output bit for bit.
void rounds(u32 seed) {
  for (const bool pair_list : {false, true}) {
    for (const Wire wire : {Wire::kBf16, Wire::kFp8}) {
      for (const u32 blocks : {1U, 2U, 5U}) {
        Sizes sizes;
        sizes.hidden = 256, sizes.wire = wire, sizes.pair_list = pair_list, sizes.blocks = blocks, sizes.threads = blocks == 5 ? 1 : 3;
        World world(sizes, seed);
        world.stage_all(1);
        std::array<std::array<float, 2>, 3> expected{};  // pairs that each rank routed in each layer
        for (u32 step = 0; step < 4; ++step) {
          std::vector<Input> inputs;
          for (u32 i = 0; i < 2 * sizes.ranks; ++i) inputs.push_back(world.input(world.any(sizes.tokens + 1)));
          for (u32 r = 0; r < sizes.ranks; ++r) {
            for (u32 layer = 0; layer < 2; ++layer) {
              for (const i32 id : inputs[2 * r + layer].ids) expected[r][layer] += id >= 0 ? 1.0F : 0.0F;
            }
          }
          world.together(world.active, [&](u32 r, Rank& rank) {
            rank.jitter = 50;
            rank.sync({inputs[r].tokens, 0, 0, 0, r});
            CHECK(rank.ok(), "sync of rank %u: %u", r, static_cast<u32>(rank.status()));
            for (u32 other = 0; other < sizes.ranks; ++other) CHECK(rank.page().rows[other].user == other, "row of rank %u", other);
            for (u32 layer = 0; layer < 2; ++layer) {
              world.round(r, inputs[2 * r + layer], layer, step % 2 != 0);
              world.expect(r, inputs[2 * r + layer], layer, "healthy round");
            }
          });
        }
        for (const auto& rank : world.ranks) {
          for (const i32 slot : rank->pair_slots) CHECK(slot == -1, "a pair's slot outlived its round: %d", slot);
          for (u32 layer = 0; layer < 2; ++layer) {
            const float* loads = &rank->loads[layer * sizes.experts];
            const float counted = std::accumulate(loads, loads + sizes.experts, 0.0F);
            CHECK(counted == expected[rank->params.rank][layer], "rank %u layer %u: %g pairs", rank->params.rank, layer, counted);
          }
          for (const u32 rounds_of_layer : rank->layer_rounds) CHECK(rounds_of_layer == 4, "%u rounds of a layer", rounds_of_layer);
        }
        for (const auto& rank : world.ranks) CHECK(rank->context().rounds_ok == 8, "rounds: %llu", static_cast<unsigned long long>(rank->context().rounds_ok));
      }
    }
  }
}

/// Many rounds without a sync between them: a fast rank never overwrites what a slow one has not read (the run-ahead rule).
void run_ahead(u32 seed) {
  Sizes sizes;
  sizes.ranks = 3, sizes.blocks = 1, sizes.threads = 2;
  World world(sizes, seed);
  world.stage_all(1);
  std::vector<std::vector<Input>> inputs(sizes.ranks);
  for (auto& list : inputs) {
    for (u32 i = 0; i < 60; ++i) list.push_back(world.input(1 + world.any(sizes.tokens)));
  }
  world.together(world.active, [&](u32 r, Rank& rank) {
    rank.jitter = r == 0 ? 3 : 0;
    rank.sync();
    for (u32 i = 0; i < 60; ++i) {
      world.round(r, inputs[r][i], i % 2);
      world.expect(r, inputs[r][i], i % 2, "run ahead");
    }
  });
}

/// A rank dies at its n-th write, for every n: survivors leave, and the same step under the next epoch is right bit for bit.
void crash(u32 seed) {
  u32 died = 0, degraded = 0;
  for (i64 point = 0;; point += 1 + static_cast<i64>(seed % 7)) {
    Sizes sizes;
    World world(sizes, seed);
    world.stage_all(1);
    std::vector<Input> inputs;
    for (u32 i = 0; i < 2 * sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
    const u32 victim = sizes.ranks - 1;
    world.ranks[victim]->writes_left = point;
    const auto step = [&](u32 r, Rank& rank) {
      rank.sync();
      bool ok = rank.ok();
      for (u32 layer = 0; layer < 2 && !rank.crashed; ++layer) {
        world.round(r, inputs[2 * r + layer], layer);
        // A result may be used only if nothing is missing; then it must be right, whoever died meanwhile.
        ok = ok && rank.ok();
        for (const u8 missing : rank.missing) CHECK(rank.crashed || missing <= sizes.topk, "rank %u: nobody counted what is missing", r);
        if (ok) world.expect(r, inputs[2 * r + layer], layer, "before the crash was seen");
      }
      if (!rank.crashed) return;
      for (const u32 survivor : {0U, 1U}) world.ranks[survivor]->mark_dead(victim);
    };
    world.together(std::set<u32>(world.active), step);
    if (!world.ranks[victim]->crashed) break;
    ++died;
    for (const u32 survivor : {0U, 1U}) degraded += world.ranks[survivor]->ok() ? 0 : 1;
    world.active.erase(victim);
    world.stage_all(2);
    world.together(std::set<u32>(world.active), [&](u32 r, Rank& rank) {
      rank.sync();
      for (u32 layer = 0; layer < 2; ++layer) {
        world.round(r, inputs[2 * r + layer], layer);
        CHECK(rank.ok(), "epoch 2, rank %u, crash at write %lld: %u", r, static_cast<long long>(point), static_cast<u32>(rank.status()));
        world.expect(r, inputs[2 * r + layer], layer, "after the crash");
      }
    });
  }
  CHECK(died > 20 && degraded > 10, "only %u crash points, %u degraded", died, degraded);
  std::printf("%u crash points, %u survivors left a step\n", died, degraded);
}

/// Only one survivor has evidence; the others leave by gossip, long before their own deadlines.
void gossip_leaves(u32 seed) {
  Sizes sizes;
  sizes.ranks = 4;
  World world(sizes, seed);
  world.stage_all(1);
  const u64 start = now_ns();
  world.ranks[0]->mark_dead(3);
  world.together(std::set<u32>{0, 1, 2}, [&](u32, Rank& rank) { rank.sync(); });
  CHECK(now_ns() - start < world.ranks[1]->limits().silence_ns, "survivors waited for their own deadlines");
  u32 evidence[3] = {};
  for (u32 r = 0; r < 3; ++r) {
    CHECK(world.ranks[r]->status() == Status::kSuspect, "rank %u: %u", r, static_cast<u32>(world.ranks[r]->status()));
    CHECK(in_mask(world.ranks[r]->page().suspects, 3), "rank %u does not suspect 3", r);
    evidence[r] = world.ranks[r]->page().faults[0].evidence;
  }
  CHECK(evidence[0] == static_cast<u32>(Evidence::kDead), "evidence %u", evidence[0]);
  CHECK(evidence[1] == static_cast<u32>(Evidence::kGossip) && evidence[2] == static_cast<u32>(Evidence::kGossip), "%u %u", evidence[1], evidence[2]);
}

/// Silence: a frozen peer is suspected at the deadline; one whose beacon moves is reported as slow and waited for.
void silence(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  for (const auto& rank : world.ranks) rank->limits() = Limits{1200 * kMs, 60000 * kMs, 10};
  world.together(world.active, [&](u32 r, Rank& rank) {
    if (r == 2) {  // late by three deadlines, alive all the time
      for (u64 tick = 1; tick <= 75; ++tick) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        for (u32 peer = 0; peer < 2; ++peer) store_relaxed_system(&control_of(rank.peer(peer))->beacon.tag, tick);
      }
    }
    rank.sync();
    CHECK(rank.ok(), "rank %u after a slow peer: %u", r, static_cast<u32>(rank.status()));
  });
  bool slow = false;
  for (const FaultEntry& entry : world.ranks[0]->page().faults) slow = slow || entry.evidence == static_cast<u32>(Evidence::kSlow);
  CHECK(slow, "nobody was reported as slow");
  world.together(std::set<u32>{0, 1}, [&](u32 r, Rank& rank) {
    const u64 start = now_ns();
    rank.sync();
    CHECK(rank.status() == Status::kSuspect && in_mask(rank.page().suspects, 2), "rank %u: %u", r, static_cast<u32>(rank.status()));
    CHECK(now_ns() - start < 20000 * kMs, "rank %u left late", r);
  });
}

/// Planned changes under way while steps run: every rank crosses at the same sync, also a slow one, also many times over.
void flips(u32 seed) {
  Sizes sizes;
  sizes.blocks = 1;
  World world(sizes, seed);
  world.stage_all(1);
  constexpr u32 kSteps = 40;
  std::vector<Input> inputs;
  for (u32 i = 0; i < sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
  std::atomic<u32> committed{1};
  std::array<std::atomic<u32>, 3> prepared{};
  std::array<std::array<u64, kSteps>, 3> epochs{};
  world.together(world.active, [&](u32 r, Rank& rank) {
    rank.page().flip_when_prepared = 1;
    rank.jitter = r == 1 ? 2 : 40;
    u32 staged = 1;
    for (u32 step = 0; step < kSteps; ++step) {
      const u32 running = static_cast<u32>(rank.page().running_epoch);
      if (running == staged && step > r) {  // prepare the next one; not all at the same step
        staged = running + 1;
        rank.stage(staged, world.active, world.incarnations, world.replicas, false);
        prepared[r] = staged;
      }
      if (r == 0 && prepared[0] == prepared[1] && prepared[1] == prepared[2]) committed = prepared[0].load();
      rank.sync({0, 0, staged, r == 0 ? committed.load() : 0, 0});
      CHECK(rank.ok(), "rank %u step %u: %u", r, step, static_cast<u32>(rank.status()));
      epochs[r][step] = rank.page().running_epoch;
      world.round(r, inputs[r], step % 2);
      world.expect(r, inputs[r], step % 2, "around a flip");
    }
  });
  for (u32 step = 0; step < kSteps; ++step) {
    CHECK(epochs[0][step] == epochs[1][step] && epochs[1][step] == epochs[2][step], "step %u ran under two epochs", step);
  }
  CHECK(epochs[0][kSteps - 1] >= 4, "only %llu epochs", static_cast<unsigned long long>(epochs[0][kSteps - 1]));
  std::printf("%llu epochs in %u steps\n", static_cast<unsigned long long>(epochs[0][kSteps - 1]), kSteps);
}

/// An excluded rank goes on writing everything it ever mapped, before and after its place is taken by a new incarnation.
void zombie(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  std::vector<Input> inputs;
  for (u32 i = 0; i < sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
  const auto step = [&](u32 r, Rank& rank) {
    rank.sync();
    CHECK(rank.ok(), "rank %u: %u", r, static_cast<u32>(rank.status()));
    world.round(r, inputs[r], 0);
    world.expect(r, inputs[r], 0, "with a zombie about");
  };
  world.together(world.active, step);
  std::atomic<bool> stop{false};
  std::array<std::atomic<u8*>, 2> targets{};
  for (u32 r = 0; r < 2; ++r) targets[r] = world.ranks[2]->peer(r);
  const u64 bytes = world.ranks[0]->params.chunk_stride;
  std::array<std::atomic<u32>, 2> passes{};
  const auto scribble = [&] {
    std::minstd_rand random(seed + 1);
    while (!stop) {
      for (u32 r = 0; r < 2; ++r) {
        u8* chunk = targets[r];
        for (u64 i = 0; i < bytes; i += 8) {
          const u64 junk = (static_cast<u64>(random()) << 32) | random();
          std::memcpy(chunk + i, &junk, 8);
        }
        passes[r] += 1;
      }
      std::this_thread::yield();
    }
  };
  std::thread writer(scribble);
  world.active.erase(2);
  world.stage_all(2);
  for (u32 i = 0; i < 6; ++i) world.together(std::set<u32>(world.active), step);  // any read of the masked chunk is a reported race
  // The remap: from one moment on, the zombie's address means orphaned memory, and the chunk is fresh.
  std::array<std::vector<u8>, 2> orphans;
  stop = true;
  writer.join();
  for (u32 r = 0; r < 2; ++r) {
    orphans[r].resize(bytes);
    targets[r] = orphans[r].data();
    std::memset(world.ranks[r]->chunk(2), 0, bytes);
  }
  stop = false;
  std::thread again(scribble);
  world.add_rank(2, 777);
  world.link(2);
  world.active.insert(2);
  world.stage_all(3);
  for (u32 i = 0; i < 6; ++i) world.together(world.active, step);
  stop = true;
  again.join();
  CHECK(passes[0] > 1 && passes[1] > 1, "the zombie hardly ran");
}

/// Nobody writes to a rank that the epoch leaves out: not a byte of its inboxes changes.
void masked(u32 seed) {
  Sizes sizes;
  sizes.ranks = 4;
  World world(sizes, seed);
  world.stage_all(1);
  std::vector<Input> inputs;
  for (u32 i = 0; i < sizes.ranks; ++i) inputs.push_back(world.input(sizes.tokens));
  const auto step = [&](u32 r, Rank& rank) {
    rank.sync();
    CHECK(rank.ok(), "rank %u: %u", r, static_cast<u32>(rank.status()));
    world.round(r, inputs[r], 0);
    world.expect(r, inputs[r], 0, "beside a masked rank");
  };
  world.together(world.active, step);
  const std::vector<u8> before = world.ranks[1]->inbox_bytes();
  CHECK(std::any_of(before.begin(), before.end(), [](u8 byte) { return byte != 0; }), "nothing was ever written");
  world.active.erase(1);
  world.stage_all(2);
  for (u32 i = 0; i < 4; ++i) world.together(std::set<u32>(world.active), step);
  CHECK(world.ranks[1]->inbox_bytes() == before, "somebody wrote to the masked rank");
}

/// The fixed-membership build gives what the elastic one gives: what it costs is then comparable.
void fixed_build(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  const u32 per_rank = sizes.experts / sizes.ranks;
  for (u32 e = 0; e < sizes.experts; ++e) world.replicas[e] = {{e / per_rank, e % per_rank, 1}};
  world.stage_all(1);
  world.together(world.active, [&](u32, Rank& rank) { rank.sync(); });
  for (u32 i = 0; i < 6; ++i) {
    std::vector<Input> inputs;
    for (u32 r = 0; r < sizes.ranks; ++r) inputs.push_back(world.input(sizes.tokens));
    world.elastic = i % 2 == 0;
    world.together(world.active, [&](u32 r, Rank&) {
      world.round(r, inputs[r], 0);
      world.expect(r, inputs[r], 0, "fixed and elastic by turns");
    });
  }
}

/// A late tag of an old incarnation, with the right epoch and number, does not count.
void incarnation(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  Rank& rank = *world.ranks[0];
  for (const u32 peer : {1U, 2U}) {
    Line& line = control_of(rank.chunk(peer))->sync[1][0];
    line.incarnation = peer == 1 ? world.incarnations[1] : 5;
    line.tag = tag_of(1, 0);
  }
  rank.limits() = Limits{300 * kMs, 5000 * kMs, 10};
  rank.sync();
  CHECK(rank.status() == Status::kSuspect, "status %u", static_cast<u32>(rank.status()));
  CHECK(in_mask(rank.page().suspects, 2) && !in_mask(rank.page().suspects, 1), "the wrong one is suspected");
}

/// Abort, fence and a newer epoch end a step in bounded time, and the abandoned step replays bit for bit.
void abort_and_replay(u32 seed) {
  Sizes sizes;
  World world(sizes, seed);
  world.stage_all(1);
  const Input in = world.input(sizes.tokens);
  std::thread agent([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    for (const u32 r : {0U, 1U}) __atomic_store_n(&world.ranks[r]->page().abort_epoch, 2, __ATOMIC_RELEASE);
  });
  world.together(std::set<u32>{0, 1}, [&](u32 r, Rank& rank) {  // rank 2 never comes
    rank.sync();
    CHECK(rank.status() == Status::kAborted, "rank %u: %u", r, static_cast<u32>(rank.status()));
    for (u32 layer = 0; layer < 2; ++layer) {  // the rest of the graph drains without waiting for anybody
      world.round(r, in, layer);
      for (u32 t = 0; t < in.tokens; ++t) {
        u32 wanted = 0;
        for (u32 k = 0; k < sizes.topk; ++k) wanted += in.ids[t * sizes.topk + k] >= 0 ? 1 : 0;
        CHECK(rank.missing[t] == wanted, "token %u of a drained step misses %u of %u", t, rank.missing[t], wanted);
      }
    }
  });
  agent.join();
  world.active.erase(2);
  world.stage_all(2);
  world.together(std::set<u32>(world.active), [&](u32 r, Rank& rank) {
    rank.sync();
    CHECK(rank.ok(), "rank %u: %u", r, static_cast<u32>(rank.status()));
    world.round(r, in, 0);
    world.expect(r, in, 0, "replay");
  });
  __atomic_store_n(&world.ranks[0]->page().fenced, 1, __ATOMIC_RELEASE);
  const u64 before = control_of(world.ranks[1]->chunk(0))->sync[0][1].tag;
  world.ranks[0]->sync();
  CHECK(world.ranks[0]->status() == Status::kFenced, "status %u", static_cast<u32>(world.ranks[0]->status()));
  CHECK(control_of(world.ranks[1]->chunk(0))->sync[0][1].tag == before, "a fenced rank wrote to a peer");
  // A peer in a newer epoch, in the very line this rank waits on.
  control_of(world.ranks[1]->chunk(0))->sync[0][1].tag = tag_of(4, 1);
  world.ranks[1]->sync();
  CHECK(world.ranks[1]->status() == Status::kEpochSkew, "status %u", static_cast<u32>(world.ranks[1]->status()));
}

/// A table for a later step waits for it; one for the past is taken at once; an older epoch never comes back.
void activation(u32 seed) {
  Sizes sizes;
  sizes.ranks = 1, sizes.slots = 12;
  World world(sizes, seed);
  world.stage_all(1);
  Rank& rank = *world.ranks[0];
  rank.sync();
  CHECK(rank.page().running_epoch == 1, "epoch");
  rank.stage(7, world.active, world.incarnations, world.replicas, false);
  __atomic_store_n(&rank.page().activate_step[1 - rank.page().running_table], 3, __ATOMIC_RELEASE);
  rank.sync(), rank.sync();
  CHECK(rank.page().running_epoch == 1, "taken before its step");
  rank.context().round = 0xFFFFFFFEU;
  const Input in = world.input(sizes.tokens);
  for (u32 i = 0; i < 3; ++i) {  // numbers wrap within an epoch only after 2^32 rounds; the parity goes on
    if (i < 1) world.round(0, in, 0);
  }
  world.expect(0, in, 0, "late round number");
  rank.sync();
  CHECK(rank.page().running_epoch == 7 && rank.context().round == 0, "not taken at its step");
  rank.stage(5, world.active, world.incarnations, world.replicas, true);
  rank.sync();
  CHECK(rank.page().running_epoch == 7, "an older epoch came back");
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, void (*)(u32)> scenarios = {
      {"rounds", rounds},   {"run_ahead", run_ahead}, {"crash", crash},   {"gossip", gossip_leaves}, {"silence", silence},
      {"flips", flips},     {"zombie", zombie},       {"incarnation", incarnation}, {"abort", abort_and_replay}, {"activation", activation},
      {"masked", masked},   {"fixed", fixed_build},
  };
  const std::string name = argc > 1 ? argv[1] : "";
  const auto found = scenarios.find(name);
  if (found == scenarios.end()) {
    for (const auto& [key, value] : scenarios) std::printf("%s\n", key.c_str());
    return name.empty() || name == "--list" ? 0 : 2;
  }
  found->second(argc > 2 ? static_cast<u32>(std::strtoul(argv[2], nullptr, 10)) : 1U);
  std::printf("%s: held\n", name.c_str());
  return 0;
}
