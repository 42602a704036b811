#include "search.hpp"

#include <algorithm>
#include <limits>

namespace planner {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kSearching = 1e-4;  // of the ideal pressure: how exactly loads are split while looking for moves
constexpr int kHottest = 3;  // ranks whose experts are candidates for another copy, most pressed first

double energy(double load, double speed) { return load * load / (2 * speed); }

// How much the energy of the *other* ranks grows when a copy's share goes to the copies that remain.
double displaced(const Layer& layer, int slot) {
  const double share = layer.share(slot);
  if (share <= 0) return 0;
  double lowest = kNever, speed = 0;
  const Ranks& ranks = layer.ranks();
  for (int s = layer.first(layer.expert(slot)); s != kNone; s = layer.next(s)) {
    if (s == slot) continue;
    lowest = std::min(lowest, layer.pressure(ranks.rank(s)));
    speed += ranks.speed[ranks.rank(s)];
  }
  return share * lowest + share * share / (2 * speed);
}

// Writing the same rank twice doubles its transfer time: a nudge between slots that are otherwise equally good.
double queueing(const Layer& layer, int writes) { return 0.01 * layer.ideal() * layer.ideal() * writes; }

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

void put(Layer& layer, int slot, int expert) {
  if (layer.expert(slot) != kNone) layer.drop(slot);
  layer.hold(slot, expert);
  layer.level(expert);
}

std::vector<int> by_demand(const Layer& layer, auto&& wanted) {
  std::vector<int> experts;
  for (int e = 0; e < layer.ranks().experts; ++e)
    if (wanted(e)) experts.push_back(e);
  std::stable_sort(experts.begin(), experts.end(),
                   [&](int a, int b) { return layer.demand(a) > layer.demand(b); });
  return experts;
}

}  // namespace

bool removable(const Layer& layer, int slot, bool strict) {
  const int expert = layer.expert(slot);
  if (expert == kNone) return true;
  if (layer.fixed[slot] || layer.copies(expert) < 2) return false;
  if (!strict || layer.ranks().copies < 2) return true;
  return layer.domains(expert, slot) >= layer.domains(expert);
}

