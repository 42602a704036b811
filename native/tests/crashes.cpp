// A rank is killed before each of its writes in turn, every one that another process can see. Whatever was half done, the survivors
// leave the step within their deadline, accuse that rank and no other, never see a row or a sum that is not right, and go on together
// in the next epoch.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>

#include "cpu/clock.hpp"
#include "cpu/crash.hpp"
#include "instance.hpp"

using namespace eep;
using namespace eep::test;

namespace {

constexpr u32 kRanks = 3;
constexpr u32 kLayers = 2;
constexpr u32 kSteps = 2;  // of the victim, all of whose writes are tried
constexpr u64 kHardNs = 5'000'000'000;

u64 writes = 0;
u64 crash_at = 0;

void count_write() {
  if (++writes == crash_at) ::raise(SIGKILL);
}

/// A socket for each pair of ranks, made before they fork.
struct Mesh {
  int ends[kRanks][kRanks];
  Mesh() {
    for (u32 a = 0; a < kRanks; ++a) {
      for (u32 b = a + 1; b < kRanks; ++b) {
        int pair[2];
        expect(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
        ends[a][b] = pair[0];
        ends[b][a] = pair[1];
      }
    }
  }
  ~Mesh() {
    for (u32 a = 0; a < kRanks; ++a) {
      for (u32 b = 0; b < kRanks; ++b) {
        if (a != b) ::close(ends[a][b]);
      }
    }
  }
};

struct Message {
  msghdr header{};
  iovec data{};
  int pid = 0;
  alignas(cmsghdr) char space[CMSG_SPACE(2 * sizeof(int))] = {};

  Message() {
    data = {&pid, sizeof pid};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    header.msg_control = space;
    header.msg_controllen = sizeof space;
  }
};

void give(int socket, Group& group, u32 source) {
  Message message;
  message.pid = ::getpid();
  const int fds[2] = {group.inbox_fd(source), group.doorbell_fd()};
  cmsghdr* control = CMSG_FIRSTHDR(&message.header);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof fds);
  std::memcpy(CMSG_DATA(control), fds, sizeof fds);
  expect(::sendmsg(socket, &message.header, 0) == sizeof(int), "sendmsg");
  ::close(fds[0]);
  ::close(fds[1]);
}

void take(int socket, Group& group, u32 peer) {
  Message message;
  expect(::recvmsg(socket, &message.header, MSG_CMSG_CLOEXEC) == sizeof(int), "recvmsg");
  int fds[2];
  std::memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message.header)), sizeof fds);
  group.connect(peer, 1, fds[0], fds[1], message.pid);
}

std::unique_ptr<Player> join(const Mesh& mesh, const Folder& folder, u32 rank) {
  GroupOptions options;
  options.rank = rank;
  options.incarnation = 1;
  options.hard_ns = kHardNs;
  auto player = std::make_unique<Player>(small_shape(kRanks, kLayers), options, folder.control(rank, 1));
  for (u32 peer = 0; peer < kRanks; ++peer) {
    if (peer != rank) give(mesh.ends[rank][peer], *player->group, peer);
  }
  for (u32 peer = 0; peer < kRanks; ++peer) {
    if (peer != rank) take(mesh.ends[rank][peer], *player->group, peer);
  }
  player->group->stage(table_of(1, {1, 1, 1}, kLayers));
  player->group->activate(1);
  char ready = 1;  // nobody crashes before everybody is linked with everybody
  for (u32 peer = 0; peer < kRanks; ++peer) {
    if (peer != rank) expect(::write(mesh.ends[rank][peer], &ready, 1) == 1, "say that this rank is ready");
  }
  for (u32 peer = 0; peer < kRanks; ++peer) {
    if (peer != rank) expect(::read(mesh.ends[rank][peer], &ready, 1) == 1, "hear that a peer is ready");
  }
  return player;
}

[[noreturn]] void run_victim(const Mesh& mesh, const Folder& folder, u32 rank, u64 at, u64* counted) {
  const auto player = join(mesh, folder, rank);
  writes = 0;
  crash_at = at;
  crash_hook = count_write;
  for (u32 step = 0; step < kSteps; ++step) expect(player->step(step * kLayers) == Status::kOk, "the victim's step ended otherwise");
  *counted = writes;
  ::raise(SIGKILL);
  std::_Exit(1);
}

[[noreturn]] void run_survivor(const Mesh& mesh, const Folder& folder, u32 rank, u32 victim) {
  const auto player = join(mesh, folder, rank);
  Status status = Status::kOk;
  const u64 began = now_ns();
  for (u32 step = 0; status == Status::kOk; ++step) {
    expect(step <= kSteps, "a step was complete without the victim");
    status = player->step(step * kLayers);
  }
  expect(status == Status::kSuspect, "a survivor left with another status");
  expect(now_ns() - began < kHardNs, "a survivor needed its hard deadline");
  const SyncOutcome again = player->group->sync(SyncRow{});
  RankMask wanted;
  wanted.add(victim);
  expect(again.status == Status::kSuspect && again.suspects == wanted, "a survivor accuses another rank");
  std::vector<u64> incarnations(kRanks, 1);
  incarnations[victim] = 0;
  player->group->stage(table_of(2, incarnations, kLayers));
  player->group->activate(2);
  for (u32 step = 0; step < 2; ++step) expect(player->step(step * kLayers) == Status::kOk, "a step of the next epoch ended otherwise");
  // Peers may still read what this rank published last: it leaves when they have answered once more.
  expect(player->group->sync(SyncRow{}).status == Status::kOk, "the last sync ended otherwise");
  std::_Exit(0);
}

/// Whether the victim was killed by the hook, that is, whether it had so many writes.
void run_trial(u32 victim, u64 at, u64* counted) {
  const Folder folder;
  const Mesh mesh;
  pid_t pids[kRanks];
  for (u32 rank = 0; rank < kRanks; ++rank) {
    pids[rank] = ::fork();
    if (pids[rank] != 0) continue;
    if (rank == victim) run_victim(mesh, folder, rank, at, counted);
    run_survivor(mesh, folder, rank, victim);
  }
  for (u32 rank = 0; rank < kRanks; ++rank) {
    int status = 0;
    ::waitpid(pids[rank], &status, 0);
    const std::string where = "victim " + std::to_string(victim) + " before its write " + std::to_string(at) + ": rank " + std::to_string(rank);
    if (rank == victim) {
      expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, where + " was not killed");
    } else {
      expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, where + " failed");
    }
  }
}

}  // namespace

int main() {
  auto* counted = static_cast<u64*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  u64 trials = 0;
  for (u32 victim = 0; victim < kRanks; ++victim) {
    run_trial(victim, 0, counted);  // without a crash: how many writes there are
    const u64 total = *counted;
    expect(total > 50, "the hook counts nothing");
    for (u64 at = 1; at <= total; ++at) run_trial(victim, at, counted);
    trials += total;
  }
  std::printf("%llu crash points\n", static_cast<unsigned long long>(trials));
  return 0;
}
