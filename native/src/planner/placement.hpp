// From the tables of schemas.placement to layers and back, and the whole of a plan: all layers, in threads.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.hpp"

namespace planner {

inline constexpr std::uint16_t kEmpty = 0xFFFF;     // schemas.placement.EMPTY
inline constexpr std::uint16_t kFullShare = 4095;   // weight of an expert's largest copy: resolves 0.03 %

// Tables are [layers][rank][slot]; `demand` is [layers][experts].
struct Live {
  int layers = 0;
  const std::uint16_t* slots = nullptr;
  const std::uint16_t* weights = nullptr;
  const double* demand = nullptr;
  const std::uint8_t* fixed = nullptr;  // [layers][rank][experts] or null: copies that must be where they are
  const std::uint8_t* absent = nullptr;  // [layers][experts] or null: experts that nothing can be loaded from
};

struct Tables {
  std::uint16_t* slots;
  std::uint16_t* weights;
};

struct Stages {
  bool scratch = false;       // place everything anew; the live tables only say what is in memory
  bool improve = true;        // lower the worst pressure
  bool relocate = false;      // last copies may move too: nothing serves meanwhile
  bool fill = false;          // use free slots even when the balance does not need them
  long long budget = 0;       // slots written beyond coverage, over all layers; negative: no limit
  double tolerance = 1e-3;
};

struct Outcome {
  long long uncovered = 0;          // (layer, expert) pairs left without a copy
  std::vector<int> written;         // slots by layer
  std::vector<double> worst, ideal; // pressure by layer
};

Outcome evolve(const Ranks& ranks, const Live& live, const Stages& stages, Tables out, int threads);

// The best split over the copies that are there; writes weights only.
Outcome split(const Ranks& ranks, const Live& live, std::uint16_t* weights, int threads);

// The repair of every scenario (ranks that are lost together), starting from one settled state of the live tables.
// Tables of scenario i start at i * layers * slots.
std::vector<Outcome> contingencies(const Ranks& ranks, const Live& live, const std::vector<std::vector<int>>& lost,
                                   Tables out, int threads);

}  // namespace planner
