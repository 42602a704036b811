#include "rank.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "../cpu/atomics.hpp"
#include "../cpu/clock.hpp"

namespace eep::gpu {
namespace {

const RankOptions& checked(const RankOptions& o) {
  const Geometry& g = o.geometry;
  const auto refuse = [](const std::string& text) { throw std::invalid_argument(text); };
  if (g.max_ranks == 0 || g.max_ranks > kMaxRanks) refuse("max_ranks = " + std::to_string(g.max_ranks) + ": must be 1 … 128");
  if (o.rank >= g.max_ranks) refuse("rank = " + std::to_string(o.rank) + ": must be below max_ranks = " + std::to_string(g.max_ranks));
  if (g.max_topk == 0 || g.max_topk > kMaxTopk) refuse("max_topk = " + std::to_string(g.max_topk) + ": must be 1 … " + std::to_string(kMaxTopk));
  const u32 unit = g.wire == Wire::kFp8 ? kGroupWidth : 8;
  if (g.hidden == 0 || g.hidden % unit != 0) {
    refuse("hidden = " + std::to_string(g.hidden) + ": must be a multiple of " + std::to_string(unit) + " for this wire format");
  }
  if (g.max_slots == 0 || g.max_slots >= kNoSlot / 2) refuse("max_slots = " + std::to_string(g.max_slots) + ": must be 1 … 32766");
  if (o.grid.threads % 32 != 0 || o.grid.threads == 0 || o.grid.threads > 512) {
    refuse("threads = " + std::to_string(o.grid.threads) + ": must be a multiple of 32 up to 512");
  }
  if (o.fixed && (o.fixed_ranks == 0 || g.n_experts % o.fixed_ranks != 0)) {
    refuse("fixed: n_experts = " + std::to_string(g.n_experts) + " must divide among " + std::to_string(o.fixed_ranks) + " ranks");
  }
  return o;
}

// Words of the shared page are accessed by both sides at once: always through atomics.
u64 read(const u64& word) { return std::atomic_ref<u64>(const_cast<u64&>(word)).load(std::memory_order_acquire); }
void write(u64& word, u64 value) { std::atomic_ref<u64>(word).store(value, std::memory_order_release); }

constexpr u32 kBeatsPerReport = 50;  // once a second

std::vector<u32> ranks_of(const u64* mask) {
  std::vector<u32> out;
  const u64 words[kMaskWords] = {read(mask[0]), read(mask[1])};
  for (u32 rank = 0; rank < kMaxRanks; ++rank) {
    if (in_mask(words, rank)) out.push_back(rank);
  }
  return out;
}

}  // namespace

DeviceRank::DeviceRank(const RankOptions& options)
    : options_(checked(options)),
      inbox_((check(cudaSetDevice(options.device), "choose the device"), check(cudaFree(nullptr), "start the device"), options.device),
             options.geometry.max_ranks, options.geometry.chunk_bytes()),
      replica_stride_(options.geometry.max_ranks * options.geometry.max_slots),
      links_(options.rank, options.geometry.max_ranks),
      context_(1),
      limits_(1),
      tables_(2),
      offsets_(2ULL * options.geometry.n_layers * (options.geometry.n_experts + 1)),
      routes_(static_cast<size_t>(options.geometry.max_tokens) * options.geometry.max_topk),
      replicas_(2ULL * options.geometry.n_layers * replica_stride_),
      peers_(2ULL * options.geometry.max_ranks),
      pair_rows_(static_cast<size_t>(options.geometry.max_rows()) * options.geometry.max_topk),
      loads_(static_cast<size_t>(options.geometry.n_layers) * options.geometry.n_experts),
      layer_rounds_(options.geometry.n_layers),
      waits_(kMaxRanks) {
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "ask for stream priorities");
  check(cudaStreamCreateWithPriority(&control_, cudaStreamNonBlocking, highest), "create the control stream");
  int shared = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, options_.device), "ask for shared memory");
  check(prepare_kernels(static_cast<u32>(shared)), "load the kernels (were they built for this device's compute capability?)");
  const Geometry& g = options_.geometry;
  const u64 needed = shared_bytes_needed(g, replica_stride_);
  if (needed > static_cast<u64>(shared)) {
    throw std::invalid_argument("max_tokens × max_topk, or max_ranks × max_slots: a block would need " + std::to_string(needed) +
                                " bytes of shared memory, the device has " + std::to_string(shared) + "; lower one of them");
  }
  for (u64& step : page_->activate_step) step = kNeverStep;
  params_.geometry = g;
  params_.rank = options_.rank;
  params_.fixed_ranks = options_.fixed_ranks;
  params_.incarnation = options_.incarnation;
  params_.chunk_stride = inbox_.stride();
  params_.replica_stride = replica_stride_;
  params_.slot_capacity = static_cast<u32>(round_up(g.max_rows(), 4));  // 16-byte columns of fp8 scales
  params_.context = context_.data();
  params_.page = page_.device();
  params_.limits = limits_.data();
  params_.tables = tables_.data();
  params_.offsets = offsets_.data();
  params_.replicas = replicas_.data();
  params_.peers = peers_.data();
  params_.inbox = inbox_.base();
  params_.routes = routes_.data();
  params_.pair_rows = pair_rows_.data();
  params_.loads = loads_.data();
  params_.layer_rounds = layer_rounds_.data();
  params_.waits = waits_.data();
  set_limits(1'000'000'000ULL, 30'000'000'000ULL, 1000);
  check(cudaDeviceSynchronize(), "prepare the rank");  // memory was cleared on a stream that the engine's streams do not wait for
  heartbeat_ = std::make_unique<Heartbeat>(
      links_, HeartbeatHooks{[this](const Link&) {
                               for (u32 index = 0; index < 2; ++index) write_dead(index);
                             },
                             [this] { heed_agent(); }, [this] { beat(); }});
}

