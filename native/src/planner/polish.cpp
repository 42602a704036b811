// Changes that write no slot more than are written already.
#include <random>
#include <vector>

#include "energy.hpp"
#include "search.hpp"

namespace planner {

namespace {

constexpr int kSweeps = 8;   // most end after two or three
constexpr int kKicks = 3;    // changes in one disturbance: fewer are undone by the next sweep
constexpr double kUnknown = -1;  // no energy is negative

class Polisher {
 public:
  Polisher(Layer& layer, double tolerance)
      : layer_(layer), ranks_(layer.ranks()), tolerance_(tolerance), worthwhile_(kWorthwhile * energy(layer)) {}

  void run() {
    for (int sweep = 0; sweep < kSweeps && layer_.worst() > layer_.ideal() * (1 + tolerance_); ++sweep) {
      const bool changed = exchange_all();
      layer_.settle(kSearching);
      if (!changed) return;
    }
  }

  void search(int tries) {
    layer_.settle(kSearching);
    Layer best = layer_, current = layer_;
    double lowest = layer_.worst(), least = total();
    std::minstd_rand random;  // the same for every layer: equal arguments give equal bytes
    for (int n = 0; n < tries && lowest > layer_.ideal() * (1 + tolerance_); ++n) {
      for (int kick = 0; kick < kKicks; ++kick) disturb(random);
      layer_.settle(kSearching);
      run();
      if (layer_.worst() < lowest * (1 - 1e-6)) {
        lowest = layer_.worst();
        best = layer_;
      }
      // Where several ranks are the most pressed ones, the worst falls only when the last of them is relieved.
      const double now = total();
      if (now < least) {
        least = now;
        current = layer_;
      } else {
        layer_ = current;
      }
    }
    layer_ = best;
  }

  double total() const {
    double sum = 0;
    for (int r = 0; r < ranks_.count; ++r) sum += energy(layer_.load(r), ranks_.speed[r]);
    return sum;
  }

 private:
  bool exchange_all() {
    bool changed = false;
    list();
    for (std::size_t i = 0; i < written_.size(); ++i) {
      const int b = written_[i];
      for (std::size_t j = i + 1; j < written_.size() && layer_.written(b); ++j)
        if (layer_.written(written_[j])) changed |= exchange(written_[j], b);
      if (layer_.written(b)) changed |= give_back(b) || send_on(b);
    }
    return changed;
  }

  // What a sweep looks at. A change in the middle of it makes entries obsolete, which is seen when they are used, and
  // adds some, which the next sweep sees.
  void list() {
    written_.clear();
    spare_.clear();
    for (int s = 0; s < ranks_.slots(); ++s) {
      if (layer_.written(s)) written_.push_back(s);
      else if (layer_.expert(s) != kNone && layer_.copies(layer_.expert(s)) > 1) spare_.push_back(s);
    }
    forget();
  }

  // What was worked out of the loads holds until one changes.
  void forget() {
    now_.assign(ranks_.count, kUnknown);
    harm_.assign(spare_.size(), kUnknown);
  }

  bool exchange(int a, int b) {
    const int ra = ranks_.rank(a), rb = ranks_.rank(b);
    const double delta = layer_.share(a) - layer_.share(b);
    const double gain = saved(ra, -delta) + saved(rb, delta);
    if (gain <= worthwhile_ || !exchangeable(a, b)) return false;
    layer_.swap(a, b);
    forget();
    return true;
  }

  bool exchangeable(int a, int b) const {
    const int ra = ranks_.rank(a), rb = ranks_.rank(b);
    if (ra == rb || layer_.fixed[a] || layer_.fixed[b]) return false;
    const int one = layer_.expert(a), other = layer_.expert(b);
    return !layer_.holds(ra, other) && !layer_.holds(rb, one) && spreads(layer_, one, a, rb) &&
           spreads(layer_, other, b, ra);
  }

  // Another copy of what the slot had may be the one that makes room: then the slot keeps what it had.
  bool give_back(int b) {
    const int back = layer_.resident[b];
    if (back == kNone) return false;
    for (int a = layer_.first(back); a != kNone; a = layer_.next(a))
      if (!layer_.written(a) && exchange(a, b)) return true;
    return false;
  }

  // A copy of something else may be: the expert is loaded there instead, and the slot keeps what it had.
  bool send_on(int from) {
    if (layer_.copies(layer_.expert(from)) != 1) return false;
    const double demand = layer_.share(from), relieved = saved(ranks_.rank(from), -demand);
    for (std::size_t i = 0; i < spare_.size(); ++i) {
      const int to = spare_[i];
      const double most = relieved + saved(ranks_.rank(to), demand - layer_.share(to));  // others can only lose by it
      if (most <= worthwhile_ || !sendable(from, to) || most - harm(i) <= worthwhile_) continue;
      send(from, to);
      forget();
      return true;
    }
    return false;
  }

  // Energy that the others lose if the i-th spare copy goes: the same for whatever comes.
  double harm(std::size_t i) {
    if (harm_[i] == kUnknown) harm_[i] = displaced(layer_, spare_[i]);
    return harm_[i];
  }

  bool sendable(int from, int to) const {
    if (!ranks_.usable(to) || layer_.written(to) || layer_.expert(to) == kNone || layer_.fixed[from]) return false;
    const int expert = layer_.expert(from), back = layer_.resident[from];
    const int source = ranks_.rank(from), target = ranks_.rank(to);
    if (source == target || layer_.copies(expert) != 1 || !removable(layer_, to, true)) return false;
    return back == kNone || (!layer_.holds(source, back) && layer_.expert(to) != back);
  }

  void send(int from, int to) {
    const int back = layer_.resident[from];
    put(layer_, to, layer_.expert(from));
    layer_.drop(from);
    if (back == kNone) return;
    layer_.hold(from, back);
    layer_.level(back);
  }

  void disturb(std::minstd_rand& random) {
    list();
    if (written_.empty()) return;
    const int from = written_[random() % written_.size()];
    if (random() % 2 == 0) {
      const int other = written_[random() % written_.size()];
      if (exchangeable(from, other)) layer_.swap(from, other);
      return;
    }
    std::vector<int> targets;
    for (const int s : spare_)
      if (sendable(from, s)) targets.push_back(s);
    if (!targets.empty()) send(from, targets[random() % targets.size()]);
  }

  // Energy that a rank saves when its load changes by `delta`.
  double saved(int rank, double delta) {
    if (now_[rank] == kUnknown) now_[rank] = energy(layer_.load(rank), ranks_.speed[rank]);
    return now_[rank] - energy(layer_.load(rank) + delta, ranks_.speed[rank]);
  }

  Layer& layer_;
  const Ranks& ranks_;
  double tolerance_, worthwhile_;
  std::vector<int> written_, spare_;  // slots
  std::vector<double> now_;           // by rank: its energy
  std::vector<double> harm_;          // by spare_
};

}  // namespace

bool spreads(const Layer& layer, int expert, int slot, int rank) {
  const Ranks& ranks = layer.ranks();
  if (ranks.copies < 2 || layer.copies(expert) < 2) return true;
  const int without = layer.domains(expert, slot);
  if (without >= ranks.copies) return true;
  return without + !layer.in_domain(expert, ranks.domain[rank], slot) >= layer.domains(expert);
}

void polish(Layer& layer, double tolerance) { Polisher(layer, tolerance).run(); }

void refine(Layer& layer, double tolerance, int tries) { Polisher(layer, tolerance).search(tries); }

}  // namespace planner
