// Who gets which part of a budget of writes: the layer that is furthest from what it could be, one write at a time.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "search.hpp"

namespace planner {

namespace {

constexpr long long kBid = 600'000;     // experts levelled to see what one write more gains
constexpr long long kLast = 4'000'000;  // … and with all that a layer got
constexpr int kTrades = 80;     // rounds of trading writes when all are spent
constexpr int kTries = 16;      // … of which a layer takes part in so many, as one that asks and as one that gives
constexpr int kFurthest = 16;   // … one in so many layers asks for writes of others
constexpr int kReady = 3;       // … and for each that asks so many should know that they could give one
constexpr int kCredit = 5;      // writes in a row that may gain nothing: some gain only together
constexpr double kGain = 1e-3;  // of the worst pressure: less is nothing
constexpr int kAtOnce = 3;      // one in so many layers bids in each round
constexpr double kNear = 1.02;  // over its floor: a layer that is nearer is not searched further when all are spent
constexpr double kCritical = 10;
constexpr double kWorst = 1.045;  // over the highest floor: a layer further up is what the whole instance waits for

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
      : layer_(layer),
        tolerance_(tolerance),
        floor_(lowest_floor(layer)),
        base_(layer.moves()),
        limit_(base_),
        states_{layer} {
    Effort effort;
    effort.tolerance = tolerance;
    effort.relocate = true;
    effort.budget = most;
    effort.patience = 40;
    Layer ahead = layer;
    improve(ahead, effort, &greedy_);
  }

  // Searches with what it has.
  void search(long long work) {
    const double before = layer_.worst();
    layer_ = found(limit_, work);
    credit_ = layer_.worst() < before * (1 - kGain) ? 0 : credit_ + 1;
    remember();
  }

  // Searches with one, two or three writes more than it has, because some gain only together; the longer the more often
  // it asked. What gains something with them is on trial; what gains as much without is kept.
  void ask() {
    const int more = 1 + asked_ % 3;
    Layer other = found(limit_ + more, kLast * ++asked_);
    if (other.worst() >= layer_.worst() * (1 - kGain)) return;
    if (other.moves() > limit_) {
      trial_ = std::move(other);
      return;
    }
    layer_ = std::move(other);
    remember();
  }
  int on_trial() const { return trial_ ? trial_->moves() - limit_ : 0; }  // writes
  void accept() {
    limit_ += on_trial();
    layer_ = *trial_;
    trial_.reset();
    remember();
  }
  void refuse() { trial_.reset(); }
  bool may_ask() const { return asked_ < kTries; }

  // Looks how far it could get with a write less, the longer the more often it looked.
  void economise() {
    ++economised_;
    anneal(states_[states_.size() - 2], {limit_ - 1, tolerance_, kLast * economised_, ++searches_});
  }
  double ratio_without() const {
    return states_.size() > 1 ? states_[states_.size() - 2].worst() / ideal() : std::numeric_limits<double>::infinity();
  }
  void give() {
    layer_ = states_[states_.size() - 2];
    --limit_;
    remember();
  }
  int economised() const { return economised_; }
  bool may_give() const { return states_.size() > 1 && economised_ < kTries; }

  bool is_near() const { return ratio() <= std::max(kNear * floor(), 1 + tolerance_); }

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
  // The best that a search finds from the better of what there is and what the greedy way finds for as many writes.
  Layer found(int limit, long long work) {
    const int more = limit - base_;
    const bool greedy = more < std::ssize(greedy_.worst) && greedy_.worst[more] < layer_.worst();
    Layer best = greedy ? greedy_.states[more] : layer_;
    anneal(best, {limit, tolerance_, work, ++searches_});
    return best;
  }

  void remember() {
    states_.resize(limit_ - base_ + 1, states_.back());
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
  std::optional<Layer> trial_;
};

using Bidders = std::vector<std::vector<Bidder>>;  // one each; a vector because a Bidder has no empty state

// The layers that lose least by giving up a write each, as many as asked for or fewer, of those that would still be
// better off than `level` of need.
std::vector<int> donors(const Bidders& bidders, int count, double level, double highest) {
  std::vector<int> found;
  for (int l = 0; l < std::ssize(bidders); ++l) {
    const Bidder& other = bidders[l].front();
    if (other.on_trial() == 0 && other.need(other.ratio_without(), highest) < level) found.push_back(l);
  }
  auto loss = [&](int l) { return bidders[l].front().ratio_without() - bidders[l].front().ratio(); };
  std::ranges::stable_sort(found, {}, loss);
  found.resize(std::min<std::size_t>(found.size(), count));
  return found;
}

// How far a search gets is partly chance, and who got a write early may need it less than others do now: while the whole
// instance waits for some layers, these try more writes, others what they could do with one less, and where that helps
// they trade. Returns what is left.
long long trade(Bidders& bidders, long long budget, double highest, int threads) {
  auto bidder = [&](int l) -> Bidder& { return bidders[l].front(); };
  auto need = [&](int l) { return bidder(l).need(highest); };
  std::vector<int> order(bidders.size());
  std::iota(order.begin(), order.end(), 0);
  const int most = (static_cast<int>(std::ssize(order)) + kFurthest - 1) / kFurthest;
  for (int round = 0; round < kTrades; ++round) {
    std::ranges::stable_sort(order, std::greater{}, need);
    const int neediest = order.front();
    if (need(neediest) <= kCritical || (budget == 0 && !bidder(neediest).may_ask())) break;
    std::vector<int> busy;
    for (auto l = order.begin(); l != order.end() && need(*l) > kCritical && std::ssize(busy) < most; ++l)
      if (bidder(*l).may_ask()) busy.push_back(*l);
    const int asking = static_cast<int>(std::ssize(busy));
    if (asking == 0) break;

    // Those first that have looked least often, or the same few would be asked again and again.
    const double level = need(neediest) * (1 - kGain);
    auto ready = [&](int l) { return bidder(l).need(bidder(l).ratio_without(), highest) < level; };
    const auto wanted = asking + kReady * most - std::ranges::count_if(order, ready);
    std::ranges::stable_sort(order, {}, [&](int l) { return std::pair(bidder(l).economised(), need(l)); });
    for (auto l = order.begin(); l != order.end() && std::ssize(busy) < wanted; ++l)
      if (bidder(*l).may_give() && !ready(*l) && std::ranges::find(busy, *l) == busy.end()) busy.push_back(*l);

    parallel(static_cast<int>(std::ssize(busy)), threads, [&](int i) {
      if (i < asking) bidder(busy[i]).ask();
      else bidder(busy[i]).economise();
    });
    for (int i = 0; i < asking; ++i) {
      Bidder& asks = bidder(busy[i]);
      if (asks.on_trial() == 0) continue;
      const int paid = static_cast<int>(std::min<long long>(budget, asks.on_trial())), owed = asks.on_trial() - paid;
      const std::vector<int> from = donors(bidders, owed, need(busy[i]) * (1 - kGain), highest);
      if (std::ssize(from) < owed) {
        asks.refuse();
        continue;
      }
      for (const int l : from) bidder(l).give();
      asks.accept();
      budget -= paid;
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
