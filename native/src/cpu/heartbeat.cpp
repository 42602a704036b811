#include "heartbeat.hpp"

#include <sys/syscall.h>

#include "atomics.hpp"
#include "clock.hpp"

namespace eep {

namespace {

constexpr u64 kBeatNs = 20'000'000;

/// The list node of a chunk's futex lies in private memory at a constant distance from the futex: the kernel wants one distance for
/// a whole list, and a peer that scribbles over its chunk must not be able to bend the list.
robust_list* node_at(const Mapping& nodes, u64 stride, u32 source) {
  return reinterpret_cast<robust_list*>(nodes.get() + source * stride);
}

}  // namespace

Heartbeat::Heartbeat(Inbox& inbox, u32 sources, std::shared_ptr<ControlBlock> control, int doorbell)
    : inbox_(inbox),
      sources_(sources),
      control_(std::move(control)),
      doorbell_(doorbell),
      nodes_(map_private(inbox.chunk_bytes() * sources)) {
  thread_ = std::thread([this] { run(); });
  thread_id_.wait(0);
}

Heartbeat::~Heartbeat() {
  stop_ = true;
  const u64 one = 1;
  [[maybe_unused]] const auto written = ::write(doorbell_, &one, sizeof one);
  thread_.join();
}

void Heartbeat::introduce(OwnerLine& line) const {
  store_relaxed(line.phase, static_cast<u32>(control_->phase()));
  store_relaxed(line.beacon, control_->beacon());
  store_release(line.life, thread_id_.load(std::memory_order_relaxed));
}

void Heartbeat::hold_futexes() {
  const u64 stride = inbox_.chunk_bytes();
  robust_list* last = &head_.list;
  for (u32 source = 0; source < sources_; ++source) {
    last->next = node_at(nodes_, stride, source);
    last = last->next;
  }
  last->next = &head_.list;
  head_.futex_offset = reinterpret_cast<u8*>(&inbox_.control(0).owner.life) - nodes_.get();
  thread_id_ = static_cast<u32>(::syscall(SYS_gettid));
  for (u32 source = 0; source < sources_; ++source) introduce(inbox_.control(source).owner);
  // This thread takes no pthread mutex of the robust kind, so the list that the C library registered for it is empty.
  ::syscall(SYS_set_robust_list, &head_, sizeof head_);
  thread_id_.notify_all();
}

void Heartbeat::beat() {
  const u64 beacon = control_->beat();
  const auto phase = static_cast<u32>(control_->phase());
  for (u32 source = 0; source < sources_; ++source) {
    OwnerLine& line = inbox_.control(source).owner;
    std::atomic_ref<u32>(line.phase).store(phase, std::memory_order_relaxed);
    std::atomic_ref<u64>(line.beacon).store(beacon, std::memory_order_relaxed);
  }
}

void Heartbeat::run() {
  hold_futexes();
  u32 seen = control_->agent_serial();
  while (!stop_) {
    control_->wait_agent(seen, kBeatNs);
    const u32 now = control_->agent_serial();
    if (now != seen) {
      seen = now;
      const u64 one = 1;
      [[maybe_unused]] const auto written = ::write(doorbell_, &one, sizeof one);
    }
    beat();
  }
  for (u32 source = 0; source < sources_; ++source) store_release(inbox_.control(source).owner.life, FUTEX_OWNER_DIED);
}

}  // namespace eep
