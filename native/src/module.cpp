// The binding file only delegates.
#include <pybind11/pybind11.h>

#include <system_error>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "cpu/heir.hpp"
#include "kernels/kernels.hpp"

namespace py = pybind11;

namespace {

unsigned long long checksum_of(py::handle object) {
  const eep::ArrayView view(object, "buffer");
  view.contiguous();
  const py::gil_scoped_release release;
  return eep::checksum(view.data(), view.bytes());
}

void translate_system_errors(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const std::system_error& error) {
    PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), error.what()).ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Elastic dispatch and combine.";
  py::register_local_exception_translator(&translate_system_errors);
  eep::bind_vocabulary(module);
  eep::bind_control(module);
  eep::bind_group(module);
  eep::bind_experts(module);
  module.def("isa", [] { return eep::kernels().name; });
  module.def(
      "leave_heir",
      [](double linger_s) {
        eep::HeirOptions options;
        options.linger_ns = static_cast<eep::u64>(linger_s * 1e9);
        return eep::leave_heir(options);
      },
      py::kw_only(), py::arg("linger_s") = 0.1);
  module.def("checksum", &checksum_of, py::arg("buffer"));
}
