// Where the experts without a second copy sit, so that a loss leaves room for the heavy ones.
#include <algorithm>
#include <vector>

#include "pack.hpp"

namespace planner {

namespace {

constexpr int kPartners = 16;     // ranks that each of the others exchanges with
constexpr double kStride = 1e-3;  // of the ideal pressure: a difference in load that is worth an exchange

// An expert that no other rank holds stays where it is through a repair, and with it its load; what the copies of a
// heavy one carry grows, because orphans take the slots of some of them. So half of the ranks of every host get the
// light ones of such experts. No load changes: both ranks hold another expert, whose split makes up for the difference.
class Grader {
 public:
  explicit Grader(Layer& layer) : layer_(layer), ranks_(layer.ranks()) {}

  void run() {
    const std::vector<int> order = across_hosts(ranks_);  // its first half has half of every host
    const int half = static_cast<int>(std::ssize(order)) / 2;
    for (int shift = 0; shift < std::min(half, kPartners); ++shift)
      for (int i = 0; i < half; ++i)
        while (exchange(order[i], order[half + (i + shift) % half])) {}
  }

 private:
  bool exchange(int light, int heavy) {
    const int a = extreme(light, 1), b = extreme(heavy, -1);
    if (a == kNone || b == kNone) return false;
    const double more = layer_.share(a) - layer_.share(b);
    if (more <= kStride * layer_.ideal()) return false;
    const int give = spender(heavy, light, more);
    if (give == kNone) return false;
    int take = layer_.first(layer_.expert(give));
    while (ranks_.rank(take) != light) take = layer_.next(take);
    layer_.swap(a, b);
    layer_.assign(give, layer_.share(give) - more);
    layer_.assign(take, layer_.share(take) + more);
    return true;
  }

  // The slot of the heaviest (sign 1) or lightest (−1) expert of the rank that nobody else holds.
  int extreme(int rank, int sign) const {
    int best = kNone;
    for (int s = rank * ranks_.width; s < rank * ranks_.width + ranks_.capacity[rank]; ++s) {
      if (layer_.expert(s) == kNone || layer_.copies(layer_.expert(s)) > 1 || layer_.fixed[s]) continue;
      if (best == kNone || sign * layer_.share(s) > sign * layer_.share(best)) best = s;
    }
    return best;
  }

  // The slot of `rank` with the largest share, above `least`, of an expert that `other` holds, too.
  int spender(int rank, int other, double least) const {
    int best = kNone;
    for (int s = rank * ranks_.width; s < rank * ranks_.width + ranks_.capacity[rank]; ++s) {
      if (layer_.share(s) <= least || !layer_.holds(other, layer_.expert(s))) continue;
      best = s;
      least = layer_.share(s);
    }
    return best;
  }

  Layer& layer_;
  const Ranks& ranks_;
};

}  // namespace

void grade(Layer& layer) { Grader(layer).run(); }

}  // namespace planner
