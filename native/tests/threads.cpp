// The shared-memory protocol with ranks as threads of one process, so that the sanitizers see every access of every rank.
#include <chrono>
#include <thread>

#include "instance.hpp"

using namespace eep;
using namespace eep::test;

namespace {

constexpr u32 kRanks = 3;
constexpr u32 kLayers = 2;

struct Instance {
  Folder folder;
  std::vector<std::unique_ptr<Player>> players;
  std::vector<u64> incarnations = std::vector<u64>(kRanks, 1);

  explicit Instance(Number first_number = 0, bool fixed = false) {
    for (u32 rank = 0; rank < kRanks; ++rank) players.push_back(make(rank, 1, first_number, fixed));
    for (u32 rank = 0; rank < kRanks; ++rank) link(rank);
  }

  std::unique_ptr<Player> make(u32 rank, u64 incarnation, Number first_number = 0, bool fixed = false) const {
    GroupOptions options;
    options.rank = rank;
    options.incarnation = incarnation;
    options.silence_ns = 5'000'000'000;  // a sanitizer slows everything down
    options.first_number = first_number;
    options.fixed = fixed;
    return std::make_unique<Player>(small_shape(kRanks + 1, kLayers), options, folder.control(rank, incarnation));
  }

  void link(u32 rank) {
    for (u32 peer = 0; peer < kRanks; ++peer) {
      if (peer != rank) players[rank]->group->connect_local(peer, incarnations[peer], *players[peer]->group);
    }
  }

  TableData table(u32 epoch) const {
    std::vector<u64> all = incarnations;
    all.resize(kRanks + 1);
    return table_of(epoch, all, kLayers);
  }

  template <class Body>
  void on_all(Body body) {
    std::vector<std::thread> threads;
    for (u32 rank = 0; rank < kRanks; ++rank) threads.emplace_back([&, rank] { body(*players[rank]); });
    for (std::thread& thread : threads) thread.join();
  }

