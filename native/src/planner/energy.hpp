// What the searches share: prices of changes in energy, the sum over ranks of speed · pressure⁸. It falls with
// every good change, unlike the worst pressure, and the most pressed ranks dominate it, unlike a sum of squares.
#pragma once

#include "layer.hpp"

namespace planner {

inline double energy(double load, double speed) {
  const double pressure = load / speed;
  const double s2 = pressure * pressure, s4 = s2 * s2;
  return speed * s4 * s4;
}

inline double energy(const Layer& layer) { return energy(layer.ideal(), 1.0); }  // the unit of thresholds

// How much the energy of the *other* ranks grows when a copy's share goes to the copies that remain.
double displaced(const Layer& layer, int slot);

// Makes the slot a copy of the expert, whatever it held.
void put(Layer& layer, int slot, int expert);

}  // namespace planner
