// Memory that other processes write: one physical allocation for each inbox chunk, exported as a POSIX descriptor, and replaced under
// the same address when its writer is fenced. Legacy CUDA IPC is not used: a killed exporter takes its importers with it.
#pragma once

#include <memory>
#include <vector>

#include "driver.hpp"
#include "state.hpp"

namespace eep::gpu {

/// Bytes that a chunk of `bytes` really takes on `device`.
u64 allocation_bytes(int device, u64 bytes);

/// A rank's inbox: one reserved range of addresses, and for each source an allocation of its own mapped into it.
class Inbox {
 public:
  Inbox(int device, u32 ranks, u64 chunk_bytes);
  ~Inbox();
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  u8* base() const { return reinterpret_cast<u8*>(address_); }
  u64 stride() const { return stride_; }
  /// A descriptor of the chunk that `source` writes into; the caller closes it.
  int descriptor(u32 source) const;
  /// Fresh zeroed memory under the chunk's address. Whoever imported the old descriptor keeps writing into memory nobody reads.
  /// The caller has made sure that no kernel of this rank touches the chunk meanwhile.
  void renew(u32 source, cudaStream_t stream);

 private:
  void map_fresh(u32 source, cudaStream_t stream);
  void unmap(u32 source);

  int device_;
  u64 stride_;
  CUdeviceptr address_ = 0;
  std::vector<CUmemGenericAllocationHandle> handles_;
  std::vector<bool> mapped_;
};

/// Device memory that processes of this host share by descriptor: a peer's inbox chunk, or a rank's expert slots.
class SharedMemory {
 public:
  /// Fresh, zeroed.
  SharedMemory(int device, u64 bytes);
  /// What somebody else exported; takes the descriptor over.
  SharedMemory(int device, int descriptor, u64 bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  u8* base() const { return reinterpret_cast<u8*>(address_); }
  u64 bytes() const { return bytes_; }
  /// The caller closes it.
  int descriptor() const;
  /// Copies from and to host memory, beside whatever the engine's streams do; return when it is done.
  void write(u64 offset, const void* from, u64 bytes);
  void read(u64 offset, void* to, u64 bytes);

 private:
  void map(const char* what);
  void release();
  void check_range(u64 offset, u64 bytes) const;

  int device_;
  u64 bytes_;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr address_ = 0;
  bool mapped_ = false;
  cudaStream_t stream_ = nullptr;
};

/// Host memory that the device copies from and to at full speed.
class PinnedMemory {
 public:
  explicit PinnedMemory(u64 bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  u8* data() const { return data_; }
  u64 bytes() const { return bytes_; }

 private:
  u64 bytes_;
  u8* data_ = nullptr;
};

/// Device memory of this process alone.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "allocate device memory");
    check(cudaMemset(data_, 0, bytes()), "clear device memory");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return data_; }
  size_t bytes() const { return count_ * sizeof(T); }

 private:
  size_t count_;
  T* data_ = nullptr;
};

/// Pinned memory that host and device both map.
template <class T>
class HostShared {
 public:
  HostShared() {
    void* host = nullptr;
    check(cudaHostAlloc(&host, sizeof(T), cudaHostAllocMapped | cudaHostAllocPortable), "allocate the page shared with the device");
    data_ = new (host) T{};
    void* device = nullptr;
    check(cudaHostGetDevicePointer(&device, host, 0), "map the shared page on the device");
    device_ = static_cast<T*>(device);
  }
  ~HostShared() { cudaFreeHost(data_); }
  HostShared(const HostShared&) = delete;
  HostShared& operator=(const HostShared&) = delete;
  T* operator->() const { return data_; }
  T* device() const { return device_; }

 private:
  T* data_ = nullptr;
  T* device_ = nullptr;
};

/// The device split into `parts` equal groups of multiprocessors with a stream in each, so that virtual ranks on one device never
/// take each other's multiprocessors.
class Partition {
 public:
  Partition(int device, u32 parts);
  ~Partition();
  Partition(const Partition&) = delete;
  Partition& operator=(const Partition&) = delete;
  const std::vector<CUstream>& streams() const { return streams_; }
  /// Multiprocessors of one part.
  u32 multiprocessors() const { return multiprocessors_; }

 private:
  std::vector<CUgreenCtx> contexts_;
  std::vector<CUstream> streams_;
  u32 multiprocessors_ = 0;
};

}  // namespace eep::gpu
