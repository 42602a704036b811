// Access to words that another process reads or writes at the same time. Everything in shared memory that is not a payload row goes
// through these, so that the orderings stand in one place and the thread sanitizer sees them.
#pragma once

#include <atomic>

#include "crash.hpp"
#include "protocol/device.hpp"

namespace eep {

template <class T>
T load_acquire(const T& word) {
  return std::atomic_ref<T>(const_cast<T&>(word)).load(std::memory_order_acquire);
}
template <class T>
T load_relaxed(const T& word) {
  return std::atomic_ref<T>(const_cast<T&>(word)).load(std::memory_order_relaxed);
}
template <class T>
void store_relaxed(T& word, std::type_identity_t<T> value) {
  crash_point();
  std::atomic_ref<T>(word).store(value, std::memory_order_relaxed);
}
template <class T>
void store_release(T& word, std::type_identity_t<T> value) {
  crash_point();
  std::atomic_ref<T>(word).store(value, std::memory_order_release);
}
/// Between "I sleep" and a look at what was published, and between publishing and a look at who sleeps: one of the two sees the other.
inline void order_stores_before_loads() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T>
void raise_to(T& word, std::type_identity_t<T> value) {
  std::atomic_ref<T> shared(word);
  T seen = shared.load(std::memory_order_relaxed);
  while (seen < value && !shared.compare_exchange_weak(seen, value, std::memory_order_acq_rel)) {
  }
}

/// Counts on a word with one writer that others may read.
template <class T>
void bump(T& word, std::type_identity_t<T> by = 1) {
  std::atomic_ref<T> shared(word);
  shared.store(shared.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

}  // namespace eep
