// A CUDA device in plain C++, as far as the kernels in src/ops/csrc/cuda need one.
//
// Every CUDA thread is a fiber; blocks run one after the other. Barriers, shuffles and votes suspend
// a fiber until all others of its block or warp have come to the same place; if that cannot happen,
// the run stops with an error. Shared memory is filled with garbage before each block. Threads take
// turns forwards or backwards, so that results which depend on the order show. Two threads that use
// the same word of shared memory without a barrier between them stop the run, unless both only read
// or both add atomically. The memory model and inline assembly are not emulated.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__
#define __align__(bytes)

struct Index {
  unsigned x, y, z;
};
// Of the fiber that is running.
extern Index threadIdx, blockIdx, gridDim;

#define INTERNIMAGE_EMULATOR

namespace emulator {

void wait_for_block();
// Waits for the warp; returns the 32 values that its threads have given. `kind` must be the same.
const uint64_t* exchange(uint64_t value, int kind);
// An access to shared memory, if the address is there: 'r'ead, 'w'rite, 'a'tomic.
void note_shared(const void* address, size_t size, char kind);
// An atomic addition to global memory, if the address is there, of up to 16 bytes.
void note_addition(const void* address);

template <typename V>
uint64_t to_bits(V value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}

template <typename V>
V from_bits(uint64_t bits) {
  V value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void add_four(float* to, float a, float b, float c, float d) {
  note_addition(to);
  to[0] += a;
  to[1] += b;
  to[2] += c;
  to[3] += d;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp() { emulator::exchange(0, -1); }

template <typename V>
V __shfl_xor_sync(unsigned, V value, int distance) {
  const uint64_t* values = emulator::exchange(emulator::to_bits(value), distance);
  return emulator::from_bits<V>(values[(threadIdx.x & 31) ^ distance]);
}

inline bool __all_sync(unsigned, bool value) {
  const uint64_t* values = emulator::exchange(value, -2);
  for (int lane = 0; lane < 32; ++lane) {
    if (values[lane] == 0) return false;
  }
  return true;
}

inline bool __any_sync(unsigned, bool value) {
  const uint64_t* values = emulator::exchange(value, -3);
  for (int lane = 0; lane < 32; ++lane) {
    if (values[lane] != 0) return true;
  }
  return false;
}

template <typename V>
V atomicAdd(V* to, V value) {
  emulator::note_addition(to);
  const V old = *to;
  *to = old + value;
  return old;
}

inline int atomicOr(int* to, int value) {
  emulator::note_shared(to, sizeof(int), 'a');
  const int old = *to;
  *to = old | value;
  return old;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

inline float __uint_as_float(unsigned bits) { return emulator::from_bits<float>(bits); }
inline float __int_as_float(int bits) { return emulator::from_bits<float>(emulator::to_bits(bits)); }
inline unsigned __float_as_uint(float x) { return emulator::from_bits<unsigned>(emulator::to_bits(x)); }
inline int __float_as_int(float x) { return emulator::from_bits<int>(emulator::to_bits(x)); }
inline long long __double_as_longlong(double x) {
  return emulator::from_bits<long long>(emulator::to_bits(x));
}
inline double __longlong_as_double(long long bits) {
  return emulator::from_bits<double>(emulator::to_bits(bits));
}
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 |
                        static_cast<unsigned>(low);
  return emulator::from_bits<double>(bits);
}

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Of the device's mathematics; the standard library has them for both types in its namespace only.
using std::abs;
using std::frexp;
using std::ldexp;
