#include "group.hpp"

#include <fcntl.h>
#include <sys/eventfd.h>

#include <stdexcept>
#include <string>

#include "atomics.hpp"
#include "clock.hpp"
#include "guard.hpp"

namespace eep {

namespace {

void check(const Shape& shape, const GroupOptions& options) {
  const auto within = [](const char* field, u64 value, u64 least, u64 most) {
    if (value < least || value > most)
      throw std::invalid_argument(std::string(field) + "=" + std::to_string(value) + " must lie in [" + std::to_string(least) + ", " +
                                  std::to_string(most) + "]");
  };
  within("max_ranks", shape.max_ranks, 1, kMaxRanks);
  within("max_tokens", shape.max_tokens, 1, 0xFFFF);
  within("hidden", shape.hidden, 1, 1U << 20);
  within("max_topk", shape.max_topk, 1, kMaxTopk);
  within("max_slots", shape.max_slots, 1, 0xFFFF);
  within("n_experts", shape.n_experts, 1, 0xFFFF);
  within("n_layers", shape.n_layers, 1, 0xFFFF);
  within("rank", options.rank, 0, shape.max_ranks - 1);
  within("incarnation", options.incarnation, 1, ~u64{0});
  within("timeout_s (in ns)", options.silence_ns, 1, options.hard_ns);
}

Descriptor make_doorbell() {
  Descriptor fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) fail_errno("eventfd for the doorbell");
  return fd;
}

Descriptor duplicate(int fd) {
  Descriptor copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) fail_errno("duplicate a descriptor");
  return copy;
}

}  // namespace

Group::Group(const Shape& shape, const GroupOptions& options, std::shared_ptr<ControlBlock> control)
    : shape_((check(shape, options), shape)),
      options_(options),
      control_(std::move(control)),
      kernels_(kernels()),
      inbox_(shape),
      doorbell_(make_doorbell()),
      heartbeat_(std::make_unique<Heartbeat>(inbox_, shape.max_ranks, control_, doorbell_.get())),
      processors_(processors()),
      tables_(shape),
      first_contribution_(shape.max_tokens + 1),
      lost_(shape.max_tokens),
      arrived_rows_(map_private(shape.max_ranks * shape.max_pairs() * shape.row_values_bytes())),
      expert_tokens_(u64{shape.n_layers} * shape.n_experts),
      layer_rounds_(shape.n_layers) {
  contributions_.reserve(shape.max_pairs());
  own_pairs_.reserve(shape.max_pairs());
}

Group::~Group() = default;

// --- links ------------------------------------------------------------------------------------------------------------------------

int Group::inbox_fd(u32 source) const {
  if (source >= shape_.max_ranks || source == options_.rank)
    throw std::invalid_argument("source=" + std::to_string(source) + " must be another rank below max_ranks");
  return inbox_.descriptor(source).release();
}

int Group::renew_inbox(u32 source) {
  if (source >= shape_.max_ranks || source == options_.rank)
    throw std::invalid_argument("source=" + std::to_string(source) + " must be another rank below max_ranks");
  Chunk fresh = inbox_.take_spare();
  const std::lock_guard lock(mutex_);
  if (!heartbeat_) throw std::runtime_error("the group is closed");
  if (active_.has(source) && !suspected_.has(source)) {
    throw std::runtime_error("rank " + std::to_string(source) + " is active in epoch " + std::to_string(epoch()) +
                             " and not suspected: its inbox is in use; renew it when the epoch has moved on");
  }
  OwnerLine& owner = fresh.control().owner;
  heartbeat_->introduce(owner);
  store_release(owner.epoch, epoch());
  // Whoever still maps the old chunk learns there that nobody counts on it.
  OwnerLine& former = inbox_.control(source).owner;
  store_relaxed(former.admitted, 0);
  store_release(former.epoch, epoch());
  inbox_.replace(source, std::move(fresh));
  renewed_.fetch_add(1, std::memory_order_relaxed);
  return inbox_.descriptor(source).release();
}

int Group::doorbell_fd() const { return duplicate(doorbell_.get()).release(); }

void Group::connect(u32 peer, u64 incarnation, int inbox_fd, int doorbell_fd, int pid) {
  Descriptor inbox(inbox_fd), doorbell(doorbell_fd);
  if (peer >= shape_.max_ranks || peer == options_.rank)
    throw std::invalid_argument("peer=" + std::to_string(peer) + " must be another rank below max_ranks");
  if (incarnation == 0) throw std::invalid_argument("incarnation=0 of rank " + std::to_string(peer) + ": no process has it");
  auto link = std::make_shared<Link>(peer, incarnation, shape_, std::move(inbox), std::move(doorbell), pid);
  const std::lock_guard lock(mutex_);
  links_[peer] = std::move(link);
}

void Group::connect_local(u32 peer, u64 incarnation, Group& other) {
  auto link = std::make_shared<Link>(peer, incarnation, other.inbox_.chunk(options_.rank), duplicate(other.doorbell_.get()));
  const std::lock_guard lock(mutex_);
  links_[peer] = std::move(link);
}

