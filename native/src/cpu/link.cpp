#include "link.hpp"

#include <linux/futex.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <stdexcept>

#include "atomics.hpp"

namespace eep {

namespace {

Mapping map_inbox(u32 peer, const Shape& shape, const Descriptor& inbox) {
  struct stat status{};
  if (::fstat(inbox.get(), &status) != 0) fail_errno("size of the chunk given by rank " + std::to_string(peer));
  if (static_cast<u64>(status.st_size) != shape.chunk_bytes()) {
    throw std::invalid_argument("inbox_fd of rank " + std::to_string(peer) + " has " + std::to_string(status.st_size) +
                                " bytes, our shape needs " + std::to_string(shape.chunk_bytes()) +
                                ": start every rank of an instance with one shape");
  }
  return map_shared(inbox.get(), shape.chunk_bytes());
}

Descriptor open_process(u32 peer, int pid) {
  if (pid == ::getpid()) return Descriptor();
  Descriptor fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) fail_errno("pidfd_open of rank " + std::to_string(peer) + ", pid " + std::to_string(pid));
  return fd;
}

}  // namespace

Link::Link(u32 peer, u64 incarnation, const Shape& shape, Descriptor inbox, Descriptor doorbell, int pid)
    : peer_(peer),
      incarnation_(incarnation),
      mapping_(map_inbox(peer, shape, inbox)),
      chunk_(mapping_.get()),
      doorbell_(std::move(doorbell)),
      pidfd_(open_process(peer, pid)) {}

Link::Link(u32 peer, u64 incarnation, u8* chunk, Descriptor doorbell)
    : peer_(peer), incarnation_(incarnation), chunk_(chunk), doorbell_(std::move(doorbell)) {}

void Link::ring() const {
  const u64 one = 1;
  // A full counter or a dead owner both mean that nobody needs the ring.
  [[maybe_unused]] const auto written = ::write(doorbell_.get(), &one, sizeof one);
}

void Link::wake() const {
  if (load_relaxed(control().owner.asleep) != 0) ring();
}

bool Link::owner_died() const { return (load_acquire(control().owner.life) & FUTEX_OWNER_DIED) != 0; }

bool Link::process_ended() const {
  if (!pidfd_) return false;
  pollfd p{pidfd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

}  // namespace eep
