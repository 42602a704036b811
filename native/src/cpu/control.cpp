#include "control.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "atomics.hpp"
#include "clock.hpp"

namespace eep {

namespace {

constexpr u64 kMagic = 0x314B434F4C504545ULL;  // "EEPLOCK1": one layout, one number
constexpr u64 kPageBytes = 4096;

struct FaultSlot {
  u64 epoch, step, unix_ns;
  i64 layer;
  u64 suspects[kMaskWords];
  u64 evidence[kMaxRanks / 8];  // one byte each
};

}  // namespace

struct ControlPage {
  u64 magic;
  u64 incarnation;
  u32 rank;
  // written by the engine
  alignas(kLineBytes) u32 phase;
  u32 engine_pid;
  u64 epoch;
  u64 step;
  u64 beacon;
  // written by the agent
  alignas(kLineBytes) u64 committed_epoch;
  u64 abort_epoch;
  u32 fenced;
  u32 agent_serial;
  // faults: slot `serial & 1` holds number `serial`; the other one may be under construction, or left so by a dead writer
  alignas(kLineBytes) u64 fault_serial;
  u32 fault_bell;
  FaultSlot faults[2];
  float wait_us[kMaxRanks];
};
static_assert(sizeof(ControlPage) <= kPageBytes);

namespace {

void futex_wait(const u32& word, u32 seen, u64 timeout_ns) {
  const timespec t{static_cast<time_t>(timeout_ns / 1'000'000'000U), static_cast<long>(timeout_ns % 1'000'000'000U)};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &t, nullptr, 0);
}

void futex_wake(u32& word) {
  std::atomic_ref<u32>(word).fetch_add(1, std::memory_order_release);
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

u64 to_ns(double seconds) {
  if (!(seconds >= 0)) throw std::invalid_argument("timeout_s=" + std::to_string(seconds) + " must be at least 0");
  return static_cast<u64>(std::fmin(seconds, 1e9) * 1e9);
}

/// Waits on `bell` until `done()` or the time is over.
template <class Done>
bool wait_until(const u32& bell, double timeout_s, Done done) {
  const u64 deadline = now_ns() + to_ns(timeout_s);
  for (;;) {
    const u32 seen = load_acquire(bell);
    if (done()) return true;
    const u64 now = now_ns();
    if (now >= deadline) return false;
    futex_wait(bell, seen, deadline - now);
  }
}

}  // namespace

ControlBlock::ControlBlock(std::string path, Mapping mapping)
    : path_(std::move(path)), mapping_(std::move(mapping)), page_(reinterpret_cast<ControlPage*>(mapping_.get())) {}

ControlBlock ControlBlock::create(const std::string& path, u32 rank, u64 incarnation) {
  if (rank >= kMaxRanks)
    throw std::invalid_argument("rank=" + std::to_string(rank) + " must be below " + std::to_string(kMaxRanks));
  // Under another name first: nobody can attach to a page without its header, and a former page stays whole for its readers.
  const std::string fresh = path + ".new." + std::to_string(getpid());
  Descriptor fd(::open(fresh.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) fail_errno("create the control block " + fresh);
  if (::ftruncate(fd.get(), kPageBytes) != 0) fail_errno("size the control block " + fresh);
  ControlBlock block(path, map_shared(fd.get(), kPageBytes));
  block.page_->rank = rank;
  block.page_->incarnation = incarnation;
  block.page_->magic = kMagic;
  if (::rename(fresh.c_str(), path.c_str()) != 0) fail_errno("put the control block at " + path);
  return block;
}

ControlBlock ControlBlock::attach(const std::string& path) {
  Descriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) fail_errno("open the control block " + path);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) fail_errno("size of the control block " + path);
  if (static_cast<u64>(status.st_size) != kPageBytes)
    throw std::runtime_error(path + " is no control block: " + std::to_string(status.st_size) + " bytes");
  ControlBlock block(path, map_shared(fd.get(), kPageBytes));
  if (block.page_->magic != kMagic)
    throw std::runtime_error(path + " is no control block of this version: create it with the same release on both sides");
  return block;
}

u32 ControlBlock::rank() const { return page_->rank; }
u64 ControlBlock::incarnation() const { return page_->incarnation; }
Phase ControlBlock::phase() const { return static_cast<Phase>(load_relaxed(page_->phase)); }
void ControlBlock::set_phase(Phase phase) { store_relaxed(page_->phase, static_cast<u32>(phase)); }
u32 ControlBlock::engine_pid() const { return load_relaxed(page_->engine_pid); }
void ControlBlock::set_engine_pid(u32 pid) { store_relaxed(page_->engine_pid, pid); }
u64 ControlBlock::epoch() const { return load_relaxed(page_->epoch); }
void ControlBlock::set_epoch(u64 epoch) { store_relaxed(page_->epoch, epoch); }
u64 ControlBlock::step() const { return load_relaxed(page_->step); }
void ControlBlock::set_step(u64 step) { store_relaxed(page_->step, step); }
u64 ControlBlock::beacon() const { return load_relaxed(page_->beacon); }
void ControlBlock::raise_beacon(u64 value) { raise_to(page_->beacon, value); }
u64 ControlBlock::beat() { return std::atomic_ref<u64>(page_->beacon).fetch_add(1, std::memory_order_relaxed) + 1; }

