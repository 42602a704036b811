// Time, and the two ways of letting it pass without a system call.
#pragma once

#include <sched.h>
#include <time.h>

#include "protocol/device.hpp"

namespace eep {

inline u64 clock_ns(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<u64>(t.tv_sec) * 1'000'000'000U + static_cast<u64>(t.tv_nsec);
}
inline u64 now_ns() { return clock_ns(CLOCK_MONOTONIC); }
inline u64 unix_ns() { return clock_ns(CLOCK_REALTIME); }

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Processors this process may run on.
inline u32 processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<u32>(CPU_COUNT(&set)) : 1;
}

}  // namespace eep