int cover(Layer& layer) {
  int left = 0;
  for (const int e : by_demand(layer, [&](int x) { return layer.copies(x) == 0 && layer.wanted(x); })) {
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

namespace {

class Improver {
 public:
  Improver(Layer& layer, const Effort& effort) : layer_(layer), ranks_(layer.ranks()), effort_(effort) {}

  // The best move among those that cost at most `budget`.
  Move best(int budget) {
    move_ = {};
    hottest_ = hottest();
    price_slots();
    for (const int hot : hottest_) {
      copies_from(hot, budget);
      exchanges_with(hot);
    }
    return move_;
  }

 private:
  struct Victim {
    int slot = kNone;
    double harm = 0;  // energy lost by giving it up
    double load = 0;  // of its rank, without it
  };
  struct Base {
    double pressure, load, speed;
  };

  std::vector<int> hottest() const {
    std::vector<int> ranks;
    for (int r = 0; r < ranks_.count; ++r)
      if (ranks_.capacity[r] > 0) ranks.push_back(r);
    const auto top = ranks.begin() + std::min<std::ptrdiff_t>(kHottest, std::ssize(ranks));
    std::partial_sort(ranks.begin(), top, ranks.end(),
                      [&](int a, int b) { return layer_.pressure(a) > layer_.pressure(b); });
    ranks.erase(top, ranks.end());
    return ranks;
  }

  // For each rank the slot that is cheapest to give up, once dearly (cost 1) and once for nothing: a slot that is to be
  // written anyway.
  void price_slots() {
    slots_.clear();
    for (int r = 0; r < ranks_.count; ++r) {
      if (ranks_.capacity[r] == 0) continue;
      Victim clean, written;
      for (int s = r * ranks_.width; s < r * ranks_.width + ranks_.capacity[r]; ++s) {
        if (!removable(layer_, s, true)) continue;
        const bool empty = layer_.expert(s) == kNone;
        const double share = empty ? 0 : layer_.share(s);
        const double harm = empty ? 0
                                  : energy(layer_.load(r) - share, ranks_.speed[r]) -
                                        energy(layer_.load(r), ranks_.speed[r]) + displaced(layer_, s);
        Victim& victim = layer_.written(s) ? written : clean;
        if (victim.slot == kNone || harm < victim.harm) victim = {s, harm, layer_.load(r) - share};
      }
      if (clean.slot != kNone) slots_.push_back(clean);
      if (written.slot != kNone) slots_.push_back(written);
    }
  }

  // How much energy one more copy of `expert` on a rank of load `load` saves.
  double relief(int expert, int rank, double load) {
    bases_.clear();
    bases_.push_back({load / ranks_.speed[rank], load, ranks_.speed[rank]});
    double before = energy(load, ranks_.speed[rank]);
    for (int s = layer_.first(expert); s != kNone; s = layer_.next(s)) {
      const int r = ranks_.rank(s);
      const double base = layer_.load(r) - layer_.share(s);
      before += energy(layer_.load(r), ranks_.speed[r]);
      bases_.push_back({base / ranks_.speed[r], base, ranks_.speed[r]});
    }
    std::sort(bases_.begin(), bases_.end(), [](const Base& a, const Base& b) { return a.pressure < b.pressure; });
    double volume = layer_.demand(expert), speed = 0, level = 0, after = 0;
    std::size_t used = 0;
    for (; used < bases_.size(); ++used) {
      if (speed > 0 && bases_[used].pressure >= level) break;
      volume += bases_[used].load;
      speed += bases_[used].speed;
      level = volume / speed;
    }
    after = volume * volume / (2 * speed);
    for (; used < bases_.size(); ++used) after += energy(bases_[used].load, bases_[used].speed);
    return before - after;
  }

  void copies_from(int hot, int budget) {
    for (int h = hot * ranks_.width; h < hot * ranks_.width + ranks_.capacity[hot]; ++h) {
      const int e = layer_.expert(h);
      if (e == kNone || layer_.share(h) <= 0) continue;
      for (const Victim& victim : slots_) {
        const int rank = ranks_.rank(victim.slot);
        if (layer_.holds(rank, e)) continue;
        const int cost = (layer_.resident[victim.slot] != e) - layer_.written(victim.slot);
        if (cost > budget) continue;
        const double gain = relief(e, rank, victim.load) - victim.harm;
        if (gain > move_.gain) move_ = {Move::Kind::kCopy, gain, cost, h, victim.slot, e};
        if (layer_.written(h) && layer_.copies(e) == 1) shift(h, e, victim, cost);
      }
    }
  }

  // An expert that has to be loaded somewhere may as well be loaded elsewhere: the slot keeps what it has.
  void shift(int from, int expert, const Victim& victim, int cost) {
    const int back = layer_.resident[from], source = ranks_.rank(from), target = ranks_.rank(victim.slot);
    if (!spreads(expert, from, target)) return;
    if (back != kNone && (layer_.holds(source, back) || layer_.expert(victim.slot) == back)) return;
    const double demand = layer_.share(from);
    const double gain = energy(layer_.load(source), ranks_.speed[source]) -
                        energy(layer_.load(source) - demand, ranks_.speed[source]) +
                        energy(victim.load, ranks_.speed[target]) -
                        energy(victim.load + demand, ranks_.speed[target]) - victim.harm;
    if (gain > move_.gain) move_ = {Move::Kind::kShift, gain, cost - 1, from, victim.slot, expert};
  }

  void exchanges_with(int hot) {
    for (int h = hot * ranks_.width; h < hot * ranks_.width + ranks_.capacity[hot]; ++h) {
      const int e = layer_.expert(h);
      if (e == kNone || layer_.fixed[h] || !(effort_.anything || layer_.written(h))) continue;
      for (int r = 0; r < ranks_.count; ++r) {
        if (r == hot || layer_.holds(r, e) || layer_.pressure(r) >= layer_.pressure(hot)) continue;
        for (int s = r * ranks_.width; s < r * ranks_.width + ranks_.capacity[r]; ++s) exchange(h, s, hot, r);
      }
    }
  }

  void exchange(int h, int s, int hot, int rank) {
    const int e = layer_.expert(h), other = layer_.expert(s);
    if (other == kNone || layer_.fixed[s]) return;
    const double delta = layer_.share(h) - layer_.share(s);
    if (delta <= 0 || layer_.holds(hot, other)) return;
    const double gain = energy(layer_.load(hot), ranks_.speed[hot]) -
                        energy(layer_.load(hot) - delta, ranks_.speed[hot]) +
                        energy(layer_.load(rank), ranks_.speed[rank]) -
                        energy(layer_.load(rank) + delta, ranks_.speed[rank]);
    if (gain <= move_.gain || !spreads(e, h, rank) || !spreads(other, s, hot)) return;
    const int cost = (layer_.resident[h] != other) + (layer_.resident[s] != e) - layer_.written(h) - layer_.written(s);
    if (!effort_.anything && cost > 0) return;
    move_ = {Move::Kind::kSwap, gain, cost, h, s, e};
  }

  // Whether an expert that leaves `slot` for `rank` is still in as many failure domains as before, up to the target.
  bool spreads(int expert, int slot, int rank) const {
    const int target = ranks_.copies;
    if (target < 2 || layer_.copies(expert) < 2) return true;
    const int without = layer_.domains(expert, slot);
    if (without >= target) return true;
    return without + !layer_.in_domain(expert, ranks_.domain[rank], slot) >= layer_.domains(expert);
  }

  Layer& layer_;
  const Ranks& ranks_;
  const Effort& effort_;
  Move move_;
  std::vector<int> hottest_;
  std::vector<Victim> slots_;
  std::vector<Base> bases_;
};

void apply(Layer& layer, const Move& move) {
  if (move.kind == Move::Kind::kCopy) return put(layer, move.to, move.expert);
  if (move.kind == Move::Kind::kSwap) return layer.swap(move.from, move.to);
  const int back = layer.resident[move.from];
  put(layer, move.to, move.expert);
  layer.drop(move.from);
  if (back == kNone) return;
  layer.hold(move.from, back);
  layer.level(back);
}

}  // namespace

void improve(Layer& layer, const Effort& effort, Frontier* frontier) {
  layer.settle(kSearching);
  Layer best = layer;
  double lowest = layer.worst();
  int spent = 0, best_spent = 0, stalled = 0;
  auto record = [&](int cost, double worst) {
    if (frontier == nullptr) return;
    while (static_cast<int>(frontier->states.size()) <= cost) {
      frontier->states.push_back(best);
      frontier->worst.push_back(lowest);
    }
    for (std::size_t k = cost; k < frontier->worst.size(); ++k) {
      if (frontier->worst[k] <= worst) continue;
      frontier->states[k] = layer;
      frontier->worst[k] = worst;
    }
  };
  record(0, lowest);
  Improver improver(layer, effort);
  for (int round = 0; round < effort.rounds && lowest > layer.ideal() * (1 + effort.tolerance); ++round) {
    const Move move = improver.best(effort.budget - spent);
    if (move.kind == Move::Kind::kNothing || move.gain <= 1e-9 * layer.ideal() * layer.ideal()) break;
    apply(layer, move);
    layer.settle(kSearching);
    spent += move.cost;
    const double worst = layer.worst();
    if (worst < lowest * (1 - 1e-6)) {
      record(spent, worst);
      lowest = worst;
      best = layer;
      best_spent = spent;
      stalled = 0;
    } else if (++stalled >= effort.patience) {
      break;
    }
  }
  if (spent != best_spent || stalled > 0) layer = best;
}

}  // namespace planner
