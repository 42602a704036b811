#include "cpu/vocabulary.hpp"

#include <pybind11/native_enum.h>

#include "bindings.hpp"
#include "protocol/layout.hpp"

namespace py = pybind11;

namespace eep {

void bind_vocabulary(py::module_& module) {
  py::native_enum<DType>(module, "DType", "enum.IntEnum")
      .value("FLOAT32", DType::kFloat32)
      .value("BFLOAT16", DType::kBfloat16)
      .finalize();
  py::native_enum<Status>(module, "Status", "enum.IntEnum")
      .value("OK", Status::kOk)
      .value("SUSPECT", Status::kSuspect)
      .value("ABORTED", Status::kAborted)
      .value("EPOCH_SKEW", Status::kEpochSkew)
      .value("FENCED", Status::kFenced)
      .finalize();
  py::native_enum<Evidence>(module, "Evidence", "enum.IntEnum")
      .value("NONE", Evidence::kNone)
      .value("DEAD", Evidence::kDead)
      .value("SILENT", Evidence::kSilent)
      .value("SLOW", Evidence::kSlow)
      .value("GOSSIP", Evidence::kGossip)
      .finalize();
  py::native_enum<Phase>(module, "Phase", "enum.IntEnum")
      .value("STARTING", Phase::kStarting)
      .value("LOADING", Phase::kLoading)
      .value("WARMING", Phase::kWarming)
      .value("SERVING", Phase::kServing)
      .value("DRAINING", Phase::kDraining)
      .value("STOPPING", Phase::kStopping)
      .finalize();
  py::class_<Shape>(module, "Shape")
      .def(py::init([](u32 max_ranks, u32 max_tokens, u32 hidden, u32 max_topk, u32 max_slots, u32 n_experts, u32 n_layers, DType dtype) {
             return Shape{max_ranks, max_tokens, hidden, max_topk, max_slots, n_experts, n_layers, dtype};
           }),
           py::kw_only(), py::arg("max_ranks"), py::arg("max_tokens"), py::arg("hidden"), py::arg("max_topk"), py::arg("max_slots"),
           py::arg("n_experts"), py::arg("n_layers"), py::arg("dtype"))
      .def_readonly("max_ranks", &Shape::max_ranks)
      .def_readonly("max_tokens", &Shape::max_tokens)
      .def_readonly("hidden", &Shape::hidden)
      .def_readonly("max_topk", &Shape::max_topk)
      .def_readonly("max_slots", &Shape::max_slots)
      .def_readonly("n_experts", &Shape::n_experts)
      .def_readonly("n_layers", &Shape::n_layers)
      .def_readonly("dtype", &Shape::dtype)
      .def_property_readonly("chunk_bytes", [](const Shape& shape) { return shape.chunk_bytes(); });
}

}  // namespace eep
