// Who takes a killed process's memory over, so that the kernel gives it back later, slowly and in pieces that others can run between.
#pragma once

#include "protocol/device.hpp"

namespace eep {

struct HeirOptions {
  u64 linger_ns = 100'000'000;  // after the death, before anything is given back: the time of a recovery
  u64 piece_bytes = 1U << 20;   // given back at once
  u64 pause_ns = 25'000'000;    // between two pieces
  u64 pieces = 400;             // at most; of more memory the pieces are larger, so that an heir is gone after some ten seconds
};

/// Starts a process that shares this one's memory and nothing else, sleeps until this one has died, gives the memory back and ends; its
/// pid. Killing a process of a gigabyte keeps a core busy in the kernel for tens of milliseconds, which is when its peers recover; with
/// an heir the death costs next to nothing, and is also seen earlier: a pidfd tells of it only when the memory is gone. And where the
/// host of a virtual machine takes free memory back (Linux' free page reporting), hundreds of megabytes that become free at once stop
/// the machine for tenths of a second, two seconds later; given back over seconds, the process that comes next takes most of them over.
/// When the kernel runs out of memory it ends heirs before anybody else.
/// Throws std::system_error when the kernel refuses.
int leave_heir(const HeirOptions& options);

}  // namespace eep
