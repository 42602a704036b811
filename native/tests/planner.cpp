// Every planning kernel on instances made up here: unequal ranks, losses, budgets, pins, experts that nothing can load.
// What it prints and returns is whether each plan is whole; what strays or overflows the sanitizers tell.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "placement.hpp"

using namespace planner;

namespace {

struct Instance {
  Ranks ranks;
  int layers = 2;
  std::vector<std::uint16_t> slots, weights;
  std::vector<double> demand;
  std::vector<std::uint8_t> fixed, absent;

  Instance(int count, int width, int experts, int copies, std::uint32_t seed) {
    std::minstd_rand random(seed);
    ranks.count = count;
    ranks.width = width;
    ranks.experts = experts;
    ranks.copies = copies;
    for (int r = 0; r < count; ++r) {
      ranks.capacity.push_back(r % 5 == 4 ? width - 1 : width);
      ranks.domain.push_back(copies > 1 ? r / 2 : r);
      ranks.host.push_back(r / 2);
      ranks.speed.push_back(r % 3 == 2 ? 0.5 : 1.0);
      ranks.total_speed += ranks.speed.back();
    }
    for (int s = 0; s < ranks.slots(); ++s) ranks.rank_of.push_back(s / width);
    slots.assign(static_cast<std::size_t>(layers) * ranks.slots(), kEmpty);
    weights.assign(slots.size(), 0);
    for (int e = 0; e < layers * experts; ++e) demand.push_back(std::exp(3.0 * (random() % 1000) / 1000.0));
    fixed.assign(static_cast<std::size_t>(layers) * count * experts, 0);
    absent.assign(static_cast<std::size_t>(layers) * experts, 0);
  }

  void lose(int rank) {
    ranks.total_speed -= ranks.capacity[rank] > 0 ? ranks.speed[rank] : 0;
    ranks.capacity[rank] = 0;
  }

  Live live() const {
    return {layers, slots.data(), weights.data(), demand.data(), fixed.data(), absent.data()};
  }

  // Plans, and puts the plan in the place of what was live. False: an expert is in no slot of a rank that is left.
  bool evolve(const Stages& stages, int threads) {
    std::vector<std::uint16_t> next(slots.size()), split(slots.size());
    planner::evolve(ranks, live(), stages, {next.data(), split.data()}, threads);
    slots = next;
    weights = split;
    return whole(slots.data(), weights.data());
  }

  bool whole(const std::uint16_t* table, const std::uint16_t* share) const {
    std::vector<char> held(demand.size(), 0);
    for (int l = 0; l < layers; ++l) {
      for (int s = 0; s < ranks.slots(); ++s) {
        const std::size_t at = static_cast<std::size_t>(l) * ranks.slots() + s;
        if (ranks.usable(s) && table[at] != kEmpty && share[at] > 0) held[l * ranks.experts + table[at]] = 1;
      }
    }
    for (std::size_t e = 0; e < held.size(); ++e)
      if (!held[e] && !absent[e]) return false;
    return true;
  }
};

bool story(int count, int width, int experts, int copies, std::uint32_t seed) {
  Instance one(count, width, experts, copies, seed);
  one.fixed[3] = one.fixed[experts + 5] = 1;
  Stages plan, repair, rebalance, spend;
  plan.scratch = true;
  repair.relocate = spend.relocate = true;
  rebalance.budget = 6;
  rebalance.fill = true;
  spend.budget = 8;
  bool good = one.evolve(plan, 2);
  std::vector<std::vector<int>> lost;
  for (int r = 0; r < count; ++r) lost.push_back({r});
  std::vector<std::uint16_t> tables(lost.size() * one.slots.size()), splits(tables.size());
  contingencies(one.ranks, one.live(), lost, {tables.data(), splits.data()}, 2);
  one.lose(1);
  good = one.evolve(repair, 1) && good;
  one.lose(2);
  one.absent[7] = 1;
  good = one.evolve(spend, 2) && good;
  for (double& load : one.demand) load *= load > 4 ? 0.5 : 1.5;
  good = one.evolve(rebalance, 2) && good;
  split(one.ranks, one.live(), one.weights.data(), 2);
  return one.whole(one.slots.data(), one.weights.data()) && good;
}

}  // namespace

int main() {
  struct Shape {
    int ranks, slots, experts, copies;
  };
  for (const Shape& shape : {Shape{8, 5, 24, 1}, Shape{8, 6, 16, 2}, Shape{20, 2, 28, 1}, Shape{6, 12, 44, 1}}) {
    const bool good = story(shape.ranks, shape.slots, shape.experts, shape.copies, 7);
    std::printf("%d x %d of %d experts, %d copies %s\n", shape.ranks, shape.slots, shape.experts, shape.copies,
                good ? "ok" : "NOT WHOLE");
    if (!good) return 1;
  }
}
