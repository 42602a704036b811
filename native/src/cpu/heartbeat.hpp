// A thread that shows the peers that this process lives, and holds what the kernel turns into news of its death: one robust futex in
// each inbox chunk. It sleeps between two beats of 20 ms (< 0.1 % of a core) and wakes at once when the agent has written.
#pragma once

#include <linux/futex.h>

#include <atomic>
#include <memory>
#include <thread>

#include "control.hpp"
#include "inbox.hpp"

namespace eep {

class Heartbeat {
 public:
  /// `doorbell`: rung when the agent writes into the control block.
  Heartbeat(Inbox& inbox, u32 sources, std::shared_ptr<ControlBlock> control, int doorbell);
  /// Peers then see this rank as dead: it will take part in nothing any more.
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// Fills the owner's words of a chunk that is about to be given to a source.
  void introduce(OwnerLine& line) const;

 private:
  void run();
  void hold_futexes();
  void beat();

  Inbox& inbox_;
  u32 sources_;
  std::shared_ptr<ControlBlock> control_;
  int doorbell_;
  Mapping nodes_;
  robust_list_head head_{};
  std::atomic<u32> thread_id_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace eep