DeviceRank::~DeviceRank() {
  heartbeat_.reset();
  cudaStreamSynchronize(control_);
  cudaStreamDestroy(control_);
}

int DeviceRank::renew_inbox(u32 source) {
  if (source >= options_.geometry.max_ranks || source == options_.rank) {
    throw std::invalid_argument("source = " + std::to_string(source) + ": must be another rank below max_ranks");
  }
  use_device();
  const std::lock_guard lock(tables_mutex_);
  const u64 epoch = read(page_->running_epoch);
  if (epoch != 0 && staged_[read(page_->running_table)].active.has(source)) {
    const std::vector<u32> suspected = suspects();
    if (std::find(suspected.begin(), suspected.end(), source) == suspected.end() && !links_.is_dead(source)) {
      throw std::runtime_error("rank " + std::to_string(source) + " is active in epoch " + std::to_string(epoch) +
                               " and not suspected: its inbox is in use; renew it when the epoch has moved on");
    }
    check(cudaDeviceSynchronize(), "wait for kernels that read an inbox");  // they leave on the same evidence
  }
  inbox_.renew(source, control_);
  return inbox_.descriptor(source);
}

void DeviceRank::connect(u32 peer, u64 incarnation, int descriptor, int pid) {
  if (peer >= options_.geometry.max_ranks || peer == options_.rank) {
    close(descriptor);
    throw std::invalid_argument("peer = " + std::to_string(peer) + ": must be another rank below max_ranks");
  }
  links_.connect(std::make_shared<Link>(peer, incarnation, options_.device, descriptor, inbox_.stride(), pid));
  heartbeat_->wake();
}

u32 DeviceRank::idle_table() const { return read(page_->running_epoch) == 0 ? 0 : 1 - static_cast<u32>(read(page_->running_table)); }

