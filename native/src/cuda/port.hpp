// One source, two machines: the algorithms of this folder run as CUDA kernels, and as host threads under ThreadSanitizer.
//
// On the device a `Thread` is a CUDA thread and everything below is one instruction or one intrinsic. In the model a `Thread` is a
// host thread, a block is a few of them around a barrier, and a warp is one lane wide: each intrinsic over lanes then is the
// identity, while every ordering between threads, blocks and ranks is real and is checked by the sanitizer.
//
// Host code never includes this header: it would see the model's definitions under the device's names.
#pragma once

#include "state.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#define EEP_DEVICE __device__ __forceinline__
#else
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#define EEP_DEVICE inline
#endif

namespace eep::gpu {

/// 16 bytes: the widest access of one thread, eight bf16 values.
struct alignas(16) Vec16 {
  u32 word[4];
};

#if defined(__CUDACC__)

constexpr u32 kLanes = 32;

/// The calling CUDA thread.
struct Thread {
  EEP_DEVICE u32 thread() const { return threadIdx.x; }
  EEP_DEVICE u32 threads() const { return blockDim.x; }
  EEP_DEVICE u32 block() const { return blockIdx.x; }
  EEP_DEVICE u32 blocks() const { return gridDim.x; }
  EEP_DEVICE u32 lane() const { return threadIdx.x % kLanes; }
  EEP_DEVICE u32 warp() const { return threadIdx.x / kLanes; }
  EEP_DEVICE u32 warps() const { return blockDim.x / kLanes; }
  EEP_DEVICE void barrier() const { __syncthreads(); }
  EEP_DEVICE u8* shared() const {
    extern __shared__ Vec16 dynamic_shared[];
    return reinterpret_cast<u8*>(dynamic_shared);
  }
};

EEP_DEVICE u64 load_acquire_system(const u64* p) {
  u64 value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}
EEP_DEVICE u64 load_relaxed_system(const u64* p) {
  u64 value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}
EEP_DEVICE void store_relaxed_system(u64* p, u64 value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}
/// Publishes what this block wrote before its last barrier: barriers make the release cumulative over the block's threads, and the
/// acquire-release countdown over the grid's blocks (PTX ISA, memory consistency model, causality order).
EEP_DEVICE void store_release_system(u64* p, u64 value) {
  asm volatile("fence.acq_rel.sys;" ::: "memory");
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}
EEP_DEVICE void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
EEP_DEVICE u32 add_acquire_release(u32* p, u32 value) {
  u32 old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}
EEP_DEVICE u32 add_relaxed(u32* p, u32 value) { return atomicAdd(p, value); }
EEP_DEVICE u64 or_relaxed(u64* p, u64 bits) {
  return atomicOr(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(bits));
}
EEP_DEVICE u32 or_relaxed(u32* p, u32 bits) { return atomicOr(p, bits); }
EEP_DEVICE void add_relaxed(float* p, float value) { atomicAdd(p, value); }
EEP_DEVICE void add_relaxed(u64* p, u64 value) { atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value)); }
EEP_DEVICE u32 load_relaxed(const u32* p) {
  u32 value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
EEP_DEVICE u64 load_relaxed(const u64* p) {
  u64 value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}
EEP_DEVICE void store_relaxed(u32* p, u32 value) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory"); }
EEP_DEVICE float load_relaxed(const float* p) {
  float value;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(p) : "memory");
  return value;
}
EEP_DEVICE void store_relaxed(float* p, float value) { asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(p), "f"(value) : "memory"); }
EEP_DEVICE void store_relaxed(u64* p, u64 value) { asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory"); }

EEP_DEVICE u64 now_ns() {
  u64 value;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
  return value;
}
EEP_DEVICE void pause() { __nanosleep(20); }

/// Rows are read once and written once: ordinary loads, because a read-only (non-coherent) load of memory that a peer writes while
/// the kernel runs is undefined.
EEP_DEVICE Vec16 load_row(const void* p) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  return Vec16{{v.x, v.y, v.z, v.w}};
}
EEP_DEVICE void store_row(void* p, const Vec16& v) {
  *reinterpret_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}
EEP_DEVICE void store_half_row(void* p, u64 v) { *reinterpret_cast<u64*>(p) = v; }

EEP_DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
EEP_DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xFFFF0000U); }
EEP_DEVICE u32 to_bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const u32*>(&pair);
}
EEP_DEVICE u32 to_e4m3_quad(float a, float b, float c, float d) {
  const u32 low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const u32 high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | (high << 16);
}
EEP_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
EEP_DEVICE float magnitude(float a) { return fabsf(a); }

/// Largest value among the 16 lanes that hold one 128-wide scaling group.
EEP_DEVICE float group_max(float value) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, step));
  return value;
}

#else

constexpr u32 kLanes = 1;

/// What a model's thread needs to know, and the two places where the model interferes: a rank that crashes leaves at its next
/// write, pause or barrier, as a killed process would.
struct Block {
  virtual ~Block() = default;
  virtual void barrier() = 0;
  virtual void before_write() = 0;
  virtual void while_waiting() = 0;
};
inline thread_local Block* current_block = nullptr;

