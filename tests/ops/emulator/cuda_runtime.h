// A CUDA device in plain C++, as far as the kernels in src/ops/csrc/cuda need one.
//
// Every CUDA thread is a fiber; blocks run one after the other. Barriers, shuffles and votes suspend
// a fiber until all others of its block or warp have come to the same place; if that cannot happen,
// the run stops with an error. Shared memory is filled with garbage before each block. Threads take
// turns forwards or backwards, so that results which depend on the order show. It does not see data
// races within a turn, nor the memory model, nor inline assembly.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__
#define __align__(bytes)

struct Index {
  unsigned x, y, z;
};
// Of the fiber that is running.
extern Index threadIdx, blockIdx, gridDim;

namespace emulator {

void wait_for_block();
// Waits for the warp; returns the values that its 32 threads have given. `kind` must be the same.
const double* exchange(double value, int kind);

}  // namespace emulator

inline void __syncthreads() { emulator::wait_for_block(); }

// float and double survive the way through double.
template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int distance) {
  const double* values = emulator::exchange(mask == 0xffffffff ? value : NAN, distance);
  return static_cast<V>(values[(threadIdx.x & 31) ^ distance]);
}

inline bool __all_sync(unsigned mask, bool value) {
  const double* values = emulator::exchange(mask == 0xffffffff && value, -1);
  for (int lane = 0; lane < 32; ++lane) {
    if (values[lane] == 0) return false;
  }
  return true;
}

template <typename V>
V atomicAdd(V* to, V value) {
  const V old = *to;
  *to = old + value;
  return old;
}

inline int atomicAnd(int* to, int value) {
  const int old = *to;
  *to = old & value;
  return old;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline double __hiloint2double(int high, int low) {
  const uint64_t bits = static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 |
                        static_cast<unsigned>(low);
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }

inline int min(int a, int b) { return b < a ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
