// Changes to a layer, each the best of its kind: what repair, rebalance and plan are made of.
#pragma once

#include <vector>

#include "layer.hpp"

namespace planner {

// Gives every expert without a copy exactly one, in a free slot or over a redundant copy. Nothing else is written, so
// the movement is the true minimum. Returns the experts that no slot was left for.
int cover(Layer& layer);

// Gives experts in too few failure domains another copy, heaviest first, writing at most `budget` slots.
// Returns the slots written.
int survive(Layer& layer, int budget);

// Gives free slots a copy of the experts with the fewest and fullest copies. Returns the slots written.
int fill(Layer& layer, int budget);

// One change that improve() may make.
struct Move {
  enum class Kind { kNothing, kCopy, kSwap, kShift } kind = Kind::kNothing;
  double gain = 0;
  int cost = 0;
  int from = kNone;    // kSwap, kShift: the slot whose expert leaves
  int to = kNone;      // the slot that is written
  int expert = kNone;  // kCopy: what is written
};

struct Effort {
  int budget = 0;           // slots that may be written beyond those already written
  bool anything = false;    // planning from nothing: any two slots may be exchanged
  bool relocate = false;    // a last copy may be written elsewhere, from storage: while nothing serves
  double tolerance = 1e-3;  // of the ideal pressure: good enough
  int patience = 6;         // changes in a row that may fail to lower the worst pressure
  int rounds = 400;
};

// The best state found for each number of slots written: states[k] writes k slots more than the start.
struct Frontier {
  std::vector<Layer> states;
  std::vector<double> worst;
};

// Lowers the worst pressure by copying experts of the most pressed ranks over redundant copies elsewhere, and by
// exchanging slots that are to be written anyway.
void improve(Layer& layer, const Effort& effort, Frontier* frontier = nullptr);

inline constexpr double kSearching = 5e-4;   // of the ideal pressure: how exactly loads are split while looking
inline constexpr double kWorthwhile = 1e-6;  // of the energy of one rank at the ideal pressure

// Sweeps over all exchanges that write nothing more, wherever they are: what the most pressed ranks cannot exchange
// with each other they often can after others have.
void polish(Layer& layer, double tolerance);

// Looks further for as many writes: disturbs the layer a little, polishes it, goes on from there if the energy fell, as
// often as `tries` says. Leaves the state with the lowest worst pressure.
void refine(Layer& layer, double tolerance, int tries);

struct Search {
  int limit = 0;  // slots written at most
  double tolerance = 1e-3;
  long long work = 0;  // ends it: about so many experts levelled, the same on any machine
  int seed = 1;        // another one goes another way
};

// Looks for the lowest worst pressure that `limit` slots written can give, by annealing. Last copies may move too.
void anneal(Layer& layer, const Search& search);

// Shares `budget` writes out among layers and spends them where they help. Returns what nothing could be done with.
long long auction(const std::vector<Layer*>& layers, long long budget, double tolerance, int threads);

// Whether an expert that leaves `slot` for `rank` is still in as many failure domains as before, up to the target.
bool spreads(const Layer& layer, int expert, int slot, int rank);

// Whether the copy may go: the expert keeps another one, and (when `strict`) no failure domain it needs.
bool removable(const Layer& layer, int slot, bool strict);

}  // namespace planner
