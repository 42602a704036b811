#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#include "energy.hpp"
#include "search.hpp"

namespace planner {

double displaced(const Layer& layer, int slot) {
  const double share = layer.share(slot);
  if (share <= 0) return 0;
  double lowest = std::numeric_limits<double>::infinity(), speed = 0;
  const Ranks& ranks = layer.ranks();
  for (int s = layer.first(layer.expert(slot)); s != kNone; s = layer.next(s)) {
    if (s == slot) continue;
    lowest = std::min(lowest, layer.pressure(ranks.rank(s)));
    speed += ranks.speed[ranks.rank(s)];
  }
  return energy(lowest * speed + share, speed) - energy(lowest * speed, speed);
}

void put(Layer& layer, int slot, int expert) {
  if (layer.expert(slot) != kNone) layer.drop(slot);
  layer.hold(slot, expert);
  layer.level(expert);
}

bool removable(const Layer& layer, int slot, bool strict) {
  const int expert = layer.expert(slot);
  if (expert == kNone) return true;
  if (layer.fixed[slot] || layer.copies(expert) < 2) return false;
  if (!strict || layer.ranks().copies < 2) return true;
  return layer.domains(expert, slot) >= layer.domains(expert);
}

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// Writing the same rank twice doubles its transfer time: a nudge between slots that are otherwise equally good.
double queueing(const Layer& layer, int writes) { return 0.02 * energy(layer) * writes; }

int writes_on(const Layer& layer, int rank) {
  const int width = layer.ranks().width;
  int writes = 0;
  for (int s = rank * width; s < (rank + 1) * width; ++s) writes += layer.written(s);
  return writes;
}

// The slot where one more copy of `expert` costs least, for an expert that brings `demand` with it.
int cheapest_slot(const Layer& layer, int expert, double demand, bool strict, bool spread) {
  const Ranks& ranks = layer.ranks();
  double best = kNever;
  int where = kNone;
  for (int r = 0; r < ranks.count; ++r) {
    if (ranks.capacity[r] == 0 || layer.holds(r, expert)) continue;
    if (spread && layer.in_domain(expert, ranks.domain[r])) continue;
    const double before = energy(layer.load(r), ranks.speed[r]) - queueing(layer, writes_on(layer, r));
    for (int s = r * ranks.width; s < r * ranks.width + ranks.capacity[r]; ++s) {
      double cost = -before;
      if (layer.expert(s) == kNone) {
        cost += energy(layer.load(r) + demand, ranks.speed[r]);
        if (layer.resident[s] == expert) cost = -kNever;  // it is there already: nothing to move
      } else {
        if (!removable(layer, s, strict)) continue;
        cost += energy(layer.load(r) - layer.share(s) + demand, ranks.speed[r]) + displaced(layer, s);
      }
      if (cost < best) best = cost, where = s;
    }
  }
  return where;
}

std::vector<int> by_demand(const Layer& layer, auto&& wanted) {
  std::vector<int> experts;
  for (int e = 0; e < layer.ranks().experts; ++e)
    if (wanted(e)) experts.push_back(e);
  std::stable_sort(experts.begin(), experts.end(),
                   [&](int a, int b) { return layer.demand(a) > layer.demand(b); });
  return experts;
}


// Where the orphans go and which redundant copies make room for them, decided at once. The slots that are there are
// packed anew, except that an expert with copies may only be where it is: longest first, least pressed rank first.
class Repacker {
 public:
  explicit Repacker(Layer& layer) : layer_(layer), ranks_(layer.ranks()), room_(ranks_.count), load_(ranks_.count) {
    for (int r = 0; r < ranks_.count; ++r) room_[r] = ranks_.capacity[r];
  }

  // False: it ran into a dead end and nothing was changed.
  bool run(const std::vector<int>& orphans) {
    if (!count(static_cast<int>(std::ssize(orphans)))) return false;
    std::vector<int> order;
    for (int e = 0; e < ranks_.experts; ++e) {
      const bool all = keep_[e] == layer_.copies(e);
      if (keep_[e] > 0 && all && layer_.copies(e) > 0) keep_all(e);
      else if (keep_[e] > 0) order.push_back(e);
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return size(a) > size(b); });
    for (const int e : order)
      if (!(layer_.copies(e) > 0 ? keep_best(e) : settle_on(e))) return false;
    carry_out();
    return true;
  }

