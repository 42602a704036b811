#include "heir.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <new>

#include "handles.hpp"

namespace eep {

namespace {

constexpr u64 kStackBytes = 1U << 18;
constexpr u64 kGuardBytes = 1U << 16;  // on both sides, so that the kernel joins the stack's mapping with no other
constexpr u64 kTextBytes = 8192;
constexpr u64 kPageBytes = 4096;

/// What the heir needs; lies at the foot of its stack. Its code allocates nothing, takes no lock and asks the kernel without the C
/// library's help: the process that it shares memory with may have died holding any lock, and part of that memory is given back.
struct Estate {
  HeirOptions options;
  int pidfd = -1;
  u64 kept[3] = {};  // addresses whose mappings stay: this stack, what the thread pointer points to, and the command line
  char text[kTextBytes];
};

void nap(u64 ns) {
  timespec left{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
  ::syscall(SYS_nanosleep, &left, nullptr);
}

u64 hex(const char*& at) {
  u64 value = 0;
  for (;; ++at) {
    const char c = *at;
    if (c >= '0' && c <= '9') value = value * 16 + static_cast<u64>(c - '0');
    else if (c >= 'a' && c <= 'f') value = value * 16 + static_cast<u64>(c - 'a' + 10);
    else return value;
  }
}

/// Calls `visit(first, end)` for every writable anonymous mapping that can be spared. Those of files are libraries' data, which the code
/// here is called through, and what other processes hold as well.
template <class Visit>
void each_mapping(Estate& estate, Visit visit) {
  const int maps = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY));
  if (maps < 0) return;
  u64 filled = 0;
  for (;;) {
    const long got = ::syscall(SYS_read, maps, estate.text + filled, kTextBytes - filled);
    if (got <= 0) break;
    filled += static_cast<u64>(got);
    u64 begin = 0;
    for (u64 i = 0; i < filled; ++i) {
      if (estate.text[i] != '\n') continue;
      const char* at = estate.text + begin;
      begin = i + 1;
      const u64 first = hex(at);
      ++at;
      const u64 end = hex(at);
      const bool writable = at[1] == 'r' && at[2] == 'w';  // " rw-p "
      at += 6;
      hex(at);  // the offset; then a space and the device, "00:00" for no file
      const u64 major = hex(++at), minor = hex(++at);
      bool spared = writable && major == 0 && minor == 0;
      for (const u64 address : estate.kept) spared = spared && !(first <= address && address < end);
      if (spared) visit(first, end);
    }
    filled -= begin;
    for (u64 i = 0; i < filled; ++i) estate.text[i] = estate.text[begin + i];
    if (filled == kTextBytes) break;  // no line is so long
  }
  ::syscall(SYS_close, maps);
}

void give_all_back(Estate& estate) {
  u64 bytes = 0;
  each_mapping(estate, [&bytes](u64 first, u64 end) { bytes += end - first; });
  const HeirOptions& options = estate.options;
  u64 piece = bytes / options.pieces;
  if (piece < options.piece_bytes) piece = options.piece_bytes;
  piece &= ~(kPageBytes - 1);
  u64 left = piece;  // of the present piece, which may consist of many small mappings
  each_mapping(estate, [&options, &left, piece](u64 first, u64 end) {
    for (u64 at = first; at < end;) {
      const u64 part = end - at < left ? end - at : left;
      ::syscall(SYS_madvise, at, part, MADV_DONTNEED);
      at += part;
      left -= part;
      if (left != 0) continue;
      left = piece;
      nap(options.pause_ns);
    }
  });
}

/// When the kernel runs out of memory, this process is ended before anybody else.
void yield_to_all() {
  const sched_param lowest{};
  ::syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &lowest);
  const int score = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY));
  if (score < 0) return;
  ::syscall(SYS_write, score, "1000", 4);
  ::syscall(SYS_close, score);
}

int inherit(void* argument) {
  Estate& estate = *static_cast<Estate*>(argument);
  // Sockets and files of the dead must close when it dies: others learn of it that way.
  const unsigned pidfd = static_cast<unsigned>(estate.pidfd);
  if (pidfd > 0) ::syscall(SYS_close_range, 0U, pidfd - 1, 0U);
  ::syscall(SYS_close_range, pidfd + 1, ~0U, 0U);
  ::prctl(PR_SET_NAME, "eep-heir");
  pollfd watched{estate.pidfd, POLLIN, 0};
  while (::poll(&watched, 1, -1) < 1) continue;
  yield_to_all();
  nap(estate.options.linger_ns);
  give_all_back(estate);
  ::syscall(SYS_exit_group, 0);
  return 0;
}

/// The stack and the estate at its foot.
Estate* settle(u8* at, const HeirOptions& options) {
  auto* const estate = new (at + kGuardBytes) Estate{};
  estate->options = options;
  estate->kept[0] = reinterpret_cast<u64>(estate);
  estate->kept[1] = reinterpret_cast<u64>(__builtin_thread_pointer());
  estate->kept[2] = ::getauxval(AT_RANDOM);  // the kernel puts it beside arguments and environment, by which others know whose heir it is
  return estate;
}

}  // namespace

int leave_heir(const HeirOptions& options) {
  Mapping stack = map_private(kStackBytes + 2 * kGuardBytes, PROT_NONE);
  if (::mprotect(stack.get() + kGuardBytes, kStackBytes, PROT_READ | PROT_WRITE) != 0) fail_errno("an heir's stack");
  Estate* const estate = settle(stack.get(), options);
  const Descriptor pidfd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0U)));  // the heir gets a table of its own with it
  if (!pidfd) fail_errno("pidfd_open for an heir");
  estate->pidfd = pidfd.get();
  // No handler of ours may run in it, and its end must not be taken for that of a child that somebody waits for: no exit signal.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int pid = ::clone(&inherit, stack.get() + kGuardBytes + kStackBytes, CLONE_VM, estate);
  const int why = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = why;
  if (pid < 0) fail_errno("clone for an heir");
  stack.release();
  return pid;
}

}  // namespace eep