/// The calling host thread, one of a few that play a block.
struct Thread {
  u32 thread_ = 0, threads_ = 1, block_ = 0, blocks_ = 1;
  Block* group = nullptr;
  u8* shared_ = nullptr;
  u32 thread() const { return thread_; }
  u32 threads() const { return threads_; }
  u32 block() const { return block_; }
  u32 blocks() const { return blocks_; }
  u32 lane() const { return 0; }
  u32 warp() const { return thread_; }
  u32 warps() const { return threads_; }
  void barrier() const { group->barrier(); }
  u8* shared() const { return shared_; }
};

inline void crash_point() {
  if (current_block != nullptr) current_block->before_write();
}
inline u64 load_acquire_system(const u64* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline u64 load_relaxed_system(const u64* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store_relaxed_system(u64* p, u64 value) {
  crash_point();
  __atomic_store_n(p, value, __ATOMIC_RELAXED);
}
inline void store_release_system(u64* p, u64 value) {
  crash_point();
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
inline void fence_system() { __sync_synchronize(); }  // the sanitizer does not model fences: what they order here is atomic
inline u32 add_acquire_release(u32* p, u32 value) { return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL); }
inline u32 add_relaxed(u32* p, u32 value) { return __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }
inline u64 or_relaxed(u64* p, u64 bits) { return __atomic_fetch_or(p, bits, __ATOMIC_RELAXED); }
inline u32 or_relaxed(u32* p, u32 bits) { return __atomic_fetch_or(p, bits, __ATOMIC_RELAXED); }
inline void add_relaxed(float* p, float value) { std::atomic_ref<float>(*p).fetch_add(value, std::memory_order_relaxed); }
inline void add_relaxed(u64* p, u64 value) { __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }
inline u32 load_relaxed(const u32* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline u64 load_relaxed(const u64* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store_relaxed(u32* p, u32 value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
inline void store_relaxed(u64* p, u64 value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
inline float load_relaxed(const float* p) { return std::atomic_ref<float>(*const_cast<float*>(p)).load(std::memory_order_relaxed); }
inline void store_relaxed(float* p, float value) { std::atomic_ref<float>(*p).store(value, std::memory_order_relaxed); }

inline u64 now_ns() {
  return static_cast<u64>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}
inline void pause() {
  if (current_block != nullptr) current_block->while_waiting();
  std::this_thread::yield();
}

inline Vec16 load_row(const void* p) {
  Vec16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_row(void* p, const Vec16& v) {
  crash_point();
  std::memcpy(p, &v, sizeof v);
}
inline void store_half_row(void* p, u64 v) {
  crash_point();
  std::memcpy(p, &v, sizeof v);
}

inline float from_bits(u32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline u32 to_bits(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float bf16_low(u32 pair) { return from_bits(pair << 16); }
inline float bf16_high(u32 pair) { return from_bits(pair & 0xFFFF0000U); }
inline u32 to_bf16(float value) {
  const u32 bits = to_bits(value);
  return (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;  // round to nearest even, as cvt.rn does; the model feeds no NaN
}
inline u32 to_bf16_pair(float low, float high) { return to_bf16(low) | (to_bf16(high) << 16); }
/// Round to nearest even, saturating at ±448: what cvt.rn.satfinite.e4m3x2 does.
inline u32 to_e4m3(float value) {
  const u32 sign = std::signbit(value) ? 0x80U : 0U;
  const float size = std::fabs(value);
  if (size >= 448.0F) return sign | 0x7EU;
  int exponent = 0;
  std::frexp(size, &exponent);
  const int scale = exponent - 1 < -6 ? -6 : exponent - 1;  // below 2^-6 the format is subnormal: a fixed step of 2^-9
  const float rounded = std::nearbyint(std::ldexp(size, 3 - scale));
  const auto units = static_cast<u32>(rounded);  // 0 … 16 steps of 2^(scale-3)
  const u32 biased = static_cast<u32>(scale + 6) * 8U;
  return sign | (biased + units);
}
inline u32 to_e4m3_quad(float a, float b, float c, float d) {
  return to_e4m3(a) | (to_e4m3(b) << 8) | (to_e4m3(c) << 16) | (to_e4m3(d) << 24);
}
inline float larger(float a, float b) { return a > b ? a : b; }
inline float magnitude(float a) { return std::fabs(a); }
inline float group_max(float value) { return value; }

#endif

/// A scaling group of fp8 is 128 values wide: 16 lanes of a CUDA warp, or the whole of a model's one-lane warp.
constexpr u32 kGroupLanes = kLanes < 16 ? kLanes : 16;
/// Vectors of eight bf16 that one lane handles side by side: its piece of a row.
constexpr u32 kPieceVectors = kGroupWidth / 8 / kGroupLanes;
constexpr u32 kPieceValues = kPieceVectors * 8;

}  // namespace eep::gpu
