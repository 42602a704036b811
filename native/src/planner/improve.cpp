#include <algorithm>
#include <vector>

#include "energy.hpp"
#include "search.hpp"

namespace planner {

namespace {

constexpr int kHottest = 3;  // ranks whose experts are candidates for another copy, most pressed first

class Improver {
 public:
  Improver(Layer& layer, const Effort& effort)
      : layer_(layer),
        ranks_(layer.ranks()),
        effort_(effort),
        worthwhile_(kWorthwhile * energy(layer)),
        energy_(ranks_.count) {}

  // The best move among those that cost at most `budget`.
  Move best(int budget) {
    move_ = {};
    hottest_ = hottest();
    for (int r = 0; r < ranks_.count; ++r) energy_[r] = energy(layer_.load(r), ranks_.speed[r]);
    price_slots();
    for (const int hot : hottest_) {
      copies_from(hot, budget);
      exchanges_with(hot, budget);
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
    double pressure, load, speed, energy;
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
                                  : energy(layer_.load(r) - share, ranks_.speed[r]) - energy_[r] +
                                        displaced(layer_, s);
        Victim& victim = layer_.written(s) ? written : clean;
        if (victim.slot == kNone || harm < victim.harm) victim = {s, harm, layer_.load(r) - share};
      }
      if (clean.slot != kNone) slots_.push_back(clean);
      if (written.slot != kNone) slots_.push_back(written);
    }
  }

  // The ranks that have a copy of `expert`, each without it, least pressed first.
  void list_bases(int expert) {
    bases_.clear();
    held_.clear();
    for (int s = layer_.first(expert); s != kNone; s = layer_.next(s)) {
      const int r = ranks_.rank(s);
      const double base = layer_.load(r) - layer_.share(s), speed = ranks_.speed[r];
      bases_.push_back({base / speed, base, speed, energy(base, speed)});
      held_.push_back(energy_[r]);
    }
    std::sort(bases_.begin(), bases_.end(), [](const Base& a, const Base& b) { return a.pressure < b.pressure; });
  }

  // How much energy one more copy of the expert whose bases are listed saves on a rank of load `load`: the least pressed
  // of them all are filled up to one level.
  double relief(int expert, int rank, double load) const {
    const double own = ranks_.speed[rank];
    const Base other{load / own, load, own, energy(load, own)};
    double before = other.energy, volume = layer_.demand(expert), speed = 0, level = 0;
    for (const double now : held_) before += now;
    auto filled = [&](const Base& base) {
      if (speed > 0 && base.pressure >= level) return false;
      volume += base.load;
      speed += base.speed;
      level = volume / speed;
      return true;
    };
    auto base = bases_.begin();
    while (base != bases_.end() && base->pressure < other.pressure && filled(*base)) ++base;
    const bool used = filled(other);
    while (used && base != bases_.end() && filled(*base)) ++base;
    double after = energy(volume, speed) + (used ? 0 : other.energy);
    for (; base != bases_.end(); ++base) after += base->energy;
    return before - after;
  }

  void copies_from(int hot, int budget) {
    for (int h = hot * ranks_.width; h < hot * ranks_.width + ranks_.capacity[hot]; ++h) {
      const int e = layer_.expert(h);
      if (e == kNone || layer_.share(h) <= 0) continue;
      list_bases(e);
      for (const Victim& victim : slots_) {
        const int rank = ranks_.rank(victim.slot);
        if (layer_.holds(rank, e)) continue;
        const int cost = (layer_.resident[victim.slot] != e) - layer_.written(victim.slot);
        if (cost > budget) continue;
        const double gain = relief(e, rank, victim.load) - victim.harm;
        if (better(gain, cost)) move_ = {Move::Kind::kCopy, gain, cost, h, victim.slot, e};
        if (layer_.written(h) && layer_.copies(e) == 1) shift(h, e, victim, cost);
      }
    }
  }

