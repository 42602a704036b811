// The words of the Python API, with its numbers.
#pragma once

#include "protocol/device.hpp"

namespace eep {

enum class Status : u32 { kOk = 0, kSuspect = 1, kAborted = 2, kEpochSkew = 3, kFenced = 4 };
enum class Evidence : u8 { kNone = 0, kDead = 1, kSilent = 2, kSlow = 3, kGossip = 4 };
enum class Phase : u32 { kStarting = 0, kLoading = 1, kWarming = 2, kServing = 3, kDraining = 4, kStopping = 5 };

/// Whether a rank in this phase may be silent for long: it compiles, loads or captures.
constexpr bool warms_up(Phase phase) { return phase < Phase::kServing; }

}  // namespace eep
