#include "links.hpp"

#include <sys/syscall.h>

#include <cerrno>

namespace eep::gpu {
namespace {

/// A process that is gone already has no descriptor: its link is dead from the start.
Descriptor open_process(int pid) { return Descriptor(pid == 0 ? -1 : static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

}  // namespace

Link::Link(u32 peer_, u64 incarnation_, int device, int descriptor, u64 bytes, int pid)
    : peer(peer_), incarnation(incarnation_), chunk(device, descriptor, bytes), pidfd(open_process(pid)) {
  if (pid != 0 && !pidfd) {
    if (errno != ESRCH) fail_errno("pidfd_open of process " + std::to_string(pid));
    dead = true;
  }
}

void Links::connect(LinkPointer link) {
  LinkPointer former;  // unmapped outside the lock
  const std::lock_guard lock(mutex_);
  former = std::exchange(links_[link->peer], link);
}

void Links::disconnect(u32 peer) {
  LinkPointer former;
  const std::lock_guard lock(mutex_);
  if (const auto found = links_.find(peer); found != links_.end()) {
    former = std::move(found->second);
    links_.erase(found);
  }
}

std::map<u32, u64> Links::linked() const {
  const std::lock_guard lock(mutex_);
  std::map<u32, u64> out;
  for (const auto& [peer, link] : links_) out[peer] = link->incarnation;
  return out;
}

u64 Links::address_of(u32 peer) const {
  const std::lock_guard lock(mutex_);
  const auto found = links_.find(peer);
  return found == links_.end() ? 0 : reinterpret_cast<u64>(found->second->chunk.base());
}

u32 Links::unlinked(const TableData& table) const {
  const std::lock_guard lock(mutex_);
  for (u32 peer = 0; peer < max_ranks_; ++peer) {
    if (peer == rank_ || !table.active.has(peer)) continue;
    const auto found = links_.find(peer);
    if (found == links_.end() || found->second->incarnation != table.incarnations.at(peer)) return peer;
  }
  return max_ranks_;
}

std::vector<u8*> Links::hold(u32 index, const TableData& table, u8* own) {
  std::vector<LinkPointer> former;
  std::vector<u8*> addresses(max_ranks_, nullptr);
  const std::lock_guard lock(mutex_);
  former.swap(held_[index]);
  for (u32 peer = 0; peer < max_ranks_; ++peer) {
    if (!table.active.has(peer)) continue;
    const auto found = links_.find(peer);
    if (peer == rank_) {
      addresses[peer] = own;
    } else if (found != links_.end() && found->second->incarnation == table.incarnations.at(peer)) {
      addresses[peer] = found->second->chunk.base();
      held_[index].push_back(found->second);
    }
  }
  return addresses;
}

std::array<u64, kMaskWords> Links::dead_in(u32 index) const {
  const std::lock_guard lock(mutex_);
  std::array<u64, kMaskWords> mask{};
  for (const LinkPointer& link : held_[index]) {
    if (link->dead) mask[link->peer / 64] |= bit_of(link->peer);
  }
  return mask;
}

void Links::mark_dead(u32 peer) {
  const std::lock_guard lock(mutex_);
  if (const auto found = links_.find(peer); found != links_.end()) found->second->dead = true;
}

bool Links::is_dead(u32 peer) const {
  const std::lock_guard lock(mutex_);
  const auto found = links_.find(peer);
  return found != links_.end() && found->second->dead;
}

std::vector<Links::LinkPointer> Links::watched() const {
  const std::lock_guard lock(mutex_);
  std::vector<LinkPointer> out;
  const auto add = [&](const LinkPointer& link) {
    if (link->pidfd && !link->dead) out.push_back(link);
  };
  for (const auto& [peer, link] : links_) add(link);
  for (const auto& links : held_) {
    for (const LinkPointer& link : links) {
      const auto now = links_.find(link->peer);
      if (now == links_.end() || now->second != link) add(link);
    }
  }
  return out;
}

}  // namespace eep::gpu
