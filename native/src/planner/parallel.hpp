// Layers do not know of each other: whichever thread takes one, the answer is the same.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace planner {

template <typename Work>
void parallel(int items, int threads, Work&& work) {
  std::atomic<int> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  auto run = [&] {
    try {
      for (int i = next++; i < items; i = next++) work(i);
    } catch (...) {
      const std::lock_guard lock(guard);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads && t < items; ++t) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace planner
