// The binding file only delegates.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../bindings/bindings.hpp"
#include "rank.hpp"

namespace py = pybind11;

namespace eep::gpu {
namespace {

template <class T>
T* at(u64 address) {
  return reinterpret_cast<T*>(address);
}
cudaStream_t stream_of(u64 handle) { return reinterpret_cast<cudaStream_t>(handle); }

Batch batch_of(u64 ids, bool ids_are_64, u32 tokens, u32 topk, u32 layer) { return Batch{tokens, topk, layer, ids_are_64 ? 1U : 0U, at<const void>(ids)}; }

std::unique_ptr<DeviceRank> make_rank(int device, u32 rank, u64 incarnation, u32 max_ranks, u32 max_tokens, u32 hidden, u32 max_topk, u32 max_slots,
                                      u32 n_experts, u32 n_layers, bool fp8, u32 blocks, u32 threads, bool fixed, u32 fixed_ranks,
                                      std::shared_ptr<ControlBlock> control, int doorbell) {
  RankOptions options;
  options.device = device;
  options.rank = rank;
  options.incarnation = incarnation;
  options.geometry = Geometry{max_ranks, max_tokens, hidden, max_topk, max_slots, n_experts, n_layers, fp8 ? Wire::kFp8 : Wire::kBf16};
  options.grid = Grid{blocks, threads};
  options.fixed = fixed;
  options.fixed_ranks = fixed_ranks;
  options.control = std::move(control);
  options.doorbell = doorbell;
  const py::gil_scoped_release release;
  return std::make_unique<DeviceRank>(options);
}

py::tuple wait_sync(const DeviceRank& self, u64 after, double timeout_s) {
  SyncOutcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = self.wait_sync(after, timeout_s);
  }
  return py::make_tuple(outcome.finished, outcome.status, outcome.present, outcome.suspects);
}

py::array_t<float> loads_of(const DeviceRank& self) {
  const Geometry& g = self.options().geometry;
  const std::vector<float> loads = self.loads();
  py::array_t<float> out({g.n_layers, g.n_experts});
  std::copy(loads.begin(), loads.end(), out.mutable_data());
  return out;
}

/// A contiguous buffer of host memory; the caller holds it while it is copied.
struct HostBytes {
  explicit HostBytes(const py::buffer& buffer, bool writable) : info(buffer.request(writable)) {
    if (!PyBuffer_IsContiguous(info.view(), 'C')) throw py::value_error("buffer: must be contiguous");
  }
  py::buffer_info info;
  u64 bytes() const { return static_cast<u64>(info.size) * static_cast<u64>(info.itemsize); }
};

void write_bytes(SharedMemory& self, u64 offset, const py::buffer& from) {
  const HostBytes host(from, false);
  const py::gil_scoped_release release;
  self.write(offset, host.info.ptr, host.bytes());
}
void read_bytes(SharedMemory& self, u64 offset, const py::buffer& to) {
  const HostBytes host(to, true);
  const py::gil_scoped_release release;
  self.read(offset, host.info.ptr, host.bytes());
}

py::dict packed_numbers(const TableData& table, u32 own_rank, u32 max_ranks, u32 max_slots) {
  Geometry g;
  g.max_ranks = max_ranks, g.max_slots = max_slots, g.n_experts = table.n_experts, g.n_layers = table.n_layers;
  const PackedTable packed = pack_table(table, g, own_rank, max_ranks * max_slots);
  std::vector<std::tuple<u32, u32, u32>> replicas;
  for (const Replica& replica : packed.replicas) replicas.emplace_back(replica.rank, replica.slot, replica.cumulative);
  py::dict out;
  out["epoch"] = packed.header.epoch;
  out["member"] = packed.header.member != 0;
  out["active"] = eep::ranks_of(RankMask{{packed.header.active[0], packed.header.active[1]}});
  out["offsets"] = packed.offsets;
  out["replicas"] = replicas;
  return out;
}

py::dict geometry_numbers(u32 max_ranks, u32 max_tokens, u32 hidden, u32 max_topk, u32 max_slots, u32 n_experts, u32 n_layers, bool fp8) {
  const Geometry g{max_ranks, max_tokens, hidden, max_topk, max_slots, n_experts, n_layers, fp8 ? Wire::kFp8 : Wire::kBf16};
  py::dict out;
  out["chunk_bytes"] = g.chunk_bytes();
  out["dispatch_row_bytes"] = g.dispatch_row_bytes();
  out["combine_row_bytes"] = g.combine_row_bytes();
  out["slots_stride"] = g.slots_stride();
  out["slots_at"] = py::make_tuple(g.slots_at(0, 0), g.slots_at(1, max_tokens - 1));
  out["weights_at"] = py::make_tuple(g.weights_at(0, 0), g.weights_at(1, max_tokens - 1));
  out["row_at"] = py::make_tuple(g.row_at(0, 0), g.row_at(1, max_tokens - 1));
  out["partial_at"] = py::make_tuple(g.partial_at(0, 0), g.partial_at(1, max_tokens - 1));
  return out;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Elastic dispatch and combine on a CUDA device.";
  py::register_exception<CudaError>(module, "CudaError", PyExc_RuntimeError);

  module.def("device_count", [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
  });
  module.def("geometry", &geometry_numbers, py::kw_only(), py::arg("max_ranks"), py::arg("max_tokens"), py::arg("hidden"), py::arg("max_topk"),
             py::arg("max_slots"), py::arg("n_experts"), py::arg("n_layers"), py::arg("fp8"));
  module.def("pack_table", &packed_numbers, py::arg("table"), py::kw_only(), py::arg("own_rank"), py::arg("max_ranks"), py::arg("max_slots"));
  module.def("tag", [](u32 epoch, u32 number) { return tag_of(epoch, number); });
  module.def("pair_hash", &pair_hash);
  module.def("choose_replica", [](const std::vector<u32>& cumulative, u32 source, u32 token, u32 k, u32 expert) {
    std::vector<Replica> replicas;
    for (const u32 value : cumulative) replicas.push_back(Replica{0, 0, value});
    std::vector<u32> offsets(expert + 2, 0);
    offsets[expert + 1] = static_cast<u32>(replicas.size());
    return LayerView{offsets.data(), replicas.data()}.choose(source, token, k, expert);
  });

  py::class_<Partition>(module, "Partition")
      .def(py::init<int, u32>(), py::kw_only(), py::arg("device"), py::arg("parts"))
      .def_property_readonly("multiprocessors", &Partition::multiprocessors)
      .def_property_readonly("streams", [](const Partition& self) {
        std::vector<u64> out;
        for (const CUstream stream : self.streams()) out.push_back(reinterpret_cast<u64>(stream));
        return out;
      });

  py::class_<PinnedMemory>(module, "PinnedMemory", py::buffer_protocol())
      .def(py::init<u64>(), py::arg("bytes"))
      .def_buffer([](PinnedMemory& self) { return py::buffer_info(self.data(), static_cast<py::ssize_t>(self.bytes()), false); });
  py::class_<SharedMemory>(module, "SharedMemory")
      .def(py::init<int, u64>(), py::kw_only(), py::arg("device"), py::arg("bytes"))
      .def(py::init<int, int, u64>(), py::kw_only(), py::arg("device"), py::arg("descriptor"), py::arg("bytes"))
      .def_property_readonly("address", [](const SharedMemory& self) { return reinterpret_cast<u64>(self.base()); })
      .def_property_readonly("bytes", &SharedMemory::bytes)
      .def("descriptor", &SharedMemory::descriptor)
      .def("write", &write_bytes, py::arg("offset"), py::arg("source"))
      .def("read", &read_bytes, py::arg("offset"), py::arg("to"));

  py::class_<Fault>(module, "Fault")
      .def_readonly("serial", &Fault::serial)
      .def_readonly("epoch", &Fault::epoch)
      .def_readonly("round", &Fault::round)
      .def_readonly("layer", &Fault::layer)
      .def_readonly("suspect", &Fault::suspect)
      .def_readonly("evidence", &Fault::evidence)
      .def_readonly("step", &Fault::step)
      .def_readonly("device_ns", &Fault::device_ns);

  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<DeviceRank>(module, "DeviceRank")
      .def(py::init(&make_rank), py::kw_only(), py::arg("device"), py::arg("rank"), py::arg("incarnation"), py::arg("max_ranks"),
           py::arg("max_tokens"), py::arg("hidden"), py::arg("max_topk"), py::arg("max_slots"), py::arg("n_experts"), py::arg("n_layers"),
           py::arg("fp8"), py::arg("blocks"), py::arg("threads"), py::arg("fixed"), py::arg("fixed_ranks"), py::arg("control").none(true), py::arg("doorbell"))
      .def("inbox_descriptor", &DeviceRank::inbox_descriptor, Release())
      .def("renew_inbox", &DeviceRank::renew_inbox, Release())
      .def("connect", &DeviceRank::connect, Release(), py::arg("peer"), py::kw_only(), py::arg("incarnation"), py::arg("descriptor"), py::arg("pid"))
      .def("disconnect", &DeviceRank::disconnect, Release())
      .def("linked", &DeviceRank::linked)
      .def("chunk_address", &DeviceRank::chunk_address)
      .def("peer_address", &DeviceRank::peer_address)
      .def_property_readonly("chunk_bytes", &DeviceRank::chunk_bytes)
      .def_property_readonly("slot_capacity", &DeviceRank::slot_capacity)
      .def("stage", &DeviceRank::stage, Release())  // native.Table: the type is shared by both modules
      .def_property_readonly("staged_epoch", &DeviceRank::staged_epoch)
      .def("activate", &DeviceRank::activate, Release())
      .def("activate_at", &DeviceRank::activate_at, py::arg("epoch"), py::kw_only(), py::arg("at_step"))
      .def_property_readonly("running_epoch", &DeviceRank::running_epoch)
      .def("set_limits", &DeviceRank::set_limits, Release(), py::kw_only(), py::arg("silence_ns"), py::arg("hard_ns"), py::arg("min_polls"))
      .def(
          "set_row",
          [](DeviceRank& self, u64 tokens, u64 flags, u64 prepared, u64 committed, u64 user) {
            self.set_row(SyncRow{tokens, flags, prepared, committed, user});
          },
          py::kw_only(), py::arg("tokens"), py::arg("flags"), py::arg("prepared"), py::arg("committed"), py::arg("user"))
      .def("set_flip", &DeviceRank::set_flip)
      .def("call_off", &DeviceRank::call_off)
      .def("fence", &DeviceRank::fence)
      .def("mark_dead", &DeviceRank::mark_dead)
      .def("faults", &DeviceRank::faults, py::kw_only(), py::arg("after"))
      .def_property_readonly("status", &DeviceRank::status)
      .def_property_readonly("suspects", &DeviceRank::suspects)
      .def_property_readonly("syncs_done", &DeviceRank::syncs_done)
      .def_property_readonly("next_sync", &DeviceRank::next_sync)
      .def("publish_faults", &DeviceRank::publish_faults, Release())
      .def("loads", &loads_of)
      .def("wait_sync", &wait_sync, py::kw_only(), py::arg("after"), py::arg("timeout_s"))
      .def("row",
           [](const DeviceRank& self, u32 rank) {
             const SyncRow row = self.row_of(rank);
             return py::make_tuple(row.tokens, row.flags, row.prepared, row.committed, row.user);
           })
      .def_property_readonly("probe_ns", &DeviceRank::probe_ns)
      .def("counters",
           [](const DeviceRank& self) {
             const Context c = self.context();
             py::dict out;
             out["epoch"] = c.epoch;
             out["round"] = c.round;
             out["syncs"] = c.forwards;
             out["rounds_ok"] = c.rounds_ok;
             out["rounds_lost"] = c.rounds_lost;
             out["masked"] = c.masked;
             out["faults"] = c.fault_count;
             return out;
           })
      .def("set_grid", [](DeviceRank& self, u32 blocks, u32 threads) { self.set_grid(Grid{blocks, threads}); })
      .def("launch_sync", [](DeviceRank& self, u64 stream) { self.launch_sync(stream_of(stream)); })
      .def("launch_probe", [](DeviceRank& self, u64 stream) { self.launch_probe(stream_of(stream)); })
      .def(
          "launch_dispatch",
          [](DeviceRank& self, u64 stream, u32 phases, u64 x, u64 ids, bool ids_are_64, u64 weights, u32 tokens, u32 topk, u32 layer, u64 rows,
             u64 scales, u64 counts, u64 pair_slots, u64 pair_weights, u64 origins, bool pair_list) {
            Dispatch d{batch_of(ids, ids_are_64, tokens, topk, layer), at<const u8>(x), at<const float>(weights), {}};
            d.out = Outputs{at<u8>(rows), at<float>(scales), at<u32>(counts), at<i32>(pair_slots), at<float>(pair_weights), at<i32>(origins),
                            pair_list ? 1U : 0U};
            self.launch_dispatch(d, phases, stream_of(stream));
          },
          py::kw_only(), py::arg("stream"), py::arg("phases"), py::arg("x"), py::arg("ids"), py::arg("ids_are_64"), py::arg("weights"),
          py::arg("tokens"), py::arg("topk"), py::arg("layer"), py::arg("rows"), py::arg("scales"), py::arg("counts"), py::arg("pair_slots"),
          py::arg("pair_weights"), py::arg("origins"), py::arg("pair_list"))
      .def(
          "launch_combine",
          [](DeviceRank& self, u64 stream, u32 phases, u64 y, u64 out, u64 missing, u64 ids, bool ids_are_64, bool weighted, u32 tokens, u32 topk,
             u32 layer, u64 counts, u64 pair_slots) {
            const Combine c{batch_of(ids, ids_are_64, tokens, topk, layer), at<const u8>(y), at<u8>(out), at<u8>(missing), weighted ? 1U : 0U,
                            at<u32>(counts), at<i32>(pair_slots)};
            self.launch_combine(c, phases, stream_of(stream));
          },
          py::kw_only(), py::arg("stream"), py::arg("phases"), py::arg("y"), py::arg("out"), py::arg("missing"), py::arg("ids"),
          py::arg("ids_are_64"), py::arg("weighted"), py::arg("tokens"), py::arg("topk"), py::arg("layer"), py::arg("counts"), py::arg("pair_slots"));
}

}  // namespace eep::gpu
