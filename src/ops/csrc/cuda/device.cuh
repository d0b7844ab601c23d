// What the kernels need of the device: vectors of channels, conversions, atomic additions.
//
// The branches on __CUDA_ARCH__ are the only code that the emulator of the tests does not run.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "call.h"

namespace internimage::cuda {

constexpr unsigned kWarp = 0xffffffff;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(Sum<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Neighbouring values that are loaded and stored as one.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T value[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}

template <int kCount, typename T>
__device__ __forceinline__ void store_pack(T* to, const Sum<T> (&values)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int k = 0; k < kCount; ++k) pack.value[k] = narrow<T>(values[k]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

template <typename T>
__device__ __forceinline__ Sum<T> load_side(const Side& side, int64_t at) {
  if (side.is_wide) return static_cast<const Sum<T>*>(side.data)[at];
  return widen(static_cast<const T*>(side.data)[at]);
}

template <typename T, int kCount>
__device__ __forceinline__ void store_side(const Side& side, int64_t at,
                                           const Sum<T> (&values)[kCount]) {
  if (side.is_wide) {
    store_pack(static_cast<Sum<T>*>(side.data) + at, values);
  } else {
    store_pack(static_cast<T*>(side.data) + at, values);
  }
}

// Adds to four neighbouring values in global memory.
__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

// The same for any number of values.
template <typename S, int kCount>
__device__ __forceinline__ void add_atomically(S* to, const S (&values)[kCount]) {
  if constexpr (std::is_same_v<S, float> && kCount % 4 == 0) {
#pragma unroll
    for (int k = 0; k < kCount; k += 4) {
      add_four(to + k, values[k], values[k + 1], values[k + 2], values[k + 3]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) atomicAdd(to + k, values[k]);
  }
}

// And in 64-bit integers, whose sum does not depend on the order of the additions.
template <typename S, int kCount>
__device__ __forceinline__ void add_fixed_point(int64_t* to, const S (&values)[kCount],
                                                double unit) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const auto integer = static_cast<long long>(rint(static_cast<double>(values[k]) * unit));
    atomicAdd(reinterpret_cast<unsigned long long*>(to) + k,
              static_cast<unsigned long long>(integer));
  }
}

}  // namespace internimage::cuda
