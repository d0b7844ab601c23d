// Reading and writing tensors: values are computed in their own type, except bfloat16, which is
// stored as uint16_t and computed in float32. Only the first `count` lanes of a vector are used.
#pragma once

#include <cstring>
#include <type_traits>

#include "vec.h"

#ifdef _MSC_VER
#define INTERNIMAGE_INLINE [[msvc::forceinline]]
#else
#define INTERNIMAGE_INLINE __attribute__((always_inline))
#endif

namespace internimage::cpu::CPU_CAPABILITY {

using Float = Vec<float>;

// The type that computes values stored as S.
template <typename S>
using Computing = std::conditional_t<std::is_same_v<S, uint16_t>, float, S>;

template <typename T>
inline T value_of(T stored) {
  return stored;
}

inline float value_of(uint16_t stored) {
  const uint32_t bits = static_cast<uint32_t>(stored) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename T>
INTERNIMAGE_INLINE inline Vec<T> load(const T* from, int64_t count) {
  return Vec<T>::loadu(from, count);
}

template <typename T>
INTERNIMAGE_INLINE inline void store(const Vec<T>& value, T* to, int64_t count) {
  value.store(to, count);
}

INTERNIMAGE_INLINE inline Float load(const uint16_t* from, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if (count == kLanes<float>) {
    // Each value to the upper half of its lane by one instruction; the lower half is zero.
    const __m512i index = _mm512_slli_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 16);
    const __m512i bits = _mm512_castsi256_si512(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return Float(
        _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, index, bits)));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if (count == kLanes<float>) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return Float(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  }
#endif
  uint32_t bits[kLanes<float>] = {};
  for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
  float lanes[kLanes<float>];
  std::memcpy(lanes, bits, sizeof(lanes));
  return Float::loadu(lanes);
}

// Rounds to the nearest, ties to even; NaN stays NaN.
INTERNIMAGE_INLINE inline void store(const Float& value, uint16_t* to, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if (count == kLanes<float>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), at::vec::cvtfp32_bf16(value));
    return;
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if (count == kLanes<float>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), at::vec::cvtfp32_bf16(value));
    return;
  }
#endif
  float lanes[kLanes<float>];
  uint32_t bits[kLanes<float>];
  value.store(lanes);
  std::memcpy(bits, lanes, sizeof(lanes));
  for (int64_t i = 0; i < count; ++i) {
    const bool is_nan = (bits[i] & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = bits[i] + 0x7fff + ((bits[i] >> 16) & 1);
    to[i] = is_nan ? 0x7fc0 : static_cast<uint16_t>(rounded >> 16);
  }
}

// A vector that begins with lane `first` of an octet, eight consecutive values: a part of it, or all
// of it and another octet.
template <typename S>
INTERNIMAGE_INLINE inline Vec<Computing<S>> load_octets(const S* octet, const S* other,
                                                        int64_t first) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<S, float>) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(octet)),
                              _mm256_loadu_ps(other), 1);
  }
  if constexpr (std::is_same_v<S, uint16_t>) {
    const auto half = [](const S* from) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    };
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_set_m128i(half(other), half(octet)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
#endif
  return load(octet + first, kLanes<Computing<S>>);
}

// Stores a part of an octet, or all of it and the next one (null: not wanted).
template <typename T>
INTERNIMAGE_INLINE inline void store_octets(const Vec<T>& value, T* octet, T* other) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    _mm256_storeu_ps(octet, _mm512_castps512_ps256(value));
    if (other != nullptr) _mm256_storeu_ps(other, _mm512_extractf32x8_ps(value, 1));
    return;
  }
#endif
  value.store(octet);
}

}  // namespace internimage::cpu::CPU_CAPABILITY
