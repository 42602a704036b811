#include "arrays.hpp"

#include <array>

namespace py = pybind11;

namespace eep {

namespace {

struct KindFormat {
  Kind kind;
  u8 code, bits;
  const char* name;
  const char* buffer_formats;
};
constexpr KindFormat kFormats[] = {
    {Kind::kFloat32, dlpack::kFloat, 32, "float32", "f"}, {Kind::kBfloat16, dlpack::kBfloat, 16, "bfloat16", ""},
    {Kind::kInt32, dlpack::kInt, 32, "int32", "i"},       {Kind::kInt64, dlpack::kInt, 64, "int64", "lq"},
    {Kind::kUInt16, dlpack::kUInt, 16, "uint16", "H"},
};

const KindFormat* format_of(Kind kind) {
  for (const KindFormat& format : kFormats) {
    if (format.kind == kind) return &format;
  }
  return nullptr;
}

const dlpack::ExchangeApi* find_exchange(PyTypeObject* type) {
  const auto name = py::str("__dlpack_c_exchange_api__");
  const py::handle holder(reinterpret_cast<PyObject*>(type));
  if (!py::hasattr(holder, name)) return nullptr;
  const py::object capsule = py::getattr(holder, name);
  if (PyCapsule_CheckExact(capsule.ptr()) == 0) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr())));
  for (; api != nullptr; api = api->previous) {
    if (api->version.major == 1) return api;
  }
  PyErr_Clear();
  return nullptr;
}

/// The lookup runs Python, so the last few types are remembered (they are static types and live as long as the interpreter).
const dlpack::ExchangeApi* exchange_of(PyTypeObject* type) {
  struct Entry {
    PyTypeObject* type = nullptr;
    const dlpack::ExchangeApi* api = nullptr;
  };
  static std::array<Entry, 4> seen{};
  static u32 next = 0;
  for (const Entry& entry : seen) {
    if (entry.type == type) return entry.api;
  }
  Entry fresh{type, find_exchange(type)};
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  if (seen[next].type != nullptr) Py_DECREF(reinterpret_cast<PyObject*>(seen[next].type));
  seen[next] = fresh;
  next = (next + 1) % seen.size();
  return fresh.api;
}

void free_context(void* context) {
  const py::gil_scoped_acquire gil;
  delete static_cast<LentArray*>(context);
}

template <class ManagedTensor>
ManagedTensor* lend(const LentArray& array) {
  auto* kept = new LentArray(array);
  const KindFormat* format = format_of(array.kind);
  auto* managed = new ManagedTensor{};
  managed->tensor = {kept->data,
                     {dlpack::kCpu, 0},
                     static_cast<std::int32_t>(kept->shape.size()),
                     {format->code, format->bits, 1},
                     kept->shape.data(),
                     nullptr,
                     0};
  managed->context = kept;
  managed->deleter = [](ManagedTensor* self) {
    free_context(self->context);
    delete self;
  };
  return managed;
}

template <class ManagedTensor>
py::object capsule_of(const LentArray& array, const char* name) {
  ManagedTensor* managed = lend<ManagedTensor>(array);
  if constexpr (std::is_same_v<ManagedTensor, dlpack::ManagedVersioned>) managed->version = {1, 0};
  PyObject* capsule = PyCapsule_New(managed, name, [](PyObject* self) {
    const char* unused = std::is_same_v<ManagedTensor, dlpack::ManagedVersioned> ? "dltensor_versioned" : "dltensor";
    if (PyCapsule_IsValid(self, unused) == 0) return;  // taken over by the consumer
    auto* left = static_cast<ManagedTensor*>(PyCapsule_GetPointer(self, unused));
    left->deleter(left);
  });
  return py::reinterpret_steal<py::object>(capsule);
}

py::object to_dlpack(const LentArray& array, const py::object&, const py::object& max_version, const py::object&, const py::object&) {
  if (!max_version.is_none() && max_version.cast<py::tuple>()[0].cast<int>() >= 1)
    return capsule_of<dlpack::ManagedVersioned>(array, "dltensor_versioned");
  return capsule_of<dlpack::Managed>(array, "dltensor");
}

/// numpy has no bfloat16 of its own: there it shows as its 16 bits.
py::buffer_info to_buffer(const LentArray& array) {
  const KindFormat* format = format_of(array.kind == Kind::kBfloat16 ? Kind::kUInt16 : array.kind);
  const auto item = static_cast<py::ssize_t>(format->bits / 8);
  std::vector<py::ssize_t> strides(array.shape.size(), item);
  for (size_t i = array.shape.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * array.shape[i + 1];
  return py::buffer_info(array.data, item, std::string(1, format->buffer_formats[0]), static_cast<py::ssize_t>(array.shape.size()),
                         {array.shape.begin(), array.shape.end()}, strides);
}

}  // namespace

