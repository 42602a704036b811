// Who gets which part of a budget of writes: the layer that is furthest from what it could be, one write at a time.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "parallel.hpp"
#include "search.hpp"

namespace planner {

namespace {

constexpr long long kBid = 600'000;     // experts levelled to see what one write more gains
constexpr long long kLast = 4'000'000;  // … and with all that a layer got
constexpr int kCredit = 5;      // writes in a row that may gain nothing: some gain only together
constexpr double kGain = 1e-3;  // of the worst pressure: less is nothing
constexpr int kAtOnce = 3;      // one in so many layers bids in each round
constexpr double kWorst = 1.03;  // over the highest floor: a layer further up is what the whole instance waits for

// A pressure at which the copies that the experts need take all slots there are: a guide, not a bound, to what more
// writes can do. Each copy of an expert shares its rank with at least the lightest ones.
double lowest_floor(const Layer& layer) {
  const Ranks& ranks = layer.ranks();
  const int slots = std::accumulate(ranks.capacity.begin(), ranks.capacity.end(), 0);
  const int width = *std::max_element(ranks.capacity.begin(), ranks.capacity.end());
  double lightest = std::numeric_limits<double>::infinity(), heaviest = 0, fastest = 0;
  for (int e = 0; e < ranks.experts; ++e) {
    lightest = std::min(lightest, layer.demand(e));
    heaviest = std::max(heaviest, layer.demand(e));
  }
  for (int r = 0; r < ranks.count; ++r)
    if (ranks.capacity[r] > 0) fastest = std::max(fastest, ranks.speed[r]);
  auto fits = [&](double pressure) {
    const double room = pressure * fastest - (width - 1) * lightest;
    if (room <= 0) return false;
    double needed = 0;
    for (int e = 0; e < ranks.experts; ++e) needed += std::max(1.0, std::ceil(layer.demand(e) / room - 1e-9));
    return needed <= slots;
  };
  double low = layer.ideal(), high = std::max(low, (heaviest + width * lightest) / fastest);
  if (fits(low)) return low;
  for (int n = 0; n < 30; ++n) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return high;
}

class Bidder {
 public:
  Bidder(Layer& layer, double tolerance, int most)
      : layer_(layer), tolerance_(tolerance), floor_(lowest_floor(layer)), base_(layer.moves()), limit_(base_) {
    Effort effort;
    effort.tolerance = tolerance;
    effort.relocate = true;
    effort.budget = most;
    effort.patience = 40;
    Layer ahead = layer;
    improve(ahead, effort, &greedy_);
  }

  // Searches with what it has, from the better of what it found before and what the greedy way finds for as much.
  void search(long long work) {
    const int more = limit_ - base_;
    if (more < std::ssize(greedy_.worst) && greedy_.worst[more] < layer_.worst()) layer_ = greedy_.states[more];
    const double before = layer_.worst();
    anneal(layer_, {limit_, tolerance_, work});
    credit_ = layer_.worst() < before * (1 - kGain) ? 0 : credit_ + 1;
  }

  bool done() const {
    return layer_.worst() <= layer_.ideal() * (1 + tolerance_) || (credit_ >= kCredit && !greedy_gains());
  }
  double floor() const { return floor_ / ideal(); }
  double ratio() const { return layer_.worst() / ideal(); }
  double need(double highest_floor) const {
    const double whole = ratio() / highest_floor;
    return whole > kWorst ? 10 * whole : ratio() / floor();
  }

  void grant() { ++limit_; }

  // Gives up what it has not used. Returns how much that is.
  int settle_up() {
    const int unused = limit_ - layer_.moves();
    limit_ -= unused;
    return unused;
  }

 private:
  // Whether the greedy way gets further with more writes.
  bool greedy_gains() const {
    const bool more = limit_ - base_ + 1 < std::ssize(greedy_.worst);
    return more && greedy_.worst.back() < layer_.worst() * (1 - kGain);
  }

  double ideal() const { return std::max(layer_.ideal(), 1e-300); }

  Layer& layer_;
  double tolerance_, floor_;
  int base_, limit_, credit_ = 0;
  Frontier greedy_;
};

}  // namespace

long long auction(const std::vector<Layer*>& layers, long long budget, double tolerance, int threads) {
  const int count = static_cast<int>(std::ssize(layers));
  const int most = static_cast<int>(std::min(budget, 2 * (budget / count) + 2));
  std::vector<std::vector<Bidder>> bidders(count);  // one each; a vector because a Bidder has no empty state
  parallel(count, threads, [&](int l) { bidders[l].emplace_back(*layers[l], tolerance, most).search(kBid); });
  auto bidder = [&](int l) -> Bidder& { return bidders[l].front(); };
  double highest = 0;
  for (int l = 0; l < count; ++l) highest = std::max(highest, bidder(l).floor());
  std::vector<int> open(count);
  std::iota(open.begin(), open.end(), 0);
  for (;;) {
    std::erase_if(open, [&](int l) { return bidder(l).done(); });
    std::stable_sort(open.begin(), open.end(),
                     [&](int a, int b) { return bidder(a).need(highest) > bidder(b).need(highest); });
    const int served = static_cast<int>(std::min<long long>((std::ssize(open) + kAtOnce - 1) / kAtOnce, budget));
    if (served == 0) break;
    for (int i = 0; i < served; ++i) bidder(open[i]).grant();
    budget -= served;
    parallel(served, threads, [&](int i) { bidder(open[i]).search(kBid); });
    for (int i = 0; i < served; ++i)
      if (bidder(open[i]).done()) budget += bidder(open[i]).settle_up();
  }
  parallel(count, threads, [&](int l) { bidder(l).search(kLast); });
  return budget;
}

}  // namespace planner
