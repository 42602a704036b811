#include "cpu/control.hpp"

#include <pybind11/stl.h>

#include "bindings.hpp"

namespace py = pybind11;

namespace eep {

namespace {

std::vector<Evidence> evidence_of(const FaultRecord& record) {
  std::vector<Evidence> evidence;
  for (const u32 rank : ranks_of(record.suspects)) evidence.push_back(record.evidence[rank]);
  return evidence;
}

std::vector<u64> waits_of(const ControlBlock& block) {
  std::vector<u64> waits(kMaxRanks);
  for (u32 rank = 0; rank < kMaxRanks; ++rank) waits[rank] = static_cast<u64>(block.receive_wait_us(rank));
  return waits;
}

std::optional<FaultRecord> wait_fault(const ControlBlock& block, u64 after, double timeout_s) {
  {
    const py::gil_scoped_release release;
    if (!block.wait_fault(after, timeout_s)) return std::nullopt;
  }
  return block.fault();
}

}  // namespace

void bind_control(py::module_& module) {
  py::class_<FaultRecord>(module, "FaultWord")
      .def_readonly("serial", &FaultRecord::serial)
      .def_readonly("epoch", &FaultRecord::epoch)
      .def_readonly("step", &FaultRecord::step)
      .def_readonly("layer", &FaultRecord::layer)
      .def_readonly("unix_ns", &FaultRecord::unix_ns)
      .def_property_readonly("suspects", [](const FaultRecord& record) { return ranks_of(record.suspects); })
      .def_property_readonly("evidence", &evidence_of);
  using Free = py::call_guard<py::gil_scoped_release>;
  py::class_<ControlBlock, std::shared_ptr<ControlBlock>>(module, "ControlBlock")
      .def_static("create", &ControlBlock::create, py::arg("path"), py::kw_only(), py::arg("rank"), py::arg("incarnation"))
      .def_static("attach", &ControlBlock::attach, py::arg("path"))
      .def_property_readonly("path", &ControlBlock::path)
      .def_property_readonly("rank", &ControlBlock::rank)
      .def_property_readonly("incarnation", &ControlBlock::incarnation)
      .def_property("phase", &ControlBlock::phase, &ControlBlock::set_phase)
      .def_property("engine_pid", &ControlBlock::engine_pid, &ControlBlock::set_engine_pid)
      .def_property("epoch", &ControlBlock::epoch, &ControlBlock::set_epoch)
      .def_property("step", &ControlBlock::step, &ControlBlock::set_step)
      .def_property("beacon", &ControlBlock::beacon, &ControlBlock::raise_beacon)
      .def("fault", &ControlBlock::fault)
      .def("wait_fault", &wait_fault, py::kw_only(), py::arg("after"), py::arg("timeout_s"))
      .def("receive_wait_us", &waits_of)
      .def_property("committed_epoch", &ControlBlock::committed_epoch, &ControlBlock::set_committed_epoch)
      .def_property("abort_epoch", &ControlBlock::abort_epoch, &ControlBlock::set_abort_epoch)
      .def_property("fenced", &ControlBlock::fenced, &ControlBlock::set_fenced)
      .def("abort", &ControlBlock::raise_abort_epoch, py::arg("epoch"))
      .def("commit", &ControlBlock::raise_committed_epoch, py::arg("epoch"))
      .def("wait_commit", &ControlBlock::wait_commit, py::kw_only(), py::arg("after"), py::arg("timeout_s"), Free());
}

}  // namespace eep
