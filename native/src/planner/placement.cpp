#include "placement.hpp"

#include <algorithm>
#include <cmath>

#include "pack.hpp"
#include "parallel.hpp"
#include "search.hpp"

namespace planner {

namespace {

constexpr double kExact = 2e-5;  // of the ideal pressure; the routing weights resolve about 1e-3
constexpr double kPrepared = 2e-4;  // … of plans that are made ahead
constexpr int kNoLimit = 1 << 28;
constexpr int kRounds = 4;  // in which a budget is spent
constexpr int kThorough = 40;  // patience where an expert split in two takes a chain of changes before the worst rank gains
constexpr int kQuick = 24;  // disturbances of a layer that show what more writes would gain it
constexpr double kContingencyTolerance = 5e-3;  // hundreds of plans are made ahead; most are never used

bool pinned(const Ranks& ranks, const Live& live, int layer, int rank, int expert) {
  if (live.fixed == nullptr) return false;
  return live.fixed[(static_cast<std::size_t>(layer) * ranks.count + rank) * ranks.experts + expert];
}

// What is in memory. A slot of weight 0 is loaded but not routed to: free, though refilling it with the same costs nothing.
Layer read(const Ranks& ranks, const Live& live, int index, bool hold) {
  Layer layer(ranks, live.demand + static_cast<std::size_t>(index) * ranks.experts);
  if (live.absent != nullptr) layer.absent = live.absent + static_cast<std::size_t>(index) * ranks.experts;
  const std::size_t base = static_cast<std::size_t>(index) * ranks.slots();
  for (int s = 0; s < ranks.slots(); ++s) {
    const std::uint16_t expert = live.slots[base + s];
    if (!ranks.usable(s) || expert == kEmpty) continue;
    const int rank = ranks.rank(s);
    layer.resident[s] = expert;
    if (!hold || live.weights[base + s] == 0 || layer.holds(rank, expert)) continue;
    layer.hold(s, expert);
    layer.fixed[s] = pinned(ranks, live, index, rank, expert);
  }
  // The split in force is where the search for a better one starts: most of it stays as it is.
  for (int e = 0; e < ranks.experts; ++e) {
    double total = 0;
    for (int s = layer.first(e); s != kNone; s = layer.next(s)) total += live.weights[base + s];
    for (int s = layer.first(e); s != kNone; s = layer.next(s))
      layer.assign(s, layer.demand(e) * live.weights[base + s] / total);
  }
  return layer;
}

// Pinned copies that are not there yet take a free slot, or a copy that can go.
void pin(Layer& layer, const Live& live, int index) {
  if (live.fixed == nullptr) return;
  const Ranks& ranks = layer.ranks();
  for (int r = 0; r < ranks.count; ++r) {
    for (int e = 0; e < ranks.experts && ranks.capacity[r] > 0; ++e) {
      if (!pinned(ranks, live, index, r, e) || layer.holds(r, e)) continue;
      int where = kNone;
      for (int s = r * ranks.width; s < r * ranks.width + ranks.capacity[r]; ++s) {
        if (layer.fixed[s] || !removable(layer, s, false)) continue;
        if (where == kNone || layer.expert(s) == kNone || layer.resident[s] == e) where = s;
      }
      if (where == kNone) continue;
      if (layer.expert(where) != kNone) layer.drop(where);
      layer.hold(where, e);
      layer.fixed[where] = 1;
    }
  }
}

void write_weights(const Layer& layer, std::uint16_t* weights) {
  const Ranks& ranks = layer.ranks();
  std::fill(weights, weights + ranks.slots(), std::uint16_t{0});
  for (int e = 0; e < ranks.experts; ++e) {
    double largest = 0;
    for (int s = layer.first(e); s != kNone; s = layer.next(s)) largest = std::max(largest, layer.share(s));
    for (int s = layer.first(e); s != kNone; s = layer.next(s)) {
      // At least 1: a copy that is never routed to would not count as coverage when the others are lost.
      const double weight = largest > 0 ? std::round(layer.share(s) / largest * kFullShare) : kFullShare;
      weights[s] = static_cast<std::uint16_t>(std::max(1.0, weight));
    }
  }
}

void write(const Layer& layer, std::uint16_t* slots, std::uint16_t* weights) {
  const Ranks& ranks = layer.ranks();
  for (int s = 0; s < ranks.slots(); ++s) {
    const int expert = layer.expert(s), kept = layer.resident[s];
    if (expert != kNone) slots[s] = static_cast<std::uint16_t>(expert);
    else if (ranks.usable(s) && kept != kNone && !layer.holds(ranks.rank(s), kept)) slots[s] = static_cast<std::uint16_t>(kept);
    else slots[s] = kEmpty;
  }
  write_weights(layer, weights);
}

// Puts what a rank already has into the slot where it already is: a plan from nothing moves no expert within a rank.
void keep_in_place(Layer& layer) {
  const Ranks& ranks = layer.ranks();
  for (int r = 0; r < ranks.count; ++r) {
    for (int s = r * ranks.width; s < r * ranks.width + ranks.capacity[r]; ++s) {
      const int kept = layer.resident[s];
      if (kept == kNone || layer.expert(s) == kept || !layer.holds(r, kept) || layer.fixed[s]) continue;
      int now = layer.first(kept);
      while (ranks.rank(now) != r) now = layer.next(now);
      if (layer.resident[now] == kept || layer.fixed[now]) continue;
      if (layer.expert(s) != kNone) {
        layer.swap(s, now);
      } else {
        layer.drop(now);
        layer.hold(s, kept);
        layer.level(kept);
      }
    }
  }
}

struct Draft {
  std::vector<Layer> layer;  // one; a vector because a Layer has no empty state
  Frontier frontier;
  int uncovered = 0;
  int survived = 0;  // slots written for survivability
};

// Which states to take so that the layer with the worst ratio is helped first, within the budget.
std::vector<int> allot(const std::vector<Draft>& drafts, long long budget) {
  std::vector<int> taken(drafts.size(), 0);
  std::vector<char> done(drafts.size(), 0);
  for (;;) {
    int worst = kNone, next = 0;
    double highest = 0;
    for (std::size_t l = 0; l < drafts.size(); ++l) {
      const Frontier& frontier = drafts[l].frontier;
      const double ratio = frontier.worst[taken[l]] / std::max(frontier.states[0].ideal(), 1e-300);
      if (done[l] || ratio <= highest) continue;
      worst = static_cast<int>(l);
      highest = ratio;
    }
    if (worst == kNone) return taken;
    const std::vector<double>& pressure = drafts[worst].frontier.worst;
    for (next = taken[worst] + 1; next < std::ssize(pressure) && pressure[next] >= pressure[taken[worst]];) ++next;
    if (next >= std::ssize(pressure) || next - taken[worst] > budget) {
      done[worst] = 1;
      continue;
    }
    budget -= next - taken[worst];
    taken[worst] = next;
  }
}

void finish(Outcome& outcome, const Layer& layer, int index) {
  outcome.written[index] = layer.moves();
  outcome.worst[index] = layer.worst();
  outcome.ideal[index] = layer.ideal();
}

Outcome empty_outcome(int layers) {
  Outcome outcome;
  outcome.written.resize(layers);
  outcome.worst.resize(layers);
  outcome.ideal.resize(layers);
  return outcome;
}

// Spreading over hosts can cost balance where ranks have few slots: what EPLB would do is then where to start from, so
// that its placement is never the more even one.
void prefer_plain(Layer& layer, const Layer& bare, const Effort& effort) {
  if (layer.ranks().copies > 1 || layer.worst() <= layer.ideal() * (1 + kExact)) return;
  Layer plain = bare;
  pack_plainly(plain);
  plain.settle(kSearching);
  if (plain.worst() >= layer.worst()) return;
  improve(plain, effort);
  layer = plain;
}

Draft draft(const Ranks& ranks, const Live& live, const Stages& stages, int index) {
  Draft result;
  result.layer.push_back(read(ranks, live, index, !stages.scratch));
  Layer& layer = result.layer.front();
  pin(layer, live, index);
  const bool bounded = stages.budget >= 0;
  Effort effort;
  effort.tolerance = stages.tolerance;
  effort.relocate = stages.relocate;
  if (stages.scratch) {
    if (pack_alias(layer)) {
      fill(layer, kNoLimit);
      return result;
    }
    effort.anything = true;
    effort.patience = kThorough;
    effort.budget = kNoLimit;
    const Layer bare = layer;
    result.uncovered = pack(layer);
    improve(layer, effort);
    prefer_plain(layer, bare, effort);
    grade(layer);
    return result;
  }
  result.uncovered = cover(layer);
  // Everyone gets an even part of the budget for survivability; what is left over helps the worst layers' balance.
  const int part = bounded ? static_cast<int>(stages.budget / live.layers + (index < stages.budget % live.layers)) : kNoLimit;
  result.survived = survive(layer, part);
  if (!stages.improve) {
    if (stages.fill) fill(layer, bounded ? part - result.survived : kNoLimit);
    return result;
  }
  effort.budget = 0;
  improve(layer, effort);  // what can be had without writing more
  if (!bounded) {
    effort.budget = kNoLimit;
    improve(layer, effort);
    if (stages.fill) fill(layer, kNoLimit);
    return result;
  }
  if (stages.budget > 0 && !stages.relocate) refine(layer, stages.tolerance, kQuick);
  return result;
}

// Spends writes on balance, a part at a time: what a layer gains from its part shows only when it has been refined.
// Returns what is left.
long long spend(std::vector<Draft>& drafts, const Stages& stages, long long budget, int threads) {
  const int layers = static_cast<int>(std::ssize(drafts));
  for (int round = 0; round < kRounds && budget > 0; ++round) {
    const long long part = (budget + kRounds - round - 1) / (kRounds - round);
    Effort effort;
    effort.tolerance = stages.tolerance;
    effort.relocate = stages.relocate;
    effort.budget = static_cast<int>(std::min(part, 2 * (stages.budget / layers + 2)));
    effort.patience = kThorough;
    parallel(layers, threads, [&](int l) {
      drafts[l].frontier = {};
      Layer ahead = drafts[l].layer.front();
      improve(ahead, effort, &drafts[l].frontier);
    });
    const std::vector<int> taken = allot(drafts, part);
    parallel(layers, threads, [&](int l) {
      if (taken[l] == 0) return;
      drafts[l].layer.front() = drafts[l].frontier.states[taken[l]];
      refine(drafts[l].layer.front(), stages.tolerance, kQuick);
    });
    for (const int writes : taken) budget -= writes;
  }
  return budget;
}

}  // namespace

Outcome evolve(const Ranks& ranks, const Live& live, const Stages& stages, Tables out, int threads) {
  std::vector<Draft> drafts(live.layers);
  parallel(live.layers, threads, [&](int l) { drafts[l] = draft(ranks, live, stages, l); });
  const bool bounded = !stages.scratch && stages.improve && stages.budget > 0;
  if (bounded) {
    long long left = stages.budget;
    for (const Draft& d : drafts) left -= d.survived;
    if (stages.relocate) {
      std::vector<Layer*> layers;
      for (Draft& d : drafts) layers.push_back(&d.layer.front());
      left = auction(layers, left, stages.tolerance, threads);
    } else {  // a rebalance writes few slots, and the next one goes on from there
      left = spend(drafts, stages, left, threads);
    }
    if (stages.fill)  // in layer order: what is left is too little to be worth sharing out
      for (Draft& d : drafts) left -= fill(d.layer.front(), static_cast<int>(left));
  }
  Outcome outcome = empty_outcome(live.layers);
  parallel(live.layers, threads, [&](int l) {
    Layer& layer = drafts[l].layer.front();
    if (stages.scratch) keep_in_place(layer);
    layer.settle(kExact);
    const std::size_t at = static_cast<std::size_t>(l) * ranks.slots();
    write(layer, out.slots + at, out.weights + at);
    finish(outcome, layer, l);
  });
  for (const Draft& d : drafts) outcome.uncovered += d.uncovered;
  return outcome;
}

Outcome split(const Ranks& ranks, const Live& live, std::uint16_t* weights, int threads) {
  Outcome outcome = empty_outcome(live.layers);
  parallel(live.layers, threads, [&](int l) {
    Layer layer = read(ranks, live, l, true);
    layer.settle(kExact);
    write_weights(layer, weights + static_cast<std::size_t>(l) * ranks.slots());
    finish(outcome, layer, l);
  });
  return outcome;
}

std::vector<Outcome> contingencies(const Ranks& ranks, const Live& live, const std::vector<std::vector<int>>& lost,
                                   Tables out, int threads) {
  std::vector<Ranks> survivors(lost.size(), ranks);
  for (std::size_t i = 0; i < lost.size(); ++i) {
    for (const int r : lost[i]) {
      survivors[i].total_speed -= survivors[i].capacity[r] > 0 ? ranks.speed[r] : 0;
      survivors[i].capacity[r] = 0;
    }
  }
  std::vector<Outcome> outcomes(lost.size(), empty_outcome(live.layers));
  std::vector<int> uncovered(lost.size() * live.layers);
  parallel(live.layers, threads, [&](int l) {
    Layer before = read(ranks, live, l, true);
    before.settle(kExact);
    for (std::size_t i = 0; i < lost.size(); ++i) {
      Layer layer = before;
      layer.bereave(survivors[i]);
      uncovered[i * live.layers + l] = cover(layer);
      Effort effort;
      effort.tolerance = kContingencyTolerance;
      improve(layer, effort);
      layer.settle(kPrepared);
      const std::size_t at = (i * live.layers + l) * ranks.slots();
      write(layer, out.slots + at, out.weights + at);
      finish(outcomes[i], layer, l);
    }
  });
  for (std::size_t i = 0; i < lost.size(); ++i)
    for (int l = 0; l < live.layers; ++l) outcomes[i].uncovered += uncovered[i * live.layers + l];
  return outcomes;
}

}  // namespace planner
