// A placement from nothing.
#pragma once

#include <vector>

#include "layer.hpp"

namespace planner {

// Fills an empty layer: copies by water-filling (the expert with the fullest copies gets the next one), then longest
// first onto the least pressed rank that may take it. Returns the experts in too few failure domains.
int pack(Layer& layer);

// Another way, for fewer experts than two on each rank: every rank in turn takes the lightest expert and tops it up from
// the heaviest, which is as even as can be whenever there are slots for as many splits (Walker's alias method).
// False: it does not apply here, and nothing was changed.
bool pack_alias(Layer& layer);

// Fills a layer as EPLB's global policy would, but for the split: equal pieces, the largest first, each on the least
// pressed rank. Hosts and survivability do not count.
void pack_plainly(Layer& layer);

// Brings the lightest experts that have no second copy together on half of the ranks, at no change of any load: where
// heavy experts find room when a loss leaves them fewer copies. A repair writes less to be as even.
void grade(Layer& layer);

// Usable ranks so that neighbours are on different hosts, and with them the pieces of a heavy expert.
std::vector<int> across_hosts(const Ranks& ranks);

}  // namespace planner
