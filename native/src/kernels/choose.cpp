#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace eep {

namespace {

struct Candidate {
  const Kernels* kernels;
  bool runs;
};

const Kernels& choose() {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const Candidate candidates[] = {{&kAvx512, avx512}, {&kAvx2, __builtin_cpu_supports("avx2") != 0}, {&kPortable, true}};
#else
  const Candidate candidates[] = {{&kPortable, true}};
#endif
  const char* forced = std::getenv("EEP_ISA");
  for (const Candidate& candidate : candidates) {
    if (forced == nullptr && candidate.runs) return *candidate.kernels;
    if (forced == nullptr || std::string(forced) != candidate.kernels->name) continue;
    if (!candidate.runs) throw std::runtime_error(std::string("EEP_ISA=") + forced + ": this processor does not have it; unset it");
    return *candidate.kernels;
  }
  throw std::runtime_error(std::string("EEP_ISA=") + forced + " is none of avx512, avx2, portable");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace eep
