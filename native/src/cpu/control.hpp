// The control block: one page shared by an engine and its agent, by path. Each side may die and come back at any instant, so every
// word is atomic and a fault word is never half written.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "handles.hpp"
#include "vocabulary.hpp"

namespace eep {

struct FaultRecord {
  u64 serial = 0;
  u64 epoch = 0;
  u64 step = 0;
  u64 unix_ns = 0;
  i64 layer = -1;
  RankMask suspects;
  std::array<Evidence, kMaxRanks> evidence{};
};

struct ControlPage;

class ControlBlock {
 public:
  /// A fresh page under `path`; whoever still maps a former one keeps that.
  static ControlBlock create(const std::string& path, u32 rank, u64 incarnation);
  static ControlBlock attach(const std::string& path);

  const std::string& path() const { return path_; }
  u32 rank() const;
  u64 incarnation() const;

  Phase phase() const;
  void set_phase(Phase phase);
  u32 engine_pid() const;
  void set_engine_pid(u32 pid);
  u64 epoch() const;
  void set_epoch(u64 epoch);
  u64 step() const;
  void set_step(u64 step);
  u64 beacon() const;
  /// Never lowers it: the engine's Python threads and its heartbeat both write.
  void raise_beacon(u64 value);
  u64 beat();

  FaultRecord fault() const;
  /// One writer: the stepping thread. The serial is assigned here.
  void publish_fault(FaultRecord record);
  bool wait_fault(u64 after, double timeout_s) const;

  float receive_wait_us(u32 source) const;
  /// For a data plane that keeps its means elsewhere.
  void set_wait(u32 source, float us);
  /// Decays the mean by 1/16 towards `us`.
  void note_wait(u32 source, float us);

  u64 committed_epoch() const;
  u64 abort_epoch() const;
  bool fenced() const;
  void set_committed_epoch(u64 epoch);
  void set_abort_epoch(u64 epoch);
  void set_fenced(bool fenced);
  void raise_committed_epoch(u64 epoch);
  void raise_abort_epoch(u64 epoch);
  u64 wait_commit(u64 after, double timeout_s) const;

  /// Grows with every write of the agent's.
  u32 agent_serial() const;
  /// Waits until `agent_serial` differs from `seen` or the time is over.
  void wait_agent(u32 seen, u64 timeout_ns) const;

 private:
  ControlBlock(std::string path, Mapping mapping);
  void wake_agent_watchers();

  std::string path_;
  Mapping mapping_;
  ControlPage* page_;
};

}  // namespace eep
