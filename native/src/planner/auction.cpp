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
constexpr int kTrades = 20;     // rounds of trading writes when all are spent
constexpr int kTries = 8;       // … of which a layer takes part in so many, as one that asks and as one that gives
constexpr int kCredit = 5;      // writes in a row that may gain nothing: some gain only together
constexpr double kGain = 1e-3;  // of the worst pressure: less is nothing
constexpr int kAtOnce = 3;      // one in so many layers bids in each round
constexpr int kFurthest = 16;   // … asks for a write of another, and as many look what they could do without one
constexpr double kNear = 1.02;  // over its floor: a layer that is nearer is not searched further when all are spent
constexpr double kCritical = 10;
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
    anneal(layer_, {limit_, tolerance_, work, ++searches_});
    credit_ = layer_.worst() < before * (1 - kGain) ? 0 : credit_ + 1;
    remember();
  }

  // Searches with another write on trial: it stays so if that is what it takes to gain something.
  void ask() {
    ++asked_;
    std::vector<Layer> was{layer_};
    ++limit_;
    search(kLast);
    if (layer_.worst() < was.front().worst() * (1 - kGain) && layer_.moves() == limit_) {
      before_ = std::move(was);
      return;
    }
    if (layer_.moves() == limit_) layer_ = was.front();
    --limit_;
    remember();
  }
  bool on_trial() const { return !before_.empty(); }
  double ratio_before() const { return before_.front().worst() / ideal(); }
  void accept() { before_.clear(); }
  void refuse() {
    layer_ = before_.front();
    before_.clear();
    --limit_;
    remember();
  }

  // Looks how far it could get with a write less.
  void economise() {
    ++economised_;
    anneal(states_[states_.size() - 2], {limit_ - 1, tolerance_, kLast, ++searches_});
  }
  double ratio_without() const {
    return states_.size() > 1 ? states_[states_.size() - 2].worst() / ideal() : std::numeric_limits<double>::infinity();
  }
  void give() {
    layer_ = states_[states_.size() - 2];
    --limit_;
    remember();
  }
  bool is_near() const { return ratio() <= std::max(kNear * floor(), 1 + tolerance_); }
  bool may_ask() const { return !is_near() && asked_ < kTries; }
  bool may_give() const { return states_.size() > 1 && economised_ < kTries; }

  bool done() const {
    return layer_.worst() <= layer_.ideal() * (1 + tolerance_) || (credit_ >= kCredit && !greedy_gains());
  }
  double floor() const { return floor_ / ideal(); }
  double ratio() const { return layer_.worst() / ideal(); }
  // How urgent it is that a layer of this ratio is helped: more than kCritical if the whole instance waits for it.
  double need(double ratio, double highest_floor) const {
    const double whole = ratio / highest_floor;
    return whole > kWorst ? kCritical * whole : ratio / floor();
  }
  double need(double highest_floor) const { return need(ratio(), highest_floor); }

  void grant() { ++limit_; }

  // Gives up what it has not used. Returns how much that is.
  int settle_up() {
    const int unused = limit_ - layer_.moves();
    limit_ -= unused;
    remember();
    return unused;
  }

 private:
  void remember() {
    states_.resize(limit_ - base_ + 1, layer_);
    states_.back() = layer_;
  }

  // Whether the greedy way gets further with more writes.
  bool greedy_gains() const {
    const bool more = limit_ - base_ + 1 < std::ssize(greedy_.worst);
    return more && greedy_.worst.back() < layer_.worst() * (1 - kGain);
  }

  double ideal() const { return std::max(layer_.ideal(), 1e-300); }

  Layer& layer_;
  double tolerance_, floor_;
  int base_, limit_, credit_ = 0, searches_ = 0, asked_ = 0, economised_ = 0;
  Frontier greedy_;
  std::vector<Layer> states_;  // [writes beyond base_] the best that was found
  std::vector<Layer> before_;  // one, while a write is on trial
};

using Bidders = std::vector<std::vector<Bidder>>;  // one each; a vector because a Bidder has no empty state

// The layer that loses least by giving up a write, if that leaves it better off than `to` was and, where not everybody
// waits for `to`, costs less than what `to` gained; or kNone.
int donor(const Bidders& bidders, int to, double highest) {
  const Bidder& receiver = bidders[to].front();
  const double old = receiver.need(receiver.ratio_before(), highest);
  double least = old < kCritical ? receiver.ratio_before() - receiver.ratio() : std::numeric_limits<double>::infinity();
  int best = kNone;
  for (int l = 0; l < std::ssize(bidders); ++l) {
    const Bidder& other = bidders[l].front();
    const double loss = other.ratio_without() - other.ratio();
    if (other.on_trial() || loss >= least || other.need(other.ratio_without(), highest) >= old * (1 - kGain)) continue;
    best = l;
    least = loss;
  }
  return best;
}

// How far a search gets is partly chance, and who got a write early may need it less than others do now: the neediest
// try another one, the others what they could do with one less, and where that helps they trade. Returns what is left.
long long trade(Bidders& bidders, long long budget, double highest, int threads) {
  std::vector<int> order(bidders.size());
  std::iota(order.begin(), order.end(), 0);
  for (int round = 0; round < kTrades; ++round) {
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return bidders[a].front().need(highest) > bidders[b].front().need(highest);
    });
    const int most = (static_cast<int>(std::ssize(order)) + kFurthest - 1) / kFurthest;
    std::vector<int> ask, give;
    for (auto l = order.begin(); l != order.end() && std::ssize(ask) < most; ++l)
      if (bidders[*l].front().may_ask()) ask.push_back(*l);
    if (ask.empty()) break;
    for (auto l = order.rbegin(); l != order.rend() && std::ssize(give) < most; ++l)
      if (bidders[*l].front().may_give() && std::ranges::find(ask, *l) == ask.end()) give.push_back(*l);
    const int asking = static_cast<int>(std::ssize(ask));
    parallel(asking + static_cast<int>(std::ssize(give)), threads, [&](int i) {
      if (i < asking) bidders[ask[i]].front().ask();
      else bidders[give[i - asking]].front().economise();
    });
    for (const int l : ask) {
      Bidder& bidder = bidders[l].front();
      if (!bidder.on_trial()) continue;
      const int from = budget > 0 ? kNone : donor(bidders, l, highest);
      if (budget == 0 && from == kNone) {
        bidder.refuse();
        continue;
      }
      if (budget > 0) --budget;
      else bidders[from].front().give();
      bidder.accept();
    }
  }
  return budget;
}

}  // namespace

long long auction(const std::vector<Layer*>& layers, long long budget, double tolerance, int threads) {
  const int count = static_cast<int>(std::ssize(layers));
  const int most = static_cast<int>(std::min(budget, 2 * (budget / count) + 2));
  Bidders bidders(count);
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
  parallel(count, threads, [&](int l) {
    if (!bidder(l).is_near()) bidder(l).search(kLast);
  });
  return trade(bidders, budget, highest, threads);
}

}  // namespace planner
