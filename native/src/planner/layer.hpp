// One MoE layer under planning: which expert sits in which slot, and how each expert's load is split over its copies.
#pragma once

#include <cstdint>
#include <vector>

namespace planner {

inline constexpr int kNone = -1;

// The part of the topology that every layer shares. Slots are numbered rank * width + index.
struct Ranks {
  int count = 0;
  int width = 0;
  int experts = 0;
  int copies = 1;                // distinct failure domains that should hold each expert
  std::vector<int> capacity;     // usable slots by rank; 0: the rank takes part in nothing
  std::vector<int> domain;       // failure domain by rank
  std::vector<int> host;         // copies are spread over hosts where that costs little, whatever must be survived
  std::vector<double> speed;     // relative throughput by rank
  double total_speed = 0;        // over ranks with capacity
  std::vector<int> rank_of;      // by slot: a division for each look-up would cost a third of all planning

  int slots() const { return count * width; }
  int rank(int slot) const { return rank_of[slot]; }
  bool usable(int slot) const { return slot - rank(slot) * width < capacity[rank(slot)]; }
};

// Invariant: load(r) is the sum of share(s) over the slots of r, and the shares of one expert add up to its demand as
// soon as it has a copy. No rank holds two copies of one expert.
class Layer {
 public:
  Layer(const Ranks& ranks, const double* demand);

  // --- what is where ---
  int expert(int slot) const { return expert_[slot]; }
  int copies(int expert) const { return count_[expert]; }
  int first(int expert) const { return head_[expert]; }
  int next(int slot) const { return next_[slot]; }
  bool holds(int rank, int expert) const {
    return held_[rank * words_ + (expert >> 6)] >> (expert & 63) & 1;
  }
  int domains(int expert, int without = kNone) const;
  bool in_domain(int expert, int domain, int without = kNone) const;

  // --- loads ---
  double demand(int expert) const { return demand_[expert]; }
  double share(int slot) const { return share_[slot]; }
  double load(int rank) const { return load_[rank]; }
  double pressure(int rank) const { return load_[rank] * inverse_speed_[rank]; }
  double ideal() const { return ideal_; }  // pressure if the load were perfectly even
  double worst() const;                    // highest pressure of a rank

  // --- changes ---
  void hold(int slot, int expert);  // a copy with no share yet, unless it is the first one: that takes all
  void assign(int slot, double share);  // part of a split that the caller makes whole
  void drop(int slot);              // its share goes to the copies that remain
  // The split of one expert that evens the pressures of its ranks. Returns how far over-relaxation went beyond that.
  double level(int expert);
  // Levels experts until nothing moves by more than `tolerance` of the ideal pressure: worst() is then the least that
  // any split of the loads over these copies can give. Returns how many it levelled: what it cost, the same on any machine.
  long long settle(double tolerance);
  void swap(int a, int b);          // exchanges the experts of two slots and levels both
  void bereave(const Ranks& survivors);  // what was on ranks that are not usable any more is gone

  // What each slot has in memory now (kNone: nothing known): writing anything else is a movement.
  std::vector<int> resident;
  std::vector<std::uint8_t> fixed;  // a copy that must stay
  const std::uint8_t* absent = nullptr;  // [experts] or null: no slot is given to these

  bool wanted(int expert) const { return absent == nullptr || !absent[expert]; }

  bool written(int slot) const { return expert_[slot] != kNone && expert_[slot] != resident[slot]; }
  int moves() const;

  const Ranks& ranks() const { return *ranks_; }

 private:
  void link(int slot, int expert);
  void unlink(int slot);
  void set_share(int slot, double share);
  void wake(int expert);

  const Ranks* ranks_;
  const double* demand_;
  int words_;
  double ideal_;
  std::vector<int> expert_, next_, previous_, head_, count_;
  std::vector<double> share_, load_, inverse_speed_;

  // What settle() still has to look at: a ring of experts, and each rank's change of load that nobody has answered yet.
  double tolerance_ = 0, stride_ = 1;
  int levelling_ = kNone;
  std::size_t first_ = 0, waiting_ = 0;
  std::vector<double> unsettled_;
  std::vector<int> queue_;
  std::vector<std::uint8_t> queued_;
  std::vector<std::uint64_t> held_;
};

}  // namespace planner