 private:
  double size(int expert) const { return layer_.demand(expert) / keep_[expert]; }

  // Water-filling in reverse: whose copies are lightest gives one up, until everyone has a slot.
  bool count(int orphans) {
    keep_.assign(ranks_.experts, 0);
    int slots = 0;
    for (int r = 0; r < ranks_.count; ++r) slots += ranks_.capacity[r];
    int excess = orphans - slots;
    std::vector<int> floor(ranks_.experts, 1);
    for (int e = 0; e < ranks_.experts; ++e) {
      keep_[e] = layer_.copies(e);
      excess += keep_[e];
      if (ranks_.copies > 1 && layer_.domains(e) > 1) floor[e] = 2;
      int pinned = 0;
      for (int s = layer_.first(e); s != kNone; s = layer_.next(s)) pinned += layer_.fixed[s];
      floor[e] = std::max(floor[e], pinned);
    }
    excess = give_up(excess, floor);
    if (excess > 0) {  // coverage outranks survivability
      for (int& least : floor) least = least == 2 ? 1 : least;
      excess = give_up(excess, floor);
    }
    for (int e = 0; e < ranks_.experts; ++e)
      if (keep_[e] == 0 && layer_.wanted(e)) keep_[e] = 1;
    return excess <= 0;
  }

  int give_up(int excess, const std::vector<int>& floor) {
    using Item = std::pair<double, int>;
    std::priority_queue<Item, std::vector<Item>, std::greater<>> lightest;
    auto offer = [&](int e) {
      if (keep_[e] > floor[e]) lightest.emplace(layer_.demand(e) / (keep_[e] - 1), e);
    };
    for (int e = 0; e < ranks_.experts; ++e) offer(e);
    for (; excess > 0 && !lightest.empty(); --excess) {
      const int e = lightest.top().second;
      lightest.pop();
      --keep_[e];
      offer(e);
    }
    return excess;
  }

  void take(int rank, double size) {
    --room_[rank];
    load_[rank] += size;
  }

  void keep_all(int expert) {
    for (int s = layer_.first(expert); s != kNone; s = layer_.next(s)) {
      kept_.push_back(s);
      take(ranks_.rank(s), size(expert));
    }
  }

  // Of the copies there are, those on the least pressed ranks; the second one in another failure domain if need be.
  bool keep_best(int expert) {
    std::vector<int> slots;
    for (int s = layer_.first(expert); s != kNone; s = layer_.next(s)) slots.push_back(s);
    std::sort(slots.begin(), slots.end());
    const bool apart = ranks_.copies > 1 && keep_[expert] > 1 && layer_.domains(expert) > 1;
    int domain = kNone;
    bool spread = !apart;
    for (int n = 0; n < keep_[expert]; ++n) {
      int best = kNone;
      for (const int s : slots) {
        const int r = ranks_.rank(s);
        if (room_[r] <= 0) continue;
        if (!spread && n > 0 && ranks_.domain[r] == domain) continue;
        auto key = [&](int x) { return std::pair(!layer_.fixed[x], load_[ranks_.rank(x)] / ranks_.speed[ranks_.rank(x)]); };
        if (best == kNone || key(s) < key(best)) best = s;
      }
      if (best == kNone) return n > 0 && spread;  // one copy fewer than hoped for
      if (n > 0 && ranks_.domain[ranks_.rank(best)] != domain) spread = true;
      domain = ranks_.domain[ranks_.rank(best)];
      kept_.push_back(best);
      take(ranks_.rank(best), size(expert));
      slots.erase(std::find(slots.begin(), slots.end(), best));
    }
    return true;
  }

