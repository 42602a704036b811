// What the kernel lends us, returned exactly once.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "protocol/device.hpp"

namespace eep {

[[noreturn]] inline void fail_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() = default;
  Mapping(void* address, u64 bytes) : address_(static_cast<u8*>(address)), bytes_(bytes) {}
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (address_ != nullptr) ::munmap(address_, bytes_);
  }
  u8* get() const { return address_; }
  u64 bytes() const { return bytes_; }
  u8* release() {
    bytes_ = 0;
    return std::exchange(address_, nullptr);
  }
  explicit operator bool() const { return address_ != nullptr; }

 private:
  u8* address_ = nullptr;
  u64 bytes_ = 0;
};

/// Maps `fd` shared and writable.
inline Mapping map_shared(int fd, u64 bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) fail_errno("mmap of " + std::to_string(bytes) + " shared bytes");
  return Mapping(address, bytes);
}

/// Private memory that costs nothing until it is touched.
inline Mapping map_private(u64 bytes, int protection = PROT_READ | PROT_WRITE) {
  void* address = ::mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) fail_errno("mmap of " + std::to_string(bytes) + " private bytes");
  return Mapping(address, bytes);
}

}  // namespace eep
