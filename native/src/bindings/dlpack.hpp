// The binary interface of DLPack 1.3 (https://dmlc.github.io/dlpack), as far as it is used here: host tensors in and out, and the
// exchange table that a tensor type offers so that no Python is run to look at a tensor.
#pragma once

#include <cstdint>

namespace eep::dlpack {

constexpr std::int32_t kCpu = 1;
enum Code : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Version {
  std::uint32_t major, minor;
};
struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: row-major
  std::uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

/// `__dlpack_c_exchange_api__` of a tensor type.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocator;
  void* managed_from_object;
  void* managed_to_object;
  /// Fills a borrowed description: valid while the object lives and is not resized. 0: success.
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace eep::dlpack
