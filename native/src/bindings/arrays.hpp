// Arrays across the boundary, never copied: torch tensors through DLPack's exchange table, numpy arrays through the buffer protocol,
// anything else through `__dlpack__`.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "dlpack.hpp"
#include "protocol/device.hpp"

namespace eep {

enum class Kind : u8 { kFloat32, kBfloat16, kInt32, kInt64, kUInt16, kOther };

/// A look at somebody's array while the object is held. `name` is the argument's, for messages.
class ArrayView {
 public:
  ArrayView(pybind11::handle object, const char* name, bool writable = false);
  ~ArrayView();
  ArrayView(const ArrayView&) = delete;
  ArrayView& operator=(const ArrayView&) = delete;

  u8* data() const { return data_; }
  Kind kind() const { return kind_; }
  u32 ndim() const { return ndim_; }
  i64 size(u32 axis) const { return shape_[axis]; }
  i64 row_stride() const { return strides_[0]; }
  u64 item_bytes() const { return item_; }
  u64 bytes() const;

  /// Two-dimensional, of this kind (bfloat16 also as its 16 bits), dense within a row; else ValueError.
  const ArrayView& rows_of(Kind kind) const;
  /// Without gaps, in row-major order; else ValueError.
  const ArrayView& contiguous() const;

 private:
  static constexpr u32 kMaxDims = 8;
  bool from_exchange(pybind11::handle object);
  bool from_buffer(pybind11::handle object, bool writable);
  void from_capsule(pybind11::handle object);
  void from_tensor(const dlpack::Tensor& tensor);
  [[noreturn]] void refuse(const std::string& why) const;

  const char* name_;
  u8* data_ = nullptr;
  Kind kind_ = Kind::kOther;
  u32 ndim_ = 0;
  u64 item_ = 0;
  i64 shape_[kMaxDims] = {};
  i64 strides_[kMaxDims] = {};  // bytes
  Py_buffer buffer_{};
  pybind11::object capsule_;
};

/// Memory of ours that Python may look at: offers `__dlpack__` and keeps its owner alive.
struct LentArray {
  std::shared_ptr<void> owner;
  void* data = nullptr;
  Kind kind = Kind::kFloat32;
  std::vector<i64> shape;
};

void bind_arrays(pybind11::module_& module);

}  // namespace eep