FaultRecord ControlBlock::fault() const {
  for (;;) {
    FaultRecord record;
    record.serial = load_acquire(page_->fault_serial);
    if (record.serial == 0) return record;
    const FaultSlot& slot = page_->faults[record.serial & 1];
    record.epoch = load_relaxed(slot.epoch);
    record.step = load_relaxed(slot.step);
    record.unix_ns = load_relaxed(slot.unix_ns);
    record.layer = load_relaxed(slot.layer);
    for (u32 w = 0; w < kMaskWords; ++w) record.suspects.words[w] = load_relaxed(slot.suspects[w]);
    for (u32 w = 0; w < kMaxRanks / 8; ++w) {
      const u64 packed = load_relaxed(slot.evidence[w]);
      std::memcpy(&record.evidence[w * 8], &packed, sizeof packed);
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (load_relaxed(page_->fault_serial) == record.serial) return record;  // else a second writer round may have come by
  }
}

void ControlBlock::publish_fault(FaultRecord record) {
  record.serial = load_relaxed(page_->fault_serial) + 1;
  FaultSlot& slot = page_->faults[record.serial & 1];
  // Release, so that a reader that sees any of these also sees that the former serial was replaced.
  store_release(slot.epoch, record.epoch);
  store_release(slot.step, record.step);
  store_release(slot.unix_ns, record.unix_ns);
  store_release(slot.layer, record.layer);
  for (u32 w = 0; w < kMaskWords; ++w) store_release(slot.suspects[w], record.suspects.words[w]);
  for (u32 w = 0; w < kMaxRanks / 8; ++w) {
    u64 packed = 0;
    std::memcpy(&packed, &record.evidence[w * 8], sizeof packed);
    store_release(slot.evidence[w], packed);
  }
  store_release(page_->fault_serial, record.serial);
  futex_wake(page_->fault_bell);
}

bool ControlBlock::wait_fault(u64 after, double timeout_s) const {
  return wait_until(page_->fault_bell, timeout_s, [&] { return load_acquire(page_->fault_serial) > after; });
}

float ControlBlock::receive_wait_us(u32 source) const { return load_relaxed(page_->wait_us[source]); }
void ControlBlock::set_wait(u32 source, float us) { store_relaxed(page_->wait_us[source], us); }
void ControlBlock::note_wait(u32 source, float us) {
  float& mean = page_->wait_us[source];
  const float before = load_relaxed(mean);
  std::atomic_ref<float>(mean).store(before + (us - before) * (1.0F / 16), std::memory_order_relaxed);
}

u64 ControlBlock::committed_epoch() const { return load_acquire(page_->committed_epoch); }
u64 ControlBlock::abort_epoch() const { return load_acquire(page_->abort_epoch); }
bool ControlBlock::fenced() const { return load_acquire(page_->fenced) != 0; }

void ControlBlock::wake_agent_watchers() { futex_wake(page_->agent_serial); }
void ControlBlock::set_committed_epoch(u64 epoch) {
  store_release(page_->committed_epoch, epoch);
  wake_agent_watchers();
}
void ControlBlock::set_abort_epoch(u64 epoch) {
  store_release(page_->abort_epoch, epoch);
  wake_agent_watchers();
}
void ControlBlock::set_fenced(bool fenced) {
  store_release(page_->fenced, fenced ? 1U : 0U);
  wake_agent_watchers();
}
void ControlBlock::raise_committed_epoch(u64 epoch) {
  raise_to(page_->committed_epoch, epoch);
  wake_agent_watchers();
}
void ControlBlock::raise_abort_epoch(u64 epoch) {
  raise_to(page_->abort_epoch, epoch);
  wake_agent_watchers();
}
u64 ControlBlock::wait_commit(u64 after, double timeout_s) const {
  const bool came = wait_until(page_->agent_serial, timeout_s, [&] { return committed_epoch() > after; });
  return came ? committed_epoch() : after;
}

u32 ControlBlock::agent_serial() const { return load_acquire(page_->agent_serial); }
void ControlBlock::wait_agent(u32 seen, u64 timeout_ns) const { futex_wait(page_->agent_serial, seen, timeout_ns); }

}  // namespace eep
