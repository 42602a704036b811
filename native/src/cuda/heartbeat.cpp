#include "heartbeat.hpp"

#include <poll.h>
#include <sys/eventfd.h>

#include "../cpu/clock.hpp"

namespace eep::gpu {
namespace {

constexpr int kLookMs = 5;  // the delay of an abort that the agent asks for
constexpr u64 kBeatNs = 20'000'000;

}  // namespace

Heartbeat::Heartbeat(const Links& links, HeartbeatHooks hooks)
    : links_(links), hooks_(std::move(hooks)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_) fail_errno("eventfd for the heartbeat");
  thread_ = std::thread([this] { run(); });
}

Heartbeat::~Heartbeat() {
  stop_ = true;
  wake();
  thread_.join();
}

void Heartbeat::wake() const {
  const u64 one = 1;
  [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
}

void Heartbeat::run() {
  u64 beaten = 0;
  while (!stop_) {
    const std::vector<Links::LinkPointer> watched = links_.watched();  // keeps every descriptor open while it is polled
    std::vector<pollfd> files{{wake_.get(), POLLIN, 0}};
    for (const auto& link : watched) files.push_back({link->pidfd.get(), POLLIN, 0});
    ::poll(files.data(), files.size(), kLookMs);
    u64 rung = 0;
    [[maybe_unused]] const auto read = ::read(wake_.get(), &rung, sizeof rung);
    for (size_t i = 0; i < watched.size(); ++i) {
      if (files[i + 1].revents == 0) continue;
      watched[i]->dead = true;
      hooks_.died(*watched[i]);
    }
    hooks_.look();
    if (const u64 now = now_ns(); now - beaten >= kBeatNs) {
      beaten = now;
      hooks_.beat();
    }
  }
}

}  // namespace eep::gpu
