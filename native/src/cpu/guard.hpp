// One step in flight: a second call while one runs is a mistake of the caller's, told at once.
#pragma once

#include <atomic>
#include <stdexcept>

namespace eep {

class StepGuard {
 public:
  explicit StepGuard(std::atomic<bool>& stepping) : stepping_(stepping) {
    if (stepping_.exchange(true, std::memory_order_acquire))
      throw std::runtime_error("another thread is inside sync, dispatch, combine or activate: one step at a time, on one thread");
  }
  ~StepGuard() { stepping_.store(false, std::memory_order_release); }
  StepGuard(const StepGuard&) = delete;
  StepGuard& operator=(const StepGuard&) = delete;

 private:
  std::atomic<bool>& stepping_;
};

}  // namespace eep