void DeviceRank::stage(const TableData& table) {
  const Geometry& g = options_.geometry;
  const bool member = table.active.has(options_.rank);
  if (member && table.incarnations.at(options_.rank) != options_.incarnation) {
    throw std::invalid_argument("the table counts on incarnation " + std::to_string(table.incarnations[options_.rank]) + " of rank " +
                                std::to_string(options_.rank) + ", this process is " + std::to_string(options_.incarnation));
  }
  PackedTable packed = pack_table(table, g, options_.rank, replica_stride_);
  use_device();
  packed.header.linked = links_.unlinked(table) == g.max_ranks ? 1 : 0;
  const std::lock_guard lock(tables_mutex_);
  const u32 index = idle_table();
  write(page_->activate_step[index], kNeverStep);
  check(cudaStreamSynchronize(control_), "stage a table");  // a beat may still be on its way through what this buffer held
  write_links(index, table);
  const auto copy = [&](void* to, const void* from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, control_), "stage a table");
  };
  copy(tables_.data() + index, &packed.header, sizeof packed.header);
  copy(offsets_.data() + packed.offsets.size() * index, packed.offsets.data(), packed.offsets.size() * sizeof(u32));
  copy(replicas_.data() + packed.replicas.size() * index, packed.replicas.data(), packed.replicas.size() * sizeof(Replica));
  check(cudaStreamSynchronize(control_), "stage a table");
  staged_[index] = table;
}

void DeviceRank::write_links(u32 index, const TableData& table) {
  const std::vector<u8*> addresses = links_.hold(index, table, inbox_chunk(params_, options_.rank));
  check(cudaMemcpyAsync(peers_.data() + addresses.size() * index, addresses.data(), addresses.size() * sizeof(u8*), cudaMemcpyHostToDevice, control_),
        "write the peer table");
  check(cudaStreamSynchronize(control_), "write the peer table");
  write_dead(index);
}

void DeviceRank::write_dead(u32 index) {
  const auto mask = links_.dead_in(index);
  for (u32 w = 0; w < kMaskWords; ++w) write(page_->dead[index][w], mask[w]);
}

u32 DeviceRank::staged_epoch() const {
  const std::lock_guard lock(tables_mutex_);
  const u32 epoch = staged_[idle_table()].epoch;
  return epoch > read(page_->running_epoch) ? epoch : 0;
}

void DeviceRank::check_staged(u32 index, u32 epoch) const {
  if (epoch <= read(page_->running_epoch)) {
    throw std::invalid_argument("epoch = " + std::to_string(epoch) + " is not newer than " + std::to_string(read(page_->running_epoch)) +
                                ": epochs only grow");
  }
  const TableData& table = staged_[index];
  if (table.epoch != epoch) {
    throw std::runtime_error("epoch " + std::to_string(epoch) + " is not staged (staged: " + std::to_string(table.epoch) + "): stage its table first");
  }
  if (const u32 peer = links_.unlinked(table); peer != options_.geometry.max_ranks) {
    throw std::runtime_error("epoch " + std::to_string(epoch) + " counts on incarnation " + std::to_string(table.incarnations[peer]) + " of rank " +
                             std::to_string(peer) + ", which is not connected: connect it before activating");
  }
}

void DeviceRank::activate(u32 epoch) {
  use_device();
  const std::lock_guard lock(tables_mutex_);
  const u32 index = idle_table();
  check_staged(index, epoch);
  write_links(index, staged_[index]);
  write(page_->activate_step[index], 0);
  check(launch_cross(params_, control_), "cross into an epoch");
  check(cudaStreamSynchronize(control_), "cross into an epoch");
  for (u64& word : page_->suspects) write(word, 0);  // whom the former epoch suspected is nobody's suspect in this one
  entered_ = true;
  if (options_.control) options_.control->set_epoch(epoch);
}

void DeviceRank::activate_at(u32 epoch, u64 at_step) {
  const std::lock_guard lock(tables_mutex_);
  const u32 index = idle_table();
  check_staged(index, epoch);
  write(page_->activate_step[index], at_step);
  entered_ = true;
  if (options_.control) options_.control->set_epoch(epoch);
}

