#include "layer.hpp"

#include <algorithm>
#include <cmath>

namespace planner {

namespace {

constexpr int kSweeps = 400;        // a bound, not a setting: settle() ends by tolerance long before
constexpr double kStride = 1.5;   // successive over-relaxation: chains of experts even out in far fewer rounds
constexpr int kLook = 64;        // experts levelled between two looks at whether it is even enough already
constexpr double kEven = 5;      // … which it is within this many tolerances of the ideal: nothing can be better
constexpr int kStackCopies = 128;   // MAX_RANKS of an instance; wider simulations spill to the heap

}  // namespace

Layer::Layer(const Ranks& ranks, const double* demand)
    : resident(ranks.slots(), kNone),
      fixed(ranks.slots(), 0),
      ranks_(&ranks),
      demand_(demand),
      words_((ranks.experts + 63) / 64),
      expert_(ranks.slots(), kNone),
      next_(ranks.slots(), kNone),
      previous_(ranks.slots(), kNone),
      head_(ranks.experts, kNone),
      count_(ranks.experts, 0),
      share_(ranks.slots(), 0.0),
      load_(ranks.count, 0.0),
      inverse_speed_(ranks.count, 0.0),
      unsettled_(ranks.count, 0.0),
      queue_(ranks.experts, kNone),
      queued_(ranks.experts, 0),
      held_(static_cast<std::size_t>(ranks.count) * words_, 0) {
  double total = 0;
  for (int e = 0; e < ranks.experts; ++e) total += demand[e];
  ideal_ = ranks.total_speed > 0 ? total / ranks.total_speed : 0;
  for (int r = 0; r < ranks.count; ++r) inverse_speed_[r] = 1.0 / ranks.speed[r];
}

int Layer::domains(int expert, int without) const {
  // Nobody asks for more than two: the caller compares with Ranks::copies.
  int one = kNone;
  for (int s = head_[expert]; s != kNone; s = next_[s]) {
    if (s == without) continue;
    const int domain = ranks_->domain[ranks_->rank(s)];
    if (one == kNone) one = domain;
    if (domain != one) return 2;
  }
  return one == kNone ? 0 : 1;
}

bool Layer::in_domain(int expert, int domain, int without) const {
  for (int s = head_[expert]; s != kNone; s = next_[s])
    if (s != without && ranks_->domain[ranks_->rank(s)] == domain) return true;
  return false;
}

double Layer::worst() const {
  double worst = 0;
  for (int r = 0; r < ranks_->count; ++r) worst = std::max(worst, pressure(r));
  return worst;
}

int Layer::moves() const {
  int moves = 0;
  for (int s = 0; s < ranks_->slots(); ++s) moves += written(s);
  return moves;
}

// Changes too small to matter one by one add up until they do.
void Layer::set_share(int slot, double share) {
  const double change = share - share_[slot];
  if (change == 0) return;
  const int rank = ranks_->rank(slot);
  load_[rank] += change;
  share_[slot] = share;
  unsettled_[rank] += change;
  if (std::abs(unsettled_[rank]) <= tolerance_) return;
  unsettled_[rank] = 0;
  for (int s = rank * ranks_->width; s < rank * ranks_->width + ranks_->capacity[rank]; ++s) wake(expert_[s]);
}

void Layer::wake(int expert) {
  if (expert == kNone || expert == levelling_ || queued_[expert] || count_[expert] < 2) return;
  queued_[expert] = 1;
  queue_[(first_ + waiting_++) % queue_.size()] = expert;
}

void Layer::link(int slot, int expert) {
  const int rank = ranks_->rank(slot);
  expert_[slot] = expert;
  previous_[slot] = kNone;
  next_[slot] = head_[expert];
  if (next_[slot] != kNone) previous_[next_[slot]] = slot;
  head_[expert] = slot;
  ++count_[expert];
  wake(expert);
  held_[rank * words_ + (expert >> 6)] |= std::uint64_t{1} << (expert & 63);
}

void Layer::unlink(int slot) {
  const int expert = expert_[slot];
  if (previous_[slot] == kNone) head_[expert] = next_[slot];
  else next_[previous_[slot]] = next_[slot];
  if (next_[slot] != kNone) previous_[next_[slot]] = previous_[slot];
  --count_[expert];
  held_[ranks_->rank(slot) * words_ + (expert >> 6)] &= ~(std::uint64_t{1} << (expert & 63));
  set_share(slot, 0);
  expert_[slot] = kNone;
}

void Layer::hold(int slot, int expert) {
  link(slot, expert);
  if (count_[expert] == 1) set_share(slot, demand_[expert]);
}

void Layer::assign(int slot, double share) { set_share(slot, share); }

void Layer::drop(int slot) {
  const int expert = expert_[slot];
  unlink(slot);
  level(expert);
}

void Layer::swap(int a, int b) {
  const int one = expert_[a], other = expert_[b];
  unlink(a);
  unlink(b);
  hold(a, other);
  hold(b, one);
  level(one);
  level(other);
}

void Layer::bereave(const Ranks& survivors) {
  ideal_ *= ranks_->total_speed / survivors.total_speed;
  ranks_ = &survivors;
  for (int s = 0; s < survivors.slots(); ++s) {
    if (survivors.usable(s)) continue;
    if (expert_[s] != kNone) drop(s);
    resident[s] = kNone;
    fixed[s] = 0;
  }
}

// Minimises the sum of load² / speed over the ranks of one expert: fill the least pressed ranks up to one level.
double Layer::level(int expert) {
  const int copies = count_[expert];
  if (copies == 0) return 0;
  const int a = head_[expert];
  if (copies == 1) {
    set_share(a, demand_[expert]);
    return 0;
  }
  const double demand = demand_[expert];
  if (copies == 2) {
    const int b = next_[a];
    const int ra = ranks_->rank(a), rb = ranks_->rank(b);
    const double base_a = load_[ra] - share_[a], base_b = load_[rb] - share_[b];
    const double sa = ranks_->speed[ra], sb = ranks_->speed[rb];
    const double even = (base_a + base_b + demand) / (sa + sb) * sa - base_a;
    const double share = std::clamp(share_[a] + stride_ * (even - share_[a]), 0.0, demand);
    set_share(a, share);
    set_share(b, demand - share);
    return std::abs(std::clamp(even, 0.0, demand) - share);
  }
  struct Copy {
    double pressure, base, speed;
    int slot;
  };
  Copy stack[kStackCopies];
  std::vector<Copy> heap;
  Copy* copy = stack;
  if (copies > kStackCopies) {
    heap.resize(copies);
    copy = heap.data();
  }
  int n = 0;
  for (int s = a; s != kNone; s = next_[s]) {
    const int rank = ranks_->rank(s);
    const double base = load_[rank] - share_[s];
    Copy item{base * inverse_speed_[rank], base, ranks_->speed[rank], s};
    int at = n++;  // insertion sort: lists are short and nearly sorted from one sweep to the next
    for (; at > 0 && copy[at - 1].pressure > item.pressure; --at) copy[at] = copy[at - 1];
    copy[at] = item;
  }
  double volume = demand, speed = 0, pressure = 0;
  for (int i = 0; i < n; ++i) {
    if (speed > 0 && copy[i].pressure >= pressure) break;
    volume += copy[i].base;
    speed += copy[i].speed;
    pressure = volume / speed;
  }
  for (int i = 0; i < n; ++i)
    set_share(copy[i].slot, std::max(0.0, pressure * copy[i].speed - copy[i].base));
  return 0;
}

// Block coordinate descent on the sum of load² / speed. Splits of loads over ranks form a base polytope, so its minimum
// is lexicographically optimal and with it the worst pressure minimal (Fujishige 1980): the LP's optimum without an LP.
// Only experts on ranks whose load has changed since they were levelled are looked at again.
long long Layer::settle(double tolerance) {
  if (tolerance * ideal_ < tolerance_)
    for (int e = 0; e < ranks_->experts; ++e) wake(e);
  tolerance_ = tolerance * ideal_;
  stride_ = kStride;
  const long long most = static_cast<long long>(kSweeps) * ranks_->experts;
  long long left = most;
  for (; waiting_ > 0 && left > 0; --left) {
    const int expert = queue_[first_];
    first_ = (first_ + 1) % queue_.size();
    --waiting_;
    queued_[expert] = 0;
    if (left % kLook == 0 && worst() <= ideal_ * (1 + kEven * tolerance)) {
      wake(expert);
      break;
    }
    levelling_ = expert;
    const double beyond = level(expert);
    levelling_ = kNone;
    if (beyond > tolerance_) wake(expert);  // nobody else may come to wake it
  }
  stride_ = 1;
  return most - left;
}

}  // namespace planner
