// What a writer publishes after its payload, and a reader waits for. A tag names one exchange of one epoch and is compared for
// equality only, so numbers may wrap; an epoch is at least 1, so zeroed memory holds no valid tag.
#pragma once

#include "device.hpp"

namespace eep {

/// The number of a sync or of a round within its epoch; both start at 0 again in every epoch.
using Number = u32;

EEP_HD constexpr u64 tag_of(u32 epoch, Number number) { return (static_cast<u64>(epoch) << 32) | number; }
EEP_HD constexpr u32 epoch_of(u64 tag) { return static_cast<u32>(tag >> 32); }
EEP_HD constexpr Number number_of(u64 tag) { return static_cast<Number>(tag); }

}  // namespace eep
