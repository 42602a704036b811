#include "memory.hpp"

#include <unistd.h>

#include "../cpu/handles.hpp"

namespace eep::gpu {
namespace {

CUmemAllocationProp properties(int device) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop.location.id = device;
  prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return prop;
}

void allow_access(int device, CUdeviceptr address, u64 bytes) {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check(driver().mem_set_access(address, bytes, &access, 1), "allow access to an inbox chunk");
}

}  // namespace

u64 allocation_bytes(int device, u64 bytes) {
  const CUmemAllocationProp prop = properties(device);
  size_t unit = 0;
  check(driver().mem_granularity(&unit, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM), "ask for the allocation granularity");
  return round_up(bytes, unit);
}

Inbox::Inbox(int device, u32 ranks, u64 chunk_bytes)
    : device_(device), stride_(allocation_bytes(device, chunk_bytes)), handles_(ranks, 0), mapped_(ranks, false) {
  check(driver().mem_address_reserve(&address_, stride_ * ranks, 0, 0, 0), "reserve addresses for the inbox");
  for (u32 source = 0; source < ranks; ++source) map_fresh(source, nullptr);
}

Inbox::~Inbox() {
  for (u32 source = 0; source < handles_.size(); ++source) unmap(source);
  driver().mem_address_free(address_, stride_ * handles_.size());
}

void Inbox::map_fresh(u32 source, cudaStream_t stream) {
  const CUmemAllocationProp prop = properties(device_);
  const CUdeviceptr at = address_ + stride_ * source;
  check(driver().mem_create(&handles_[source], stride_, &prop, 0), "allocate an inbox chunk");
  check(driver().mem_map(at, stride_, 0, handles_[source], 0), "map an inbox chunk");
  mapped_[source] = true;
  allow_access(device_, at, stride_);
  check(cudaMemsetAsync(reinterpret_cast<void*>(at), 0, stride_, stream), "clear an inbox chunk");
  check(cudaStreamSynchronize(stream), "clear an inbox chunk");
}

void Inbox::unmap(u32 source) {
  if (!mapped_[source]) return;
  driver().mem_unmap(address_ + stride_ * source, stride_);
  driver().mem_release(handles_[source]);
  mapped_[source] = false;
}

int Inbox::descriptor(u32 source) const {
  int fd = -1;
  check(driver().mem_export(&fd, handles_.at(source), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), "export an inbox chunk");
  return fd;
}

void Inbox::renew(u32 source, cudaStream_t stream) {
  unmap(source);
  map_fresh(source, stream);
}

SharedMemory::SharedMemory(int device, u64 bytes) : device_(device), bytes_(0) {
  check(cudaSetDevice(device), "choose the device");
  check(cudaFree(nullptr), "start the device");
  bytes_ = allocation_bytes(device, bytes);
  const CUmemAllocationProp prop = properties(device);
  check(driver().mem_create(&handle_, bytes_, &prop, 0), "allocate shared device memory");
  try {
    map("map shared device memory");
    check(cudaMemsetAsync(base(), 0, bytes_, stream_), "clear shared device memory");
    check(cudaStreamSynchronize(stream_), "clear shared device memory");
  } catch (...) {
    release();
    throw;
  }
}

SharedMemory::SharedMemory(int device, int descriptor, u64 bytes) : device_(device), bytes_(0) {
  const Descriptor owned(descriptor);
  check(cudaSetDevice(device), "choose the device");  // a thread of its own starts on device 0
  bytes_ = allocation_bytes(device, bytes);
  check(driver().mem_import(&handle_, reinterpret_cast<void*>(static_cast<std::uintptr_t>(owned.get())), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "import a peer's memory");
  try {
    map("map a peer's memory");
  } catch (...) {
    release();
    throw;
  }
}

void SharedMemory::map(const char* what) {
  check(driver().mem_address_reserve(&address_, bytes_, 0, 0, 0), what);
  check(driver().mem_map(address_, bytes_, 0, handle_, 0), what);
  mapped_ = true;
  allow_access(device_, address_, bytes_);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), what);
}

void SharedMemory::release() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (mapped_) driver().mem_unmap(address_, bytes_);
  if (address_ != 0) driver().mem_address_free(address_, bytes_);
  driver().mem_release(handle_);
}

SharedMemory::~SharedMemory() { release(); }

int SharedMemory::descriptor() const {
  int fd = -1;
  check(driver().mem_export(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), "export shared device memory");
  return fd;
}

void SharedMemory::check_range(u64 offset, u64 bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw std::invalid_argument("offset = " + std::to_string(offset) + ": " + std::to_string(bytes) + " bytes from there do not fit " +
                                std::to_string(bytes_));
  }
}

void SharedMemory::write(u64 offset, const void* from, u64 bytes) {
  check_range(offset, bytes);
  check(cudaSetDevice(device_), "choose the device");
  check(cudaMemcpyAsync(base() + offset, from, bytes, cudaMemcpyHostToDevice, stream_), "copy to the device");
  check(cudaStreamSynchronize(stream_), "copy to the device");
}

void SharedMemory::read(u64 offset, void* to, u64 bytes) {
  check_range(offset, bytes);
  check(cudaSetDevice(device_), "choose the device");
  check(cudaMemcpyAsync(to, base() + offset, bytes, cudaMemcpyDeviceToHost, stream_), "copy from the device");
  check(cudaStreamSynchronize(stream_), "copy from the device");
}

PinnedMemory::PinnedMemory(u64 bytes) : bytes_(bytes) {
  check(cudaHostAlloc(reinterpret_cast<void**>(&data_), bytes, cudaHostAllocPortable), "allocate pinned memory");
}
PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

Partition::Partition(int device, u32 parts) {
  check(cudaSetDevice(device), "choose the device");
  check(cudaFree(nullptr), "start the device");  // green contexts share the primary context: it is there first, and stays
  const Driver& d = driver();
  CUdevResource whole{};
  check(d.device_resource(device, &whole, CU_DEV_RESOURCE_TYPE_SM), "ask for the device's multiprocessors");
  constexpr u32 kUnit = 8;  // Hopper hands multiprocessors out in groups of 8
  const u32 each = whole.sm.smCount / parts / kUnit * kUnit;
  if (each == 0) {
    throw CudaError("partition: " + std::to_string(whole.sm.smCount) + " multiprocessors cannot be split into " + std::to_string(parts) +
                    " parts of at least " + std::to_string(kUnit) + "; ask for fewer parts");
  }
  std::vector<CUdevResource> split(parts);
  unsigned count = parts;
  CUdevResource rest{};
  check(d.split_multiprocessors(split.data(), &count, &whole, &rest, 0, each), "split the device's multiprocessors");
  if (count < parts) throw CudaError("partition: the driver gave " + std::to_string(count) + " parts of " + std::to_string(parts));
  multiprocessors_ = split[0].sm.smCount;
  for (u32 i = 0; i < parts; ++i) {
    CUdevResourceDesc description{};
    check(d.resource_descriptor(&description, &split[i], 1), "describe a part of the device");
    CUgreenCtx context = nullptr;
    check(d.green_create(&context, description, device, CU_GREEN_CTX_DEFAULT_STREAM), "create a green context");
    contexts_.push_back(context);
    CUstream stream = nullptr;
    check(d.green_stream(&stream, context, CU_STREAM_NON_BLOCKING, 0), "create a stream in a green context");
    streams_.push_back(stream);
  }
}

Partition::~Partition() {
  for (const CUstream stream : streams_) cudaStreamDestroy(stream);
  for (const CUgreenCtx context : contexts_) driver().green_destroy(context);
}

}  // namespace eep::gpu