u64 DeviceRank::running_epoch() const { return read(page_->running_epoch); }

void DeviceRank::set_limits(u64 silence_ns, u64 hard_ns, u64 min_polls) {
  use_device();
  const Limits limits{silence_ns, hard_ns, min_polls};
  check(cudaMemcpyAsync(limits_.data(), &limits, sizeof limits, cudaMemcpyHostToDevice, control_), "change the deadlines");
  check(cudaStreamSynchronize(control_), "change the deadlines");
}

void DeviceRank::set_row(const SyncRow& row) {
  write(page_->mine.tokens, row.tokens);
  write(page_->mine.flags, row.flags);
  write(page_->mine.prepared, row.prepared);
  write(page_->mine.committed, row.committed);
  write(page_->mine.user, row.user);
}
void DeviceRank::set_flip(bool flip) { write(page_->flip_when_prepared, flip ? 1 : 0); }
void DeviceRank::call_off(u64 epoch) { raise_to(page_->abort_epoch, epoch); }  // the heartbeat and the engine may both call
void DeviceRank::fence() { write(page_->fenced, 1); }
void DeviceRank::mark_dead(u32 rank) {
  if (rank >= kMaxRanks) throw std::invalid_argument("rank = " + std::to_string(rank) + ": must be below 128");
  links_.mark_dead(rank);
  for (u32 index = 0; index < 2; ++index) write_dead(index);
}

std::vector<Fault> DeviceRank::faults(u64 after) const {
  std::vector<Fault> out;
  for (const FaultEntry& entry : page_->faults) {
    const u64 serial = read(entry.serial);
    if (serial <= after) continue;
    out.push_back(Fault{serial, entry.epoch, entry.round, entry.step, entry.device_ns, entry.layer, entry.suspect, entry.evidence});
  }
  std::sort(out.begin(), out.end(), [](const Fault& a, const Fault& b) { return a.serial < b.serial; });
  return out;
}

u32 DeviceRank::status() const { return static_cast<u32>(read(page_->op_status)); }
std::vector<u32> DeviceRank::suspects() const { return ranks_of(page_->suspects); }
u64 DeviceRank::syncs_done() const { return read(page_->sync_serial); }
u64 DeviceRank::next_sync() const { return read(page_->running_sync); }

SyncOutcome DeviceRank::wait_sync(u64 after, double timeout_s) const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  for (u32 looks = 0; read(page_->sync_serial) <= after; ++looks) {
    if (std::chrono::steady_clock::now() > end) return SyncOutcome{false, 0, {}, {}};
    if (looks > 1000) std::this_thread::sleep_for(std::chrono::microseconds(20));  // a short wait is a few µs of looking
  }
  return SyncOutcome{true, static_cast<u32>(read(page_->sync_status)), ranks_of(page_->rows_present), suspects()};
}

SyncRow DeviceRank::row_of(u32 rank) const { return page_->rows[rank]; }
u64 DeviceRank::probe_ns() const { return read(page_->probe); }

void DeviceRank::check_batch(const Batch& b) const {
  const Geometry& g = options_.geometry;
  if (b.tokens > g.max_tokens) throw std::invalid_argument("x: " + std::to_string(b.tokens) + " rows, max_tokens is " + std::to_string(g.max_tokens));
  if (b.topk == 0 || b.topk > g.max_topk) throw std::invalid_argument("topk_ids: k = " + std::to_string(b.topk) + ", max_topk is " + std::to_string(g.max_topk));
  if (b.layer >= g.n_layers) throw std::invalid_argument("layer = " + std::to_string(b.layer) + ", the instance has " + std::to_string(g.n_layers));
}

void DeviceRank::launch_sync(cudaStream_t stream) { check(gpu::launch_sync(params_, stream), "launch the step sync"); }

