#include "kernels/experts.hpp"

#include <string>

#include "arrays.hpp"
#include "bindings.hpp"

namespace py = pybind11;

namespace eep {

namespace {

void need(bool holds, const char* what) {
  if (!holds) throw py::value_error(what);
}

/// bfloat16 is also taken as its 16 bits.
Kind value_kind(const ArrayView& view) { return view.kind() == Kind::kUInt16 ? Kind::kBfloat16 : view.kind(); }

void run_swiglu(py::handle w13, py::handle w2, py::handle rows, py::handle slots, py::handle weights, py::handle out) {
  const ArrayView gates(w13, "w13"), downs(w2, "w2"), in(rows, "rows"), chosen(slots, "slots"), shares(weights, "weights");
  const ArrayView result(out, "out", true);
  for (const ArrayView* view : {&gates, &downs, &in, &chosen, &shares, &result}) view->contiguous();
  need(gates.ndim() == 3 && downs.ndim() == 3, "w13 must be [slots, 2 × intermediate, hidden] and w2 [slots, hidden, intermediate]");
  need(gates.size(0) == downs.size(0) && gates.size(1) == 2 * downs.size(2) && gates.size(2) == downs.size(1),
       "w13 [slots, 2 × intermediate, hidden] and w2 [slots, hidden, intermediate] disagree");
  const Kind kind = value_kind(gates);
  need(kind == Kind::kFloat32 || kind == Kind::kBfloat16, "w13 must be float32 or bfloat16");
  need(value_kind(downs) == kind && value_kind(in) == kind && value_kind(result) == kind, "w2, rows and out must have the dtype of w13");
  need(in.ndim() == 2 && in.size(1) == gates.size(2), "rows must be [pairs, hidden]");
  need(result.ndim() == 2 && result.size(0) == in.size(0) && result.size(1) == in.size(1), "out must have the shape of rows");
  need(chosen.kind() == Kind::kInt32 && chosen.bytes() == static_cast<u64>(in.size(0)) * sizeof(i32), "slots must be int32, one for each row");
  need(shares.kind() == Kind::kFloat32 && shares.bytes() == static_cast<u64>(in.size(0)) * sizeof(float), "weights must be float32, one for each row");
  const Experts experts{gates.data(), downs.data(), static_cast<u32>(gates.size(0)), static_cast<u32>(gates.size(2)),
                        static_cast<u32>(downs.size(2)), kind == Kind::kFloat32 ? DType::kFloat32 : DType::kBfloat16};
  const ExpertRows pairs{in.data(), reinterpret_cast<const i32*>(chosen.data()), reinterpret_cast<const float*>(shares.data()),
                         result.data(), static_cast<u32>(in.size(0))};
  const py::gil_scoped_release release;
  swiglu(experts, pairs);
}

}  // namespace

void bind_experts(py::module_& module) {
  module.def("swiglu", &run_swiglu, py::arg("w13"), py::arg("w2"), py::arg("rows"), py::arg("slots"), py::arg("weights"), py::arg("out"));
}

}  // namespace eep
