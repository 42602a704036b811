// The binding file only delegates.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "placement.hpp"

namespace py = pybind11;
using namespace planner;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

Ranks make_ranks(const Array<int>& capacity, const Array<int>& domain, const Array<int>& host,
                 const Array<double>& speed, int width,
                 int experts, int copies) {
  if (domain.size() != capacity.size() || host.size() != capacity.size() || speed.size() != capacity.size())
    throw std::invalid_argument("capacity, domain, host and speed must have one entry for each rank");
  Ranks ranks;
  ranks.count = static_cast<int>(capacity.size());
  ranks.width = width;
  ranks.experts = experts;
  ranks.copies = copies;
  ranks.rank_of.resize(static_cast<std::size_t>(ranks.slots()));
  for (int s = 0; s < ranks.slots(); ++s) ranks.rank_of[s] = s / width;
  ranks.capacity.assign(capacity.data(), capacity.data() + capacity.size());
  ranks.domain.assign(domain.data(), domain.data() + domain.size());
  ranks.host.assign(host.data(), host.data() + host.size());
  ranks.speed.assign(speed.data(), speed.data() + speed.size());
  for (int r = 0; r < ranks.count; ++r) {
    if (ranks.capacity[r] < 0 || ranks.capacity[r] > width) throw std::invalid_argument("capacity must be 0 … slots");
    if (!(ranks.speed[r] > 0)) throw std::invalid_argument("speed must be above 0");
    ranks.total_speed += ranks.capacity[r] > 0 ? ranks.speed[r] : 0;
  }
  return ranks;
}

struct Input {
  Array<std::uint16_t> slots, weights;
  Array<double> demand;
  std::optional<Array<std::uint8_t>> pinned, absent;

  Live view(const Ranks& ranks) const {
    if (slots.ndim() != 3 || weights.size() != slots.size() || slots.shape(1) != ranks.count ||
        slots.shape(2) != ranks.width)
      throw std::invalid_argument("slots and weights must be [layers, ranks, slots]");
    if (demand.size() != slots.shape(0) * ranks.experts) throw std::invalid_argument("demand must be [layers, experts]");
    if (pinned && pinned->size() != slots.shape(0) * ranks.count * ranks.experts)
      throw std::invalid_argument("pinned must be [layers, ranks, experts]");
    if (absent && absent->size() != demand.size()) throw std::invalid_argument("absent must be [layers, experts]");
    return {static_cast<int>(slots.shape(0)), slots.data(), weights.data(), demand.data(),
            pinned ? pinned->data() : nullptr, absent ? absent->data() : nullptr};
  }
};

template <typename T>
py::array_t<T> as_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple report(const Outcome& outcome) {
  return py::make_tuple(outcome.uncovered, as_array(outcome.written), as_array(outcome.worst), as_array(outcome.ideal));
}

py::array_t<std::uint16_t> table(const Array<std::uint16_t>& like) {
  return py::array_t<std::uint16_t>({like.shape(0), like.shape(1), like.shape(2)});
}

}  // namespace

PYBIND11_MODULE(_kernels, module) {
  module.doc() = "Placement kernels: layers planned in native threads.";

  py::class_<Ranks>(module, "Ranks")
      .def(py::init(&make_ranks), py::kw_only(), py::arg("capacity"), py::arg("domain"), py::arg("host"), py::arg("speed"),
           py::arg("width"), py::arg("experts"), py::arg("copies"));

  module.def(
      "evolve",
      [](const Ranks& ranks, const Array<std::uint16_t>& slots, const Array<std::uint16_t>& weights,
         const Array<double>& demand, const std::optional<Array<std::uint8_t>>& pinned,
         const std::optional<Array<std::uint8_t>>& absent, bool scratch, bool improve, bool relocate,
         bool fill, long long budget, double tolerance, int threads) {
        const Input input{slots, weights, demand, pinned, absent};
        const Live live = input.view(ranks);
        py::array_t<std::uint16_t> new_slots = table(slots), new_weights = table(slots);
        const Tables out{new_slots.mutable_data(), new_weights.mutable_data()};
        const Stages stages{scratch, improve, relocate, fill, budget, tolerance};
        Outcome outcome;
        {
          const py::gil_scoped_release release;
          outcome = evolve(ranks, live, stages, out, threads);
        }
        return py::make_tuple(new_slots, new_weights, report(outcome));
      },
      py::arg("ranks"), py::arg("slots"), py::arg("weights"), py::arg("demand"), py::kw_only(), py::arg("pinned"), py::arg("absent"),
      py::arg("scratch"), py::arg("improve"), py::arg("relocate"), py::arg("fill"), py::arg("budget"), py::arg("tolerance"),
      py::arg("threads"));

  module.def(
      "split",
      [](const Ranks& ranks, const Array<std::uint16_t>& slots, const Array<std::uint16_t>& weights,
         const Array<double>& demand, int threads) {
        const Input input{slots, weights, demand, std::nullopt, std::nullopt};
        const Live live = input.view(ranks);
        py::array_t<std::uint16_t> new_weights = table(slots);
        std::uint16_t* out = new_weights.mutable_data();
        Outcome outcome;
        {
          const py::gil_scoped_release release;
          outcome = split(ranks, live, out, threads);
        }
        return py::make_tuple(new_weights, report(outcome));
      },
      py::arg("ranks"), py::arg("slots"), py::arg("weights"), py::arg("demand"), py::kw_only(), py::arg("threads"));

  module.def(
      "contingencies",
      [](const Ranks& ranks, const Array<std::uint16_t>& slots, const Array<std::uint16_t>& weights,
         const Array<double>& demand, const std::optional<Array<std::uint8_t>>& absent,
         const std::vector<std::vector<int>>& lost, int threads) {
        const Input input{slots, weights, demand, std::nullopt, absent};
        const Live live = input.view(ranks);
        for (const std::vector<int>& scenario : lost)
          for (const int rank : scenario)
            if (rank < 0 || rank >= ranks.count) throw std::invalid_argument("lost: no such rank");
        const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(lost.size()), slots.shape(0), slots.shape(1),
                                             slots.shape(2)};
        py::array_t<std::uint16_t> new_slots(shape), new_weights(shape);
        const Tables out{new_slots.mutable_data(), new_weights.mutable_data()};
        std::vector<Outcome> outcomes;
        {
          const py::gil_scoped_release release;
          outcomes = contingencies(ranks, live, lost, out, threads);
        }
        py::list reports;
        for (const Outcome& outcome : outcomes) reports.append(report(outcome));
        return py::make_tuple(new_slots, new_weights, reports);
      },
      py::arg("ranks"), py::arg("slots"), py::arg("weights"), py::arg("demand"), py::kw_only(), py::arg("absent"), py::arg("lost"),
      py::arg("threads"));
}