void DeviceRank::launch_dispatch(const Dispatch& d, u32 phases, cudaStream_t stream) {
  check_batch(d.batch);
  if ((phases & kSendPhase) != 0) {
    if (!between_) throw std::runtime_error("dispatch: the round before has no combine yet; one round is in flight at a time");
    between_ = false;
  }
  check(gpu::launch_dispatch(params_, d, phases, options_.fixed ? Build::kFixed : Build::kElastic, options_.grid, stream), "launch a dispatch");
}

void DeviceRank::launch_combine(const Combine& c, u32 phases, cudaStream_t stream) {
  check_batch(c.batch);
  if (between_) throw std::runtime_error("combine: there is no dispatch before it");
  if ((phases & kReceivePhase) != 0) between_ = true;
  check(gpu::launch_combine(params_, c, phases, options_.fixed ? Build::kFixed : Build::kElastic, options_.grid, stream), "launch a combine");
}

void DeviceRank::launch_probe(cudaStream_t stream) {
  write(page_->probe, 0);
  check(launch_fault_probe(params_, stream), "launch the fault probe");
}

void DeviceRank::heed_agent() {
  if (!options_.control) return;
  ControlBlock& control = *options_.control;
  control.set_step(read(page_->sync_serial));
  call_off(control.abort_epoch());
  if (control.fenced()) fence();
  if (const u32 serial = control.agent_serial(); serial != agent_serial_) {
    agent_serial_ = serial;
    const Ring nobody{kMaxRanks, 0, 0};
    [[maybe_unused]] const auto written = ::write(options_.doorbell, &nobody, sizeof nobody);
  }
  publish_faults();
}

void DeviceRank::beat() {
  if (!options_.control) return;
  options_.control->beat();
  if (!entered_) return;
  cudaSetDevice(options_.device);
  // An error here is the device's, and sticks: the next step reports it. Peers see silence, which is the truth.
  static_cast<void>(launch_beat(params_, control_));
  if (++beats_ % kBeatsPerReport == 0) publish_waits();
}

void DeviceRank::publish_waits() {
  try {
    const std::vector<float> waits = copy_out(waits_);
    for (u32 source = 0; source < options_.geometry.max_ranks; ++source) options_.control->set_wait(source, waits[source]);
  } catch (const CudaError&) {  // the device is in trouble: faults matter more than how long waits were
  }
}

void DeviceRank::publish_faults() {
  if (!options_.control) return;
  const std::lock_guard lock(faults_mutex_);
  const std::vector<Fault> fresh = faults(published_);
  if (fresh.empty()) return;
  const Fault& newest = fresh.back();
  published_ = newest.serial;
  FaultRecord record;
  record.epoch = newest.epoch;
  record.step = newest.step;
  record.unix_ns = unix_ns();
  record.layer = newest.layer;
  for (const Fault& fault : faults(0)) {  // in order: what was slow first and silent later is silent
    if (fault.epoch != newest.epoch || fault.serial > newest.serial) continue;
    record.suspects.add(fault.suspect);
    record.evidence[fault.suspect] = static_cast<eep::Evidence>(fault.evidence);
  }
  publish_waits();
  options_.control->publish_fault(record);
}

template <class T>
std::vector<T> DeviceRank::copy_out(const DeviceArray<T>& from) const {
  use_device();
  std::vector<T> out(from.bytes() / sizeof(T));
  check(cudaMemcpyAsync(out.data(), from.data(), from.bytes(), cudaMemcpyDeviceToHost, control_), "read statistics");
  check(cudaStreamSynchronize(control_), "read statistics");
  return out;
}

std::vector<float> DeviceRank::loads() const { return copy_out(loads_); }

Context DeviceRank::context() const {
  use_device();
  Context out;
  check(cudaMemcpyAsync(&out, context_.data(), sizeof out, cudaMemcpyDeviceToHost, control_), "read the step context");
  check(cudaStreamSynchronize(control_), "read the step context");
  return out;
}

}  // namespace eep::gpu
