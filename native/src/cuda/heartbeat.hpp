// A thread that shows the peers that this process lives, and carries between the control block, the peers' processes and the page that
// running kernels read. It sleeps in poll and needs no interpreter lock, so a long computation in Python silences nobody.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

#include "links.hpp"

namespace eep::gpu {

/// What the thread calls; none of it may throw or block for long.
struct HeartbeatHooks {
  std::function<void(const Link&)> died;  // a peer's process has ended
  std::function<void()> look;             // every few milliseconds: the agent's words in, faults out
  std::function<void()> beat;             // every 20 ms: move the beacons at the peers
};

class Heartbeat {
 public:
  Heartbeat(const Links& links, HeartbeatHooks hooks);
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;
  /// Links have changed: look at them at once.
  void wake() const;

 private:
  void run();

  const Links& links_;
  HeartbeatHooks hooks_;
  Descriptor wake_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace eep::gpu
