// The device algorithms as host threads: ranks × blocks × threads run the very headers that nvcc compiles, under ThreadSanitizer.
//
// Usage: model SCENARIO [seed]. Prints one line and exits 0 when everything held. What it cannot show: warp intrinsics, the device's own
// memory model beyond acquire/release, and time.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "model/epochs.hpp"
#include "model/faults.hpp"
#include "model/healthy.hpp"

int main(int argc, char** argv) {
  using namespace eep::gpu::model;
  using eep::u32;
  const std::map<std::string, void (*)(u32)> scenarios = {
      {"rounds", rounds},   {"run_ahead", run_ahead}, {"crash", crash},   {"gossip", gossip_leaves}, {"silence", silence},
      {"flips", flips},     {"zombie", zombie},       {"incarnation", incarnation}, {"abort", abort_and_replay}, {"activation", activation},
      {"masked", masked},   {"fixed", fixed_build},
  };
  const std::string name = argc > 1 ? argv[1] : "";
  const auto found = scenarios.find(name);
  if (found == scenarios.end()) {
    for (const auto& [key, value] : scenarios) std::printf("%s\n", key.c_str());
    return name.empty() || name == "--list" ? 0 : 2;
  }
  found->second(argc > 2 ? static_cast<u32>(std::strtoul(argv[2], nullptr, 10)) : 1U);
  std::printf("%s: held\n", name.c_str());
  return 0;
}