  void enter(u32 epoch) {
    const TableData next = table(epoch);
    on_all([&](Player& player) {
      player.group->stage(next);
      player.group->activate(epoch);
    });
  }
};

/// Many steps, ranks running as far ahead of each other as the protocol lets them.
void run_ahead(Number first_number, bool fixed) {
  Instance instance(first_number, fixed);
  instance.enter(1);
  instance.on_all([](Player& player) {
    for (u32 step = 0; step < 200; ++step) {
      if (step % 3 == player.rank()) std::this_thread::yield();
      if (step % 5 == 0) {  // syncs that follow each other directly, as idle ranks make them
        expect(player.group->sync(SyncRow{}).status == Status::kOk, "an idle sync ended otherwise");
      }
      expect(player.step(step * kLayers) == Status::kOk, "a step ended otherwise");
    }
  });
}

/// Every rank crosses into the next epoch after the sync that shows everybody prepared, staging on another thread meanwhile.
void swap_under_load() {
  Instance instance;
  instance.enter(1);
  instance.on_all([&](Player& player) {
    for (u32 epoch = 1; epoch < 40; ++epoch) {
      const TableData next = instance.table(epoch + 1);
      std::thread control([&] { player.group->stage(next); });
      for (u32 step = 0; step < 3; ++step) expect(player.step(step * kLayers) == Status::kOk, "a step beside a table swap ended otherwise");
      control.join();
      SyncRow row;
      row.prepared_epoch = epoch + 1;
      const SyncOutcome outcome = player.group->sync(row);
      expect(outcome.status == Status::kOk, "the sync before a flip ended otherwise");
      for (const SyncRow& other : outcome.rows) expect(other.prepared_epoch == epoch + 1, "a rank's row says otherwise than it prepared");
      player.group->activate(epoch + 1);
    }
  });
}

/// The control thread gives out, renews, connects and asks while the stepping threads step.
void links_beside_steps() {
  Instance instance;
  instance.enter(1);
  std::atomic<bool> stop{false};
  std::vector<std::thread> controls;
  for (auto& player : instance.players) {
    controls.emplace_back([&] {
      while (!stop) {
        Group& group = *player->group;
        ::close(group.renew_inbox(kRanks));  // the slot that nobody sits in
        ::close(group.inbox_fd((player->rank() + 1) % kRanks));
        ::close(group.doorbell_fd());
        expect(group.linked().size() == kRanks - 1, "a link is lost");
        group.counters();
        std::vector<float> counts(kLayers * 6);
        group.read_tokens_per_expert(counts.data());
        bool refused = false;
        try {
          ::close(group.renew_inbox((player->rank() + 1) % kRanks));
        } catch (const std::runtime_error&) {
          refused = true;
        }
        expect(refused, "the inbox of an active rank was renewed");
      }
    });
  }
  instance.on_all([](Player& player) {
    for (u32 step = 0; step < 150; ++step) expect(player.step(step * kLayers) == Status::kOk, "a step beside link work ended otherwise");
  });
  stop = true;
  for (std::thread& control : controls) control.join();
}

/// The agent calls the step off while a rank waits for one that does not come.
void abort_wakes_waiters() {
  Instance instance;
  instance.enter(1);
  std::thread agent([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    for (auto& player : instance.players) player->control->raise_abort_epoch(2);
  });
  instance.on_all([](Player& player) {
    if (player.rank() != 0) expect(player.group->sync(SyncRow{}).status == Status::kAborted, "an aborted wait ended otherwise");
  });
  agent.join();
  instance.enter(2);
  instance.on_all([](Player& player) { expect(player.step(0) == Status::kOk, "the step after an abort ended otherwise"); });
}

/// A group that closes is dead to its peers: one sees it, the other hears of it, both leave, and go on without it.
void closing_is_seen_as_death() {
  Instance instance;
  instance.enter(1);
  instance.on_all([](Player& player) {
    expect(player.step(0) == Status::kOk, "a step ended otherwise");
    if (player.rank() == 1) {
      player.group->close();
      return;
    }
    const SyncOutcome outcome = player.group->sync(SyncRow{});
    expect(outcome.status == Status::kSuspect && outcome.suspects.has(1), "a closed group was not suspected");
    expect(player.group->sync(SyncRow{}).status == Status::kSuspect, "an epoch went on after a suspicion");
  });
  instance.incarnations[1] = 2;
  instance.players[1] = instance.make(1, 2);
  instance.link(1);
  for (const u32 rank : {0U, 2U}) {
    ::close(instance.players[rank]->group->renew_inbox(1));
    instance.link(rank);
  }
  instance.link(1);
  instance.enter(2);
  instance.on_all([](Player& player) { expect(player.step(0) == Status::kOk, "the step after a rejoin ended otherwise"); });
}

/// Two ranks in another place of the step: both are told.
void disagreement_is_told() {
  Instance instance;
  instance.enter(1);
  instance.on_all([](Player& player) {
    if (player.rank() == 0) {
      expect(player.round(0, 0) == Status::kEpochSkew, "a rank that skipped a sync was not told");
    } else {
      expect(player.group->sync(SyncRow{}).status == Status::kEpochSkew, "a rank that waits for a skipped sync was not told");
    }
  });
}

/// A rank that is excluded finds out by its peers' word, also with no agent to tell it.
void exclusion_is_told() {
  Instance instance;
  instance.enter(1);
  TableData without = instance.table(2);
  const std::vector<u64> members = {1, 1, 0, 0};
  without = table_of(2, members, kLayers);
  instance.on_all([&](Player& player) {
    if (player.rank() == 2) {
      expect(player.group->sync(SyncRow{}).status == Status::kFenced, "an excluded rank was not fenced");
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    player.group->stage(without);
    player.group->activate(2);
    expect(player.step(0) == Status::kOk, "the step without the excluded rank ended otherwise");
  });
}

}  // namespace

int main(int count, char** names) {
  struct Test {
    const char* name;
    void (*run)();
  };
  const Test tests[] = {
      {"run_ahead", [] { run_ahead(0, false); }},
      {"run_ahead_fixed", [] { run_ahead(0, true); }},
      {"numbers_wrap_around", [] { run_ahead(0xFFFFFFFFU - 50, false); }},
      {"swap_under_load", swap_under_load},
      {"links_beside_steps", links_beside_steps},
      {"abort_wakes_waiters", abort_wakes_waiters},
      {"closing_is_seen_as_death", closing_is_seen_as_death},
      {"disagreement_is_told", disagreement_is_told},
      {"exclusion_is_told", exclusion_is_told},
  };
  for (const Test& test : tests) {
    if (count > 1 && std::string(names[1]) != test.name) continue;
    test.run();
    std::printf("%s ok\n", test.name);
    std::fflush(stdout);
  }
  return 0;
}
