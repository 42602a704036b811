// Simulated annealing over everything a number of writes can reach.
#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "energy.hpp"
#include "search.hpp"

namespace planner {

namespace {

constexpr double kWarm = 3, kCold = 0.06;  // temperatures; 1: the energy of a rank at the lowest worst pressure yet
constexpr double kHopeless = 15;  // temperatures above the present energy: accepted once in three million times
constexpr int kProposal = 30;     // what a change costs beside settling, in experts levelled; most of it is undoing it
constexpr int kRefused = 3;       // … and a proposal that comes to no change
constexpr int kOver = 1;          // writes beyond the limit on the way: what moved an expert is else never exchanged for another
constexpr double kFine = 4;       // … and what each of them costs, as much as so many ranks at the lowest worst pressure yet
constexpr int kLook = 6;          // ranks among which the most pressed one is sought
enum Kind { kExchange, kSend, kCopy, kTrade, kGiveBack, kKinds };
constexpr std::array<int, kKinds> kMix{15, 40, 10, 20, 15};  // of 100 proposals

class Annealer {
 public:
  Annealer(Layer& layer, const Search& search)
      : layer_(layer), ranks_(layer.ranks()), search_(search), single_(ranks_.count), random_(search.seed) {
    for (int r = 0; r < ranks_.count; ++r)
      if (ranks_.capacity[r] > 0) live_.push_back(r);
  }

  void run() {
    layer_.settle(kSearching);
    Layer best = layer_, current = layer_;
    rescale();
    list();
    double now = total(0);
    const double enough = layer_.ideal() * (1 + search_.tolerance);
    for (long long done = 0; done < search_.work && scale_ > enough;) {
      const double heat = kWarm * std::pow(kCold / kWarm, static_cast<double>(done) / static_cast<double>(search_.work));
      hopeless_ = now + kHopeless * heat;
      changed_ = false;
      cost_ = 0;
      const bool proposed = propose();
      done += changed_ ? kProposal : kRefused;
      if (!changed_) continue;
      if (proposed) done += layer_.settle(kSearching);
      const double then = total(cost_);
      if (!proposed || (then > now && uniform() >= std::exp((now - then) / heat))) {
        layer_ = current;
        continue;
      }
      now = then;
      current = layer_;
      list();
      if (over(0) > 0 || layer_.worst() >= scale_ * (1 - 1e-6)) continue;
      best = layer_;
      rescale();
      now = total(0);
    }
    layer_ = best;
  }

 private:
  // The energy of the lowest worst rank so far is 1.
  void rescale() {
    scale_ = layer_.worst();
    unit_ = 1 / scale_;
  }

  // As energy(), but much steeper, pressure⁶⁴: here every move is small, and all that counts is how many ranks are near
  // the worst. Where it was less steep, and the end colder, the same work left layers of five slots 0.6 % less even.
  double steep(double pressure) const {
    const double x = pressure * unit_, x2 = x * x, x4 = x2 * x2, x8 = x4 * x4, x16 = x8 * x8, x32 = x16 * x16;
    return x32 * x32;
  }

  // Writes beyond the limit, when so many more are made than are listed.
  int over(int more) const { return std::max(0, static_cast<int>(written_.size()) + more - search_.limit); }

  double total(int more) const {
    double sum = kFine * over(more);
    for (const int r : live_) sum += steep(layer_.pressure(r));
    return sum;
  }

  // What a rank would have at least: experts with other copies may leave it altogether.
  bool hopeless(int slot, int expert) const {
    if (layer_.copies(expert) > 1) return false;
    const int rank = ranks_.rank(slot), gone = layer_.expert(slot);
    const double left = gone != kNone && layer_.copies(gone) == 1 ? layer_.demand(gone) : 0;
    return steep((single_[rank] - left + layer_.demand(expert)) / ranks_.speed[rank]) > hopeless_;
  }

  double uniform() { return static_cast<double>(random_()) / static_cast<double>(std::minstd_rand::max()); }
  int below(std::size_t n) { return static_cast<int>(random_() % n); }
  int any(const std::vector<int>& of) { return of[below(of.size())]; }
  int slot_on(int rank) { return rank * ranks_.width + below(ranks_.capacity[rank]); }

  void list() {
    written_.clear();
    spare_.clear();
    loose_.clear();
    std::fill(single_.begin(), single_.end(), 0.0);
    for (int s = 0; s < ranks_.slots(); ++s) {
      if (!ranks_.usable(s)) continue;
      const int expert = layer_.expert(s);
      const bool single = expert != kNone && layer_.copies(expert) == 1;
      if (single) single_[ranks_.rank(s)] += layer_.demand(expert);
      if (layer_.written(s)) {
        written_.push_back(s);
        if (!single) loose_.push_back(s);
      } else if (!single && !layer_.fixed[s]) {
        spare_.push_back(s);
      }
    }
  }

  int pressed(int one, int other) const {
    return layer_.pressure(ranks_.rank(one)) >= layer_.pressure(ranks_.rank(other)) ? one : other;
  }

