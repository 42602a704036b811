#include "pack.hpp"

#include <algorithm>
#include <map>
#include <queue>
#include <tuple>
#include <vector>

#include "search.hpp"

namespace planner {

namespace {

// What a copy counts more for each other one on the same host: a heavy expert that loses all copies but one with its
// host cannot be split any more, however the rest is repaired.
constexpr double kTogether = 0.25;

// Copies of each expert: `Ranks::copies` at least, then one more for whoever has the fullest ones.
std::vector<int> counts(const Layer& layer) {
  const Ranks& ranks = layer.ranks();
  int slots = 0, usable = 0;
  for (int r = 0; r < ranks.count; ++r) {
    slots += ranks.capacity[r];
    usable += ranks.capacity[r] > 0;
  }
  std::vector<int> copies(ranks.experts, std::min(ranks.copies, usable));
  for (int s = 0; s < ranks.slots(); ++s)  // pinned ones are there already
    if (layer.expert(s) != kNone) copies[layer.expert(s)] = std::max(copies[layer.expert(s)], layer.copies(layer.expert(s)));
  for (int e = 0; e < ranks.experts; ++e)
    if (!layer.wanted(e)) copies[e] = 0;
  int left = slots;
  std::priority_queue<std::pair<double, int>> fullest;
  for (int e = 0; e < ranks.experts; ++e) {
    left -= copies[e];
    if (copies[e] > 0 && copies[e] < usable) fullest.emplace(layer.demand(e) / copies[e], -e);
  }
  for (; left > 0 && !fullest.empty(); --left) {
    const int e = -fullest.top().second;
    fullest.pop();
    if (++copies[e] < usable) fullest.emplace(layer.demand(e) / copies[e], -e);
  }
  return copies;
}

class Packer {
 public:
  explicit Packer(Layer& layer) : layer_(layer), ranks_(layer.ranks()), free_(ranks_.count), load_(ranks_.count) {
    for (int s = 0; s < ranks_.slots(); ++s)
      if (ranks_.usable(s)) free_[ranks_.rank(s)] += layer.expert(s) == kNone;
  }

  void run() {
    prepare();
    for (const int e : order_)
      for (int n = layer_.copies(e); n < copies_[e]; ++n) place(e, size(e));
  }

  // Every piece where the load is lowest, whatever else is there, as EPLB packs: two pieces of one expert on a rank
  // become one copy, and the slot left over serves another.
  void run_plainly() {
    prepare();
    const std::vector<int> ranks = across_hosts(ranks_);
    for (const int e : order_) {
      for (int n = layer_.copies(e); n < copies_[e]; ++n) {
        const int rank = least_pressed(ranks);
        if (rank == kNone) return;
        if (!layer_.holds(rank, e)) layer_.hold(free_slot(rank), e);
        --free_[rank];
        load_[rank] += size(e);
      }
    }
  }

  // Feasible first, even second: each expert's first copies go to the failure domains with most room. That never
  // runs into a dead end where another order would not have (Gale and Ryser 1957).
  void run_safely() {
    prepare();
    for (const int e : order_)
      for (int n = layer_.copies(e); n < std::min(ranks_.copies, copies_[e]); ++n) place_roomiest(e, size(e));
    for (const int e : order_)
      for (int n = layer_.copies(e); n < copies_[e]; ++n) place(e, size(e));
  }

 private:
  bool spreads(int expert, int rank) const {
    return ranks_.copies < 2 || layer_.copies(expert) == 0 || layer_.domains(expert) >= ranks_.copies ||
           !layer_.in_domain(expert, ranks_.domain[rank]);
  }

  int together(int expert, int rank) const {
    int copies = 0;
    for (int s = layer_.first(expert); s != kNone; s = layer_.next(s))
      copies += ranks_.host[ranks_.rank(s)] == ranks_.host[rank];
    return copies;
  }

  void prepare() {
    copies_ = counts(layer_);
    order_.resize(ranks_.experts);
    for (int e = 0; e < ranks_.experts; ++e) order_[e] = e;
    std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return size(a) > size(b); });
    for (int e = 0; e < ranks_.experts; ++e)
      for (int s = layer_.first(e); s != kNone; s = layer_.next(s)) load_[ranks_.rank(s)] += size(e);
  }