  bool settle_on(int expert) {
    int best = kNone;
    for (int r = 0; r < ranks_.count; ++r) {
      if (room_[r] <= 0) continue;
      if (best == kNone || load_[r] / ranks_.speed[r] < load_[best] / ranks_.speed[best]) best = r;
    }
    if (best == kNone) return false;
    take(best, size(expert));
    orphans_.emplace_back(best, expert);
    return true;
  }

  // Orphans overwrite free slots first, then what is not kept; what they do not need stays as it is.
  void carry_out() {
    std::vector<char> kept(ranks_.slots(), 0);
    for (const int s : kept_) kept[s] = 1;
    for (const auto& [rank, expert] : orphans_) {
      int where = kNone;
      for (int s = rank * ranks_.width; s < rank * ranks_.width + ranks_.capacity[rank]; ++s) {
        if (kept[s]) continue;
        auto key = [&](int x) {
          const int held = layer_.expert(x);
          return held == kNone ? -1.0 : layer_.demand(held) / layer_.copies(held);
        };
        if (where == kNone || key(s) < key(where)) where = s;
      }
      kept[where] = 1;
      put(layer_, where, expert);
    }
  }

  Layer& layer_;
  const Ranks& ranks_;
  std::vector<int> room_, keep_, kept_;
  std::vector<double> load_;
  std::vector<std::pair<int, int>> orphans_;
};

// Experts that are loaded but not routed to come back for nothing.
void recall(Layer& layer) {
  const Ranks& ranks = layer.ranks();
  for (int s = 0; s < ranks.slots(); ++s) {
    const int kept = layer.resident[s];
    if (!ranks.usable(s) || layer.expert(s) != kNone || kept == kNone) continue;
    if (layer.copies(kept) == 0 && layer.wanted(kept)) put(layer, s, kept);
  }
}

}  // namespace

int cover(Layer& layer) {
  recall(layer);
  const std::vector<int> orphans = by_demand(layer, [&](int x) { return layer.copies(x) == 0 && layer.wanted(x); });
  if (orphans.empty() || Repacker(layer).run(orphans)) return 0;
  int left = 0;
  for (const int e : orphans) {
    int slot = cheapest_slot(layer, e, layer.demand(e), true, false);
    if (slot == kNone) slot = cheapest_slot(layer, e, layer.demand(e), false, false);
    if (slot == kNone) ++left;
    else put(layer, slot, e);
  }
  return left;
}

int survive(Layer& layer, int budget) {
  const int target = layer.ranks().copies;
  if (target < 2) return 0;
  int written = 0;
  for (const int e : by_demand(layer, [&](int x) { return layer.domains(x) < target; })) {
    if (layer.copies(e) == 0) continue;
    // Half of the load will move there: that is what the slot has to bear.
    const int slot = cheapest_slot(layer, e, layer.demand(e) / (layer.copies(e) + 1), true, true);
    if (slot == kNone) continue;
    const int cost = layer.resident[slot] != e;
    if (written + cost > budget) continue;
    put(layer, slot, e);
    written += cost;
  }
  return written;
}

int fill(Layer& layer, int budget) {
  const Ranks& ranks = layer.ranks();
  int written = 0;
  for (int s = 0; s < ranks.slots(); ++s) {
    if (!ranks.usable(s) || layer.expert(s) != kNone) continue;
    const int rank = ranks.rank(s);
    int best = kNone;
    for (int e = 0; e < ranks.experts; ++e) {
      if (layer.copies(e) == 0 || layer.holds(rank, e)) continue;
      // A copy in a new failure domain saves a transfer at the next loss; among those, the fullest copies first.
      auto worth = [&](int x) {
        return std::pair(!layer.in_domain(x, ranks.domain[rank]) && layer.domains(x) < 2,
                         layer.demand(x) / layer.copies(x));
      };
      if (best == kNone || worth(e) > worth(best)) best = e;
    }
    const int kept = layer.resident[s];
    if (written >= budget && kept != kNone && !layer.holds(rank, kept) && layer.copies(kept) > 0) best = kept;
    if (best == kNone) continue;
    const int cost = layer.resident[s] != best;
    if (written + cost > budget) continue;
    put(layer, s, best);
    written += cost;
  }
  return written;
}

}  // namespace planner