  // An expert that has to be loaded somewhere may as well be loaded elsewhere: the slot keeps what it has.
  void shift(int from, int expert, const Victim& victim, int cost) {
    const int back = layer_.resident[from], source = ranks_.rank(from), target = ranks_.rank(victim.slot);
    if (!spreads(layer_, expert, from, target)) return;
    if (back != kNone && (layer_.holds(source, back) || layer_.expert(victim.slot) == back)) return;
    const double demand = layer_.share(from);
    const double gain = energy_[source] - energy(layer_.load(source) - demand, ranks_.speed[source]) +
                        energy(victim.load, ranks_.speed[target]) -
                        energy(victim.load + demand, ranks_.speed[target]) - victim.harm;
    if (better(gain, cost - 1)) move_ = {Move::Kind::kShift, gain, cost - 1, from, victim.slot, expert};
  }

  void exchanges_with(int hot, int budget) {
    for (int h = hot * ranks_.width; h < hot * ranks_.width + ranks_.capacity[hot]; ++h) {
      const int e = layer_.expert(h);
      if (e == kNone || layer_.fixed[h]) continue;
      for (int r = 0; r < ranks_.count; ++r) {
        if (r == hot || layer_.holds(r, e) || layer_.pressure(r) >= layer_.pressure(hot)) continue;
        for (int s = r * ranks_.width; s < r * ranks_.width + ranks_.capacity[r]; ++s) exchange(h, s, hot, r, budget);
      }
    }
  }

  void exchange(int h, int s, int hot, int rank, int budget) {
    const int e = layer_.expert(h), other = layer_.expert(s);
    if (other == kNone || layer_.fixed[s]) return;
    const double delta = layer_.share(h) - layer_.share(s);
    if (delta <= 0 || layer_.holds(hot, other)) return;
    const double relieved = energy_[hot] - energy(layer_.load(hot) - delta, ranks_.speed[hot]);
    if (effort_.anything && relieved <= move_.gain) return;  // what the other rank takes on only lessens it
    const double gain = relieved + energy_[rank] - energy(layer_.load(rank) + delta, ranks_.speed[rank]);
    if (gain <= worthwhile_) return;
    const int cost = (layer_.resident[h] != other) + (layer_.resident[s] != e) - layer_.written(h) - layer_.written(s);
    if (cost > (effort_.relocate ? budget : 0) && !effort_.anything) return;
    if (!better(gain, cost) || !spreads(layer_, e, h, rank) || !spreads(layer_, other, s, hot)) return;
    move_ = {Move::Kind::kSwap, gain, cost, h, s, e};
  }

  // More gain for each slot written; what costs nothing counts as half a write.
  bool better(double gain, int cost) const {
    if (gain <= 0) return false;
    if (effort_.anything) return gain > move_.gain;
    return gain * std::max<double>(move_.cost, 0.5) > move_.gain * std::max<double>(cost, 0.5);
  }

  Layer& layer_;
  const Ranks& ranks_;
  const Effort& effort_;
  Move move_;
  double worthwhile_;
  std::vector<double> energy_;  // by rank, now
  std::vector<int> hottest_;
  std::vector<Victim> slots_;
  std::vector<Base> bases_;
  std::vector<double> held_;  // energy of their ranks, now
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
  Improver improver(layer, effort);
  if (!effort.anything) {
    polish(layer, effort.tolerance);
    lowest = layer.worst();
    best = layer;
  }
  record(0, lowest);
  // Without a budget polish() has done all there is.
  const int rounds = effort.budget == 0 ? 0 : effort.rounds;
  for (int round = 0; round < rounds && lowest > layer.ideal() * (1 + effort.tolerance); ++round) {
    const Move move = improver.best(effort.budget - spent);
    if (move.kind == Move::Kind::kNothing || move.gain <= kWorthwhile * energy(layer)) break;
    apply(layer, move);
    layer.settle(kSearching);
    if (frontier != nullptr) polish(layer, effort.tolerance);
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