  double size(int expert) const { return layer_.demand(expert) / std::max(copies_[expert], 1); }

  void place_roomiest(int expert, double size) {
    std::map<int, int> room;
    for (int r = 0; r < ranks_.count; ++r)
      if (ranks_.capacity[r] > 0) room[ranks_.domain[r]] += free_[r];
    int best = kNone;
    for (int r = 0; r < ranks_.count; ++r) {
      if (free_[r] == 0 || layer_.holds(r, expert) || !spreads(expert, r)) continue;
      auto key = [&](int x) { return std::pair(-room[ranks_.domain[x]], load_[x] / ranks_.speed[x]); };
      if (best == kNone || key(r) < key(best)) best = r;
    }
    if (best != kNone) take(free_slot(best), expert, size);
  }

  bool place(int expert, double size) {
    int best = kNone;
    double lowest = 0;
    for (int r = 0; r < ranks_.count; ++r) {
      if (free_[r] == 0 || layer_.holds(r, expert)) continue;
      const double pressure = (load_[r] + size * (1 + kTogether * together(expert, r))) / ranks_.speed[r];
      if (best != kNone && pressure >= lowest) continue;
      if (!spreads(expert, r)) continue;
      best = r;
      lowest = pressure;
    }
    if (best == kNone) return make_room(expert, size);
    take(free_slot(best), expert, size);
    return true;
  }

  int least_pressed(const std::vector<int>& among) const {
    int best = kNone;
    for (const int r : among)
      if (free_[r] > 0 && (best == kNone || load_[r] / ranks_.speed[r] < load_[best] / ranks_.speed[best])) best = r;
    return best;
  }

  int free_slot(int rank) const {
    int s = rank * ranks_.width;
    while (layer_.expert(s) != kNone) ++s;
    return s;
  }

  void take(int slot, int expert, double size) {
    layer_.hold(slot, expert);
    --free_[ranks_.rank(slot)];
    load_[ranks_.rank(slot)] += size;
  }

  // Only ranks that may not take the expert have a slot left: another expert moves there and leaves its own.
  bool make_room(int expert, double size) {
    for (int r = 0; r < ranks_.count; ++r) {
      if (free_[r] == 0) continue;
      for (int s = 0; s < ranks_.slots(); ++s) {
        const int other = layer_.expert(s), rank = ranks_.rank(s);
        if (other == kNone || layer_.fixed[s] || rank == r || layer_.holds(rank, expert) || layer_.holds(r, other))
          continue;
        if (!spreads(expert, rank) || !keeps(other, s, r)) continue;
        layer_.drop(s);
        layer_.hold(free_slot(r), other);
        --free_[r];
        ++free_[rank];
        take(s, expert, size);
        return true;
      }
    }
    return false;
  }

  bool keeps(int expert, int slot, int rank) const {
    const int without = layer_.domains(expert, slot);
    if (ranks_.copies < 2 || without >= ranks_.copies) return true;
    return without + !layer_.in_domain(expert, ranks_.domain[rank], slot) >= std::min(layer_.domains(expert), ranks_.copies);
  }

  Layer& layer_;
  const Ranks& ranks_;
  std::vector<int> free_, copies_, order_;
  std::vector<double> load_;
};

}  // namespace

void pack_plainly(Layer& layer) {
  Packer(layer).run_plainly();
  fill(layer, layer.ranks().slots());
}

int pack(Layer& layer) {
  const Ranks& ranks = layer.ranks();
  auto short_of = [&] {
    int missing = 0;
    for (int e = 0; e < ranks.experts; ++e) missing += layer.wanted(e) && layer.domains(e) < ranks.copies;
    return missing;
  };
  const Layer nothing = layer;
  Packer(layer).run();
  if (short_of() == 0) return 0;
  layer = nothing;
  Packer(layer).run_safely();
  return short_of();
}

}  // namespace planner