  int pressed_rank() {
    int best = any(live_);
    for (int n = 1; n < kLook; ++n)
      if (const int other = any(live_); layer_.pressure(other) > layer_.pressure(best)) best = other;
    return best;
  }

  bool propose() {
    int pick = below(100);
    int kind = 0;
    while (pick >= kMix[kind]) pick -= kMix[kind++];
    if (written_.empty() && kind != kTrade) kind = kCopy;
    switch (kind) {
      case kExchange: return exchange(pressed(any(written_), any(written_)), any(written_));
      case kSend: return send();
      case kCopy: return copy();
      case kTrade: return trade();
      default: return give_back();
    }
  }

  bool exchangeable(int a, int b) const {
    const int ra = ranks_.rank(a), rb = ranks_.rank(b);
    if (ra == rb || layer_.fixed[a] || layer_.fixed[b]) return false;
    const int one = layer_.expert(a), other = layer_.expert(b);
    if (one == kNone || other == kNone || layer_.holds(ra, other) || layer_.holds(rb, one)) return false;
    return spreads(layer_, one, a, rb) && spreads(layer_, other, b, ra);
  }

  bool exchange(int a, int b) {
    if (!exchangeable(a, b)) return false;
    const int one = layer_.expert(a), other = layer_.expert(b);
    const int cost = (layer_.resident[a] != other) + (layer_.resident[b] != one) - layer_.written(a) - layer_.written(b);
    if (hopeless(a, other) || hopeless(b, one)) return false;
    changed_ = true;
    layer_.swap(a, b);
    return afford(cost, a, b);
  }

  // An expert of a pressed rank against one that is written elsewhere, or any.
  bool trade() {
    const int a = slot_on(pressed_rank());
    return exchange(a, !written_.empty() && below(4) > 0 ? any(written_) : slot_on(any(live_)));
  }

  // Another copy of what the slot had may be the one that makes room: then the slot keeps what it had.
  bool give_back() {
    const int b = any(written_), back = layer_.resident[b];
    if (back == kNone || layer_.copies(back) == 0) return false;
    int a = layer_.first(back);
    for (int n = below(layer_.copies(back)); n > 0; --n) a = layer_.next(a);
    return !layer_.written(a) && exchange(a, b);
  }

  // What is written into one slot is written into another instead.
  bool send() {
    if (spare_.empty()) return false;
    const int from = pressed(any(written_), any(written_)), to = any(spare_), expert = layer_.expert(from);
    if (ranks_.rank(from) == ranks_.rank(to) || !copyable(expert, to)) return false;
    if (!spreads(layer_, expert, from, ranks_.rank(to)) || hopeless(to, expert)) return false;
    changed_ = true;
    cost_ = (layer_.resident[to] != expert) - 1;
    put(layer_, to, expert);
    return restore(from);
  }

  // One more copy of what presses a rank.
  bool copy() {
    const int from = slot_on(pressed_rank()), expert = layer_.expert(from);
    if (expert == kNone || layer_.share(from) <= 0 || spare_.size() + loose_.size() == 0) return false;
    const std::size_t pick = below(spare_.size() + loose_.size());
    const int to = pick < spare_.size() ? spare_[pick] : loose_[pick - spare_.size()];
    if (!copyable(expert, to)) return false;
    const int cost = (layer_.resident[to] != expert) - layer_.written(to);
    changed_ = true;
    put(layer_, to, expert);
    return afford(cost, to, to);
  }

  bool copyable(int expert, int to) const {
    return !layer_.holds(ranks_.rank(to), expert) && removable(layer_, to, true);
  }

  // What a written slot holds goes, and what it had comes back.
  bool restore(int slot) {
    const int back = layer_.resident[slot];
    if (!removable(layer_, slot, true) || (back != kNone && layer_.holds(ranks_.rank(slot), back))) return false;
    layer_.drop(slot);
    if (back == kNone) return true;
    layer_.hold(slot, back);
    layer_.level(back);
    return true;
  }

  // A write too many is made up for by taking back another one, or later.
  bool afford(int cost, int one, int other) {
    cost_ = cost;
    if (cost <= 0 || over(cost) == 0) return true;
    if (over(cost) <= kOver && (loose_.empty() || below(2) == 0)) return true;
    if (over(cost) > kOver + 1 || loose_.empty()) return false;
    const int slot = any(loose_);
    --cost_;
    return slot != one && slot != other && restore(slot);
  }

  Layer& layer_;
  const Ranks& ranks_;
  const Search& search_;
  double scale_ = 0, unit_ = 0;  // the lowest worst pressure so far, and 1 over it
  double hopeless_ = 0;         // energy that no change is accepted with
  bool changed_ = false;        // the proposal has begun to change the layer
  int cost_ = 0;                // … and writes so many slots more
  std::vector<double> single_;  // by rank: load of experts that have no other copy
  std::vector<int> live_;       // ranks
  std::vector<int> written_, spare_, loose_;  // slots: written; not, and free to be; written with a redundant copy
  std::minstd_rand random_;     // seeded alike for every layer: equal arguments give equal bytes
};

}  // namespace

void anneal(Layer& layer, const Search& search) { Annealer(layer, search).run(); }

}  // namespace planner
