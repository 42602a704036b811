// What others may write at this rank: one chunk for each source rank, each its own memory file, side by side in one range of
// addresses that never changes. A source is fenced by putting fresh memory under its chunk's address: whatever the old process still
// writes lands in memory that nobody reads any more.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "handles.hpp"
#include "protocol/layout.hpp"

namespace eep {

/// Fresh zeroed shared memory that its other users cannot shrink.
struct Chunk {
  Descriptor fd;
  Mapping mapping;

  Control& control() const { return *reinterpret_cast<Control*>(mapping.get()); }
};

class Inbox {
 public:
  explicit Inbox(const Shape& shape);
  ~Inbox();
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  u64 chunk_bytes() const { return bytes_; }
  u8* chunk(u32 source) const { return base_.get() + source * bytes_; }
  Control& control(u32 source) const { return *reinterpret_cast<Control*>(chunk(source)); }
  /// A duplicate for the source; the caller closes it.
  Descriptor descriptor(u32 source) const;
  /// A chunk with all its pages present: the spare one where it is ready, else one made now.
  Chunk take_spare();
  /// Puts `fresh` under the address of the source's chunk. Readers see either memory, whole.
  void replace(u32 source, Chunk fresh);

 private:
  Chunk make_chunk() const;
  void keep_spare(std::stop_token stop);

  u64 bytes_;
  Mapping base_;
  std::vector<Descriptor> fds_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<Chunk> spare_;
  std::jthread maker_;
};

}  // namespace eep
