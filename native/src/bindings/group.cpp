#include "cpu/group.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "arrays.hpp"
#include "bindings.hpp"

namespace py = pybind11;

namespace eep {

namespace {

using GroupPointer = std::shared_ptr<Group>;

/// A result together with whose memory it points into.
struct Dispatched {
  GroupPointer group;
  DispatchOutcome outcome;
};

Kind kind_of(const Shape& shape) { return shape.dtype == DType::kFloat32 ? Kind::kFloat32 : Kind::kBfloat16; }

template <class T>
std::vector<T> flat(const py::object& object, const char* name) {
  const auto array = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(object);
  if (!array) throw py::value_error(std::string(name) + " is no array of integers");
  return std::vector<T>(array.data(), array.data() + array.size());
}

std::shared_ptr<TableData> make_table(u64 epoch, std::vector<u32> active, std::vector<u64> incarnations, const py::object& offsets,
                                      const py::object& ranks, const py::object& slots, const py::object& weights) {
  const auto shape = py::array::ensure(offsets);
  if (!shape || shape.ndim() != 2 || shape.shape(1) < 2) throw py::value_error("offsets must be int32 [layers, experts + 1]");
  TableSource source;
  source.epoch = epoch;
  source.n_layers = static_cast<u32>(shape.shape(0));
  source.n_experts = static_cast<u32>(shape.shape(1) - 1);
  source.active = std::move(active);
  source.incarnations = std::move(incarnations);
  source.offsets = flat<i32>(offsets, "offsets");
  source.ranks = flat<u16>(ranks, "ranks");
  source.slots = flat<u16>(slots, "slots");
  source.weights = flat<u16>(weights, "weights");
  return std::make_shared<TableData>(build_table(source));
}

std::vector<std::pair<u32, u32>> missing_of(const TableData& table) {
  std::vector<std::pair<u32, u32>> missing;
  for (u32 layer = 0; layer < table.n_layers; ++layer) {
    const LayerView view = table.layer(layer);
    for (u32 expert = 0; expert < table.n_experts; ++expert) {
      if (view.offsets[expert] == view.offsets[expert + 1]) missing.emplace_back(layer, expert);
    }
  }
  return missing;
}

u64 nanoseconds(const char* name, double seconds) {
  if (!(seconds > 0 && seconds < 1e6)) throw py::value_error(std::string(name) + "=" + std::to_string(seconds) + " must lie in (0, 1e6) s");
  return static_cast<u64>(seconds * 1e9);
}

GroupPointer make_group(u32 rank, u64 incarnation, const Shape& shape, std::shared_ptr<ControlBlock> control, double timeout_s,
                        double hard_timeout_s, bool fixed) {
  GroupOptions options;
  options.rank = rank;
  options.incarnation = incarnation;
  options.silence_ns = nanoseconds("timeout_s", timeout_s);
  options.hard_ns = nanoseconds("hard_timeout_s", hard_timeout_s);
  options.fixed = fixed;
  const py::gil_scoped_release release;
  return std::make_shared<Group>(shape, options, std::move(control));
}

Dispatched dispatch(const GroupPointer& group, u32 layer, py::handle x, py::handle topk_ids, py::handle topk_weights) {
  const ArrayView rows(x, "x"), ids(topk_ids, "topk_ids"), weights(topk_weights, "topk_weights");
  rows.rows_of(kind_of(group->shape()));
  weights.rows_of(Kind::kFloat32);
  ids.rows_of(ids.kind() == Kind::kInt64 ? Kind::kInt64 : Kind::kInt32);
  if (rows.size(1) != group->shape().hidden) throw py::value_error("x has rows of " + std::to_string(rows.size(1)) + " values, hidden is " + std::to_string(group->shape().hidden));
  if (ids.size(0) != rows.size(0) || weights.size(0) != rows.size(0) || weights.size(1) != ids.size(1))
    throw py::value_error("topk_ids and topk_weights must both be [tokens, k] for the tokens of x");
  TokenBatch batch;
  batch.tokens = static_cast<u32>(rows.size(0));
  batch.topk = static_cast<u32>(ids.size(1));
  batch.rows = rows.data();
  batch.row_stride = rows.row_stride();
  batch.ids = ids.data();
  batch.ids_stride = ids.row_stride();
  batch.ids_are_64 = ids.kind() == Kind::kInt64;
  batch.weights = weights.data();
  batch.weights_stride = weights.row_stride();
  const py::gil_scoped_release release;
  return Dispatched{group, group->dispatch(layer, batch)};
}

CombineOutcome combine(Group& group, py::handle y, py::handle out, bool weighted) {
  const ArrayView from(y, "y"), to(out, "out", true);
  const Kind kind = kind_of(group.shape());
  from.rows_of(kind);
  to.rows_of(kind);
  if (from.size(1) != group.shape().hidden || to.size(1) != group.shape().hidden)
    throw py::value_error("y and out must have rows of hidden=" + std::to_string(group.shape().hidden) + " values");
  const py::gil_scoped_release release;
  return group.combine(from.data(), from.row_stride(), static_cast<u32>(from.size(0)), to.data(), to.row_stride(),
                       static_cast<u32>(to.size(0)), weighted);
}

template <class T>
LentArray lend(const GroupPointer& group, const T* data, Kind kind, std::vector<i64> shape) {
  return LentArray{group, const_cast<T*>(data), kind, std::move(shape)};
}

py::array_t<float> tokens_per_expert(const Group& group) {
  py::array_t<float> copy({group.shape().n_layers, group.shape().n_experts});
  group.read_tokens_per_expert(copy.mutable_data());
  return copy;
}

std::map<std::string, u64> counters_of(const Group& group) {
  const Counters c = group.counters();
  return {{"syncs", c.syncs},
          {"rounds", c.rounds},
          {"bytes_sent", c.bytes_sent},
          {"bytes_received", c.bytes_received},
          {"suspected_dead", c.suspected_dead},
          {"suspected_silent", c.suspected_silent},
          {"suspected_slow", c.suspected_slow},
          {"suspected_gossip", c.suspected_gossip},
          {"missed_deadlines", c.missed_deadlines},
          {"slept", c.slept},
          {"renewed_inboxes", c.renewed_inboxes},
          {"masked", c.masked}};
}

void bind_results(py::module_& module) {
  py::class_<SyncRow>(module, "SyncRow")
      .def(py::init([](u64 tokens, u64 flags, u64 prepared_epoch, u64 committed_epoch, u64 user) {
             return SyncRow{0, tokens, flags, prepared_epoch, committed_epoch, user};
           }),
           py::kw_only(), py::arg("tokens"), py::arg("flags") = 0, py::arg("prepared_epoch") = 0, py::arg("committed_epoch") = 0,
           py::arg("user") = 0)
      .def_readonly("rank", &SyncRow::rank)
      .def_readonly("tokens", &SyncRow::tokens)
      .def_readonly("flags", &SyncRow::flags)
      .def_readonly("prepared_epoch", &SyncRow::prepared_epoch)
      .def_readonly("committed_epoch", &SyncRow::committed_epoch)
      .def_readonly("user", &SyncRow::user);
  py::class_<SyncOutcome>(module, "SyncResult")
      .def_readonly("status", &SyncOutcome::status)
      .def_readonly("rows", &SyncOutcome::rows)
      .def_property_readonly("suspects", [](const SyncOutcome& r) { return ranks_of(r.suspects); });
  py::class_<Dispatched>(module, "Dispatched")
      .def_property_readonly("status", [](const Dispatched& d) { return d.outcome.status; })
      .def_property_readonly("suspects", [](const Dispatched& d) { return ranks_of(d.outcome.suspects); })
      .def_property_readonly("pairs", [](const Dispatched& d) { return d.outcome.pairs; })
      .def_property_readonly("masked", [](const Dispatched& d) { return d.outcome.masked; })
      .def_property_readonly("rows",
                             [](const Dispatched& d) {
                               return lend(d.group, d.group->rows(), kind_of(d.group->shape()), {d.outcome.pairs, d.group->shape().hidden});
                             })
      .def_property_readonly("slots", [](const Dispatched& d) { return lend(d.group, d.group->slots(), Kind::kInt32, {d.outcome.pairs}); })
      .def_property_readonly("weights", [](const Dispatched& d) { return lend(d.group, d.group->weights(), Kind::kFloat32, {d.outcome.pairs}); });
  py::class_<CombineOutcome>(module, "Combined")
      .def_readonly("status", &CombineOutcome::status)
      .def_property_readonly("suspects", [](const CombineOutcome& r) { return ranks_of(r.suspects); })
      .def_property_readonly("missing", [](const CombineOutcome& r) {
        return py::array_t<u8>(static_cast<py::ssize_t>(r.missing.size()), r.missing.data());
      });
}

void bind_table(py::module_& module) {
  py::class_<TableData, std::shared_ptr<TableData>>(module, "Table")
      .def(py::init(&make_table), py::kw_only(), py::arg("epoch"), py::arg("active"), py::arg("incarnations"), py::arg("offsets"),
           py::arg("ranks"), py::arg("slots"), py::arg("weights"))
      .def_readonly("epoch", &TableData::epoch)
      .def_property_readonly("active", [](const TableData& table) { return ranks_of(table.active); })
      .def_property_readonly("missing", &missing_of)
      .def("without", [](const TableData& table, u32 rank, u64 epoch) { return std::make_shared<TableData>(without(table, rank, epoch)); },
           py::arg("rank"), py::kw_only(), py::arg("epoch"));
}

}  // namespace

void bind_group(py::module_& module) {
  bind_arrays(module);
  bind_results(module);
  bind_table(module);
  using Free = py::call_guard<py::gil_scoped_release>;
  py::class_<Group, GroupPointer>(module, "Group")
      .def(py::init(&make_group), py::kw_only(), py::arg("rank"), py::arg("incarnation"), py::arg("shape"), py::arg("control").none(false),
           py::arg("timeout_s") = 1.0, py::arg("hard_timeout_s") = 30.0, py::arg("fixed") = false)
      .def_property_readonly("rank", [](const Group& g) { return g.options().rank; })
      .def_property_readonly("incarnation", [](const Group& g) { return g.options().incarnation; })
      .def_property_readonly("shape", &Group::shape)
      .def_property_readonly("epoch", &Group::epoch)
      .def_property_readonly("round", &Group::round)
      .def("inbox_fd", &Group::inbox_fd, py::arg("source"), Free())
      .def("renew_inbox", &Group::renew_inbox, py::arg("source"), Free())
      .def("doorbell_fd", &Group::doorbell_fd)
      .def("connect", &Group::connect, py::arg("peer"), py::kw_only(), py::arg("incarnation"), py::arg("inbox_fd"), py::arg("doorbell_fd"),
           py::arg("pid"), Free())
      .def("disconnect", &Group::disconnect, py::arg("peer"), Free())
      .def("linked", &Group::linked)
      .def("stage", [](Group& group, const std::shared_ptr<TableData>& table) {
             const py::gil_scoped_release release;
             group.stage(*table);
           }, py::arg("table"))
      .def_property_readonly("staged_epoch", &Group::staged_epoch)
      .def("activate", &Group::activate, py::arg("epoch"), Free())
      .def("sync_arrived", &Group::sync_arrived, Free())
      .def("look_again", &Group::look_again, Free())
      .def("ring", &Group::ring, Free())
      .def("sync", &Group::sync, py::arg("row"), Free())
      .def("dispatch", &dispatch, py::arg("layer"), py::arg("x"), py::arg("topk_ids"), py::arg("topk_weights"))
      .def("combine", &combine, py::arg("y"), py::arg("out"), py::kw_only(), py::arg("weighted"))
      .def("close", &Group::close, Free())
      .def("tokens_per_expert", &tokens_per_expert)
      .def("counters", &counters_of);
}

}  // namespace eep
