#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "pack.hpp"

namespace planner {

namespace {

struct Piece {
  int rank, expert;
  double share;
};

bool cut(const Layer& layer, std::vector<Piece>& pieces) {
  const Ranks& ranks = layer.ranks();
  std::set<std::pair<double, int>> left;
  for (int e = 0; e < ranks.experts; ++e) left.emplace(layer.demand(e), e);
  const double crumb = 1e-9 * layer.ideal();
  for (const int r : across_hosts(ranks)) {
    double room = layer.ideal() * ranks.speed[r];
    int slots = ranks.capacity[r];
    while (slots > 1 && !left.empty() && left.begin()->first <= room) {
      const auto [share, expert] = *left.begin();
      left.erase(left.begin());
      pieces.push_back({r, expert, share});
      room -= share;
      --slots;
    }
    while (slots > 0 && !left.empty() && room > crumb) {
      const auto heaviest = std::prev(left.end());
      const auto [share, expert] = *heaviest;
      const double part = std::min(share, room);
      left.erase(heaviest);
      if (share - part > crumb) left.emplace(share - part, expert);
      pieces.push_back({r, expert, part});
      room -= part;
      --slots;
    }
  }
  return left.empty();
}

}  // namespace

std::vector<int> across_hosts(const Ranks& ranks) {
  std::vector<int> order, turn(ranks.count, 0), seen(ranks.count, 0);
  for (int r = 0; r < ranks.count; ++r) {
    if (ranks.capacity[r] == 0) continue;  // a rank that is gone is on no host: its number is −1
    turn[r] = seen[ranks.host[r]]++;
    order.push_back(r);
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return turn[a] < turn[b]; });
  return order;
}

bool pack_alias(Layer& layer) {
  const Ranks& ranks = layer.ranks();
  int slots = 0, usable = 0;
  for (int r = 0; r < ranks.count; ++r) {
    slots += ranks.capacity[r];
    usable += ranks.capacity[r] > 0;
  }
  if (ranks.copies > 1 || layer.absent != nullptr) return false;
  if (ranks.experts >= 2 * usable || slots < ranks.experts + usable - 1) return false;
  for (int s = 0; s < ranks.slots(); ++s)
    if (layer.expert(s) != kNone) return false;  // pinned
  std::vector<Piece> pieces;
  if (!cut(layer, pieces)) return false;
  std::vector<int> next(ranks.count, 0), made;
  for (const Piece& piece : pieces) {
    const int slot = piece.rank * ranks.width + next[piece.rank]++;
    layer.hold(slot, piece.expert);
    made.push_back(slot);
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) layer.assign(made[i], pieces[i].share);
  return true;
}

}  // namespace planner
