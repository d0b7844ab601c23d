// Device functions of the kernels: vectors of channels, conversions, tables in shared memory,
// atomic additions.
//
// The emulator of the tests does not run the branches on __CUDA_ARCH__, and rounds __expf and
// __fdividef better than a device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "plan.h"

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

// Neighbouring values that are loaded and stored as one, or 16 bytes at a time.
template <typename T, int kCount>
struct alignas(std::min<size_t>(sizeof(T) * kCount, 16)) Pack {
  T value[kCount];
};

// The same, read in 32-bit words, because reading 16-bit values one by one takes more instructions.
template <typename T, int kCount>
using Raw = std::conditional_t<sizeof(T) * kCount % 4 == 0, Pack<unsigned, sizeof(T) * kCount / 4>,
                               Pack<T, kCount>>;

template <int kCount, typename T>
__device__ __forceinline__ Raw<T, kCount> load_raw(const T* from) {
  return *reinterpret_cast<const Raw<T, kCount>*>(from);
}

// Value k of it.
template <typename T, int kCount>
__device__ __forceinline__ Sum<T> widen(const Raw<T, kCount>& raw, int k) {
  if constexpr (sizeof(T) * kCount % 4 != 0) {
    return widen(raw.value[k]);
  } else if constexpr (std::is_same_v<T, double>) {
    return __hiloint2double(raw.value[2 * k + 1], raw.value[2 * k]);
  } else if constexpr (std::is_same_v<T, float>) {
    return __uint_as_float(raw.value[k]);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const unsigned word = raw.value[k / 2];
    return __uint_as_float(k % 2 != 0 ? word & 0xffff0000u : word << 16);
  } else {
    const unsigned word = raw.value[k / 2];
    return __half2float(__ushort_as_half(static_cast<uint16_t>(k % 2 != 0 ? word >> 16 : word)));
  }
}

template <int kCount, typename T>
__device__ __forceinline__ void store_pack(T* to, const Sum<T> (&values)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int k = 0; k < kCount; ++k) pack.value[k] = narrow<T>(values[k]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// Calls run(values of the side) with a pointer of its type.
template <typename T, typename Run>
__device__ __forceinline__ void with_type(const Side& side, const Run& run) {
  if constexpr (!std::is_same_v<T, Sum<T>>) {
    if (!side.is_wide) return run(static_cast<T*>(side.data));
  }
  run(static_cast<Sum<T>*>(side.data));
}

__device__ __forceinline__ double exponential(double x) { return exp(x); }
// Off by 2 + 1.173 |x| units in the last place at most (CUDA programming guide); in a softmax x <=
// 0, so less than 3e-7.
__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double inverse(double x) { return 1 / x; }
__device__ __forceinline__ float inverse(float x) { return __fdividef(1, x); }

__device__ __forceinline__ unsigned quotient(unsigned numerator, const Divisor& divisor) {
  return (__umulhi(numerator, divisor.factor) + numerator) >> divisor.shift;
}

// The emulator of the tests counts accesses to shared memory: 'r'ead, 'w'rite, 'a'tomic.
#ifdef INTERNIMAGE_EMULATOR
using emulator::note_shared;
#else
__device__ __forceinline__ void note_shared(const void*, size_t, char) {}
#endif

// A table in shared memory.
template <typename V>
struct Table {
  V* data;

  __device__ __forceinline__ V get(int i) const {
    note_shared(data + i, sizeof(V), 'r');
    return data[i];
  }
  __device__ __forceinline__ void put(int i, const V& value) const {
    note_shared(data + i, sizeof(V), 'w');
    data[i] = value;
  }
};

// Divides shared memory into tables.
struct Arena {
  unsigned char* next;

  template <typename V>
  __device__ __forceinline__ Table<V> take(int count) {
    V* const table = reinterpret_cast<V*>(next);
    next += (count * sizeof(V) + 15) / 16 * 16;
    return {table};
  }
};

template <typename V>
int64_t table_size(int64_t count) {
  return align_table(count * static_cast<int64_t>(sizeof(V)));
}

// sm_90 adds four floats to global memory at once; before, each instruction adds one, and
// neighbouring threads should add to neighbouring channels.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kAddsVectors = false;
#else
constexpr bool kAddsVectors = true;
#endif

__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
#elif defined(INTERNIMAGE_EMULATOR)
  emulator::add_four(to, a, b, c, d);
#endif
}

// Adds neighbouring floats to global memory.
template <typename S, int kCount>
__device__ __forceinline__ void add_atomically(S* to, const S (&values)[kCount]) {
  if constexpr (kAddsVectors && std::is_same_v<S, float> && kCount == 4) {
    add_four(to, values[0], values[1], values[2], values[3]);
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) atomicAdd(to + k, values[k]);
  }
}

// Adds 64-bit integers, whose sum does not depend on the order of the additions.
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