void Group::disconnect(u32 peer) {
  std::shared_ptr<Link> last;  // unmapped outside the lock; the running epoch keeps its own reference
  const std::lock_guard lock(mutex_);
  if (const auto found = links_.find(peer); found != links_.end()) {
    last = std::move(found->second);
    links_.erase(found);
  }
}

std::map<u32, u64> Group::linked() const {
  const std::lock_guard lock(mutex_);
  std::map<u32, u64> result;
  for (const auto& [peer, link] : links_) result[peer] = link->incarnation();
  return result;
}

// --- tables -----------------------------------------------------------------------------------------------------------------------

void Group::stage(const TableData& table) {
  const std::lock_guard lock(mutex_);
  tables_.stage(table, options_.rank);
  if (table.incarnations[options_.rank] != options_.incarnation) {
    throw std::invalid_argument("the table counts on incarnation " + std::to_string(table.incarnations[options_.rank]) + " of rank " +
                                std::to_string(options_.rank) + ", this process is " + std::to_string(options_.incarnation));
  }
}

u32 Group::staged_epoch() const {
  const std::lock_guard lock(mutex_);
  return tables_.staged_epoch();
}

std::vector<Group::Peer> Group::members_of(const TableData& table) const {
  std::vector<Peer> members;
  for (u32 rank = 0; rank < shape_.max_ranks; ++rank) {
    if (!table.active.has(rank)) continue;
    Peer peer;
    peer.rank = rank;
    peer.incarnation = table.incarnations[rank];
    peer.in = &inbox_.control(rank);
    peer.in_chunk = inbox_.chunk(rank);
    if (rank != options_.rank) {
      const auto found = links_.find(rank);
      if (found == links_.end() || found->second->incarnation() != peer.incarnation) {
        throw std::runtime_error("epoch " + std::to_string(table.epoch) + " counts on incarnation " + std::to_string(peer.incarnation) +
                                 " of rank " + std::to_string(rank) + ", which is not connected: connect it before activating");
      }
      peer.link = found->second;
      peer.out = &peer.link->control();
      peer.out_chunk = peer.link->chunk();
    }
    members.push_back(std::move(peer));
  }
  return members;
}

void Group::check_fixed(const TableData& table) const {
  for (u32 rank = 0; rank < peers_.size(); ++rank) {
    if (!table.active.has(rank)) throw std::invalid_argument("fixed=True needs active ranks 0 … n-1; rank " + std::to_string(rank) + " is not");
  }
  if (shape_.n_experts % peers_.size() != 0)
    throw std::invalid_argument("fixed=True needs n_experts=" + std::to_string(shape_.n_experts) + " to be a multiple of the ranks");
}

void Group::activate(u32 epoch) {
  const StepGuard guard(stepping_);
  std::vector<Peer> former;  // links are unmapped after the lock is released
  const std::lock_guard lock(mutex_);
  const TableData& next = tables_.staged(epoch);
  if (epoch <= this->epoch())
    throw std::invalid_argument("epoch=" + std::to_string(epoch) + " is not newer than " + std::to_string(this->epoch()) + ": epochs only grow");
  former = std::exchange(peers_, members_of(next));
  if (options_.fixed) check_fixed(next);
  fixed_per_rank_ = shape_.n_experts / static_cast<u32>(peers_.size());
  table_ = &tables_.activate();
  for (u32 home = 0; home < peers_.size(); ++home) {
    home_of_[peers_[home].rank] = static_cast<u8>(home);
    if (!peers_[home].link) self_ = home;
  }
  active_ = table_->active;
  suspected_ = RankMask{};
  evidence_.fill(Evidence::kNone);
  sync_ = round_ = options_.first_number;
  rounds_.store(0, std::memory_order_relaxed);
  ended_ = Status::kOk;
  in_round_ = false;
  epoch_.store(epoch, std::memory_order_relaxed);
  control_->set_epoch(epoch);
  for (u32 source = 0; source < shape_.max_ranks; ++source) {
    OwnerLine& owner = inbox_.control(source).owner;
    store_relaxed(owner.admitted, active_.has(source) ? table_->incarnations[source] : 0);
    store_release(owner.epoch, epoch);
  }
}

void Group::close() {
  const StepGuard guard(stepping_);
  const std::lock_guard lock(mutex_);
  heartbeat_.reset();
  links_.clear();
  peers_.clear();
  active_ = RankMask{};
  table_ = nullptr;
}

void Group::read_tokens_per_expert(float* to) const {
  for (u64 i = 0; i < expert_tokens_.size(); ++i) to[i] = load_relaxed(expert_tokens_[i]);
}

Counters Group::counters() const {
  Counters copy;
  const auto* from = reinterpret_cast<const u64*>(&counters_);
  auto* to = reinterpret_cast<u64*>(&copy);
  for (u64 i = 0; i < sizeof copy / sizeof *to; ++i) to[i] = load_relaxed(from[i]);
  copy.renewed_inboxes = renewed_.load(std::memory_order_relaxed);
  return copy;
}

}  // namespace eep
