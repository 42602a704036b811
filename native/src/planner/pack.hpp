// A placement from nothing.
#pragma once

#include "layer.hpp"

namespace planner {

// Fills an empty layer: copies by water-filling (the expert with the fullest copies gets the next one), then longest
// first onto the least pressed rank that may take it. Returns the experts in too few failure domains.
int pack(Layer& layer);

}  // namespace planner
