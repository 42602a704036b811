// One peer that gave us a chunk of its inbox: where we write to it, and how we learn of its death.
#pragma once

#include "handles.hpp"
#include "protocol/layout.hpp"

namespace eep {

class Link {
 public:
  /// Takes the descriptors over. `pid` of this very process (ranks as threads) is not watched.
  Link(u32 peer, u64 incarnation, const Shape& shape, Descriptor inbox, Descriptor doorbell, int pid);
  /// A peer in this process: its chunk is used at its own address.
  Link(u32 peer, u64 incarnation, u8* chunk, Descriptor doorbell);

  u32 peer() const { return peer_; }
  u64 incarnation() const { return incarnation_; }
  u8* chunk() const { return chunk_; }
  Control& control() const { return *reinterpret_cast<Control*>(chunk_); }
  /// −1 where the peer is in this process.
  int pidfd() const { return pidfd_.get(); }
  void ring() const;
  /// Rings if the peer sleeps.
  void wake() const;
  /// The kernel walks a dying process's robust futexes before it frees its memory: this word tells first.
  bool owner_died() const;
  bool process_ended() const;

 private:
  u32 peer_;
  u64 incarnation_;
  Mapping mapping_;
  u8* chunk_;
  Descriptor doorbell_;
  Descriptor pidfd_;
};

}  // namespace eep
