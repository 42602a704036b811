// A placement from nothing.
#pragma once

#include "layer.hpp"

namespace planner {

// Fills an empty layer: copies by water-filling (the expert with the fullest copies gets the next one), then longest
// first onto the least pressed rank that may take it. Returns the experts in too few failure domains.
int pack(Layer& layer);

// Another way, for fewer experts than two on each rank: every rank in turn takes the lightest expert and tops it up from
// the heaviest, which is as even as can be whenever there are slots for as many splits (Walker's alias method).
// False: it does not apply here, and nothing was changed.
bool pack_alias(Layer& layer);

}  // namespace planner