ArrayView::ArrayView(py::handle object, const char* name, bool writable) : name_(name) {
  if (!from_exchange(object) && !from_buffer(object, writable)) from_capsule(object);
}

ArrayView::~ArrayView() {
  if (buffer_.obj != nullptr) PyBuffer_Release(&buffer_);
}

void ArrayView::refuse(const std::string& why) const {
  std::string shape;
  for (u32 i = 0; i < ndim_; ++i) shape += (i == 0 ? "" : ", ") + std::to_string(shape_[i]);
  const KindFormat* format = format_of(kind_);
  throw py::value_error(std::string(name_) + " is " + (format != nullptr ? format->name : "of another type") + " [" + shape + "]: " + why);
}

void ArrayView::from_tensor(const dlpack::Tensor& tensor) {
  if (tensor.device.type != dlpack::kCpu) throw py::value_error(std::string(name_) + " is not in host memory");
  if (tensor.ndim > static_cast<i32>(kMaxDims)) throw py::value_error(std::string(name_) + " has too many dimensions");
  ndim_ = static_cast<u32>(tensor.ndim);
  item_ = tensor.dtype.bits / 8U;
  for (const KindFormat& format : kFormats) {
    if (format.code == tensor.dtype.code && format.bits == tensor.dtype.bits && tensor.dtype.lanes == 1) kind_ = format.kind;
  }
  i64 dense = static_cast<i64>(item_);
  for (u32 i = ndim_; i-- > 0;) {
    shape_[i] = tensor.shape[i];
    strides_[i] = tensor.strides != nullptr ? tensor.strides[i] * static_cast<i64>(item_) : dense;
    dense *= shape_[i];
  }
  data_ = static_cast<u8*>(tensor.data) + tensor.byte_offset;
}

bool ArrayView::from_exchange(py::handle object) {
  const dlpack::ExchangeApi* api = exchange_of(Py_TYPE(object.ptr()));
  if (api == nullptr || api->tensor_from_object == nullptr) return false;
  dlpack::Tensor tensor{};
  if (api->tensor_from_object(object.ptr(), &tensor) != 0) throw py::error_already_set();
  from_tensor(tensor);
  return true;
}

bool ArrayView::from_buffer(py::handle object, bool writable) {
  if (PyObject_CheckBuffer(object.ptr()) == 0) return false;
  const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw py::error_already_set();
  if (buffer_.ndim > static_cast<int>(kMaxDims)) refuse("it has too many dimensions");
  ndim_ = static_cast<u32>(buffer_.ndim);
  item_ = static_cast<u64>(buffer_.itemsize);
  const std::string format = buffer_.format != nullptr ? buffer_.format : "B";
  for (const KindFormat& known : kFormats) {
    if (format.size() == 1 && std::string(known.buffer_formats).find(format) != std::string::npos && known.bits == item_ * 8) kind_ = known.kind;
  }
  for (u32 i = 0; i < ndim_; ++i) {
    shape_[i] = buffer_.shape[i];
    strides_[i] = buffer_.strides[i];
  }
  data_ = static_cast<u8*>(buffer_.buf);
  return true;
}

void ArrayView::from_capsule(py::handle object) {
  if (!py::hasattr(object, "__dlpack__"))
    throw py::type_error(std::string(name_) + " offers neither the buffer protocol nor DLPack: pass a numpy array or a torch tensor");
  capsule_ = object.attr("__dlpack__")();
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  from_tensor(managed->tensor);
}

u64 ArrayView::bytes() const {
  u64 total = item_;
  for (u32 i = 0; i < ndim_; ++i) total *= static_cast<u64>(shape_[i]);
  return total;
}

const ArrayView& ArrayView::rows_of(Kind kind) const {
  if (ndim_ != 2) refuse("it must have two dimensions");
  if (kind_ != kind && !(kind == Kind::kBfloat16 && kind_ == Kind::kUInt16))
    refuse(std::string("it must be ") + format_of(kind)->name);
  if (shape_[1] > 1 && strides_[1] != static_cast<i64>(item_)) refuse("its rows must be dense: call .contiguous()");
  return *this;
}

const ArrayView& ArrayView::contiguous() const {
  i64 dense = static_cast<i64>(item_);
  for (u32 i = ndim_; i-- > 0;) {
    if (shape_[i] > 1 && strides_[i] != dense) refuse("it must be contiguous");
    dense *= shape_[i];
  }
  return *this;
}

void bind_arrays(py::module_& module) {
  py::class_<LentArray>(module, "LentArray", py::buffer_protocol())
      .def_buffer(&to_buffer)
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const LentArray&) { return py::make_tuple(dlpack::kCpu, 0); })
      .def("__len__", [](const LentArray& array) { return array.shape[0]; })
      .def_property_readonly("shape", [](const LentArray& array) { return py::tuple(py::cast(array.shape)); });
}

}  // namespace eep
