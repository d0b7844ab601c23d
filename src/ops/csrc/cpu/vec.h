// Vector helpers for the DCNv3 kernels that at::vec does not have.
//
// All are generic over the vector width; the reductions are specialised for AVX2 and AVX-512
// floats, because they are in the innermost loop of the backward pass.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace internimage::cpu::CPU_CAPABILITY {

template <typename T>
using Vec = at::vec::Vectorized<T>;
template <typename T>
using IntOf = at::vec::int_same_size_t<T>;
template <typename T>
using IntVec = at::vec::Vectorized<IntOf<T>>;
template <typename T>
constexpr int64_t kLanes = Vec<T>::size();

// Lanes in which a comparison holds; it holds in none with NaN.
template <typename T>
struct Mask {
  Vec<T> lanes;  // of all ones or all zeros
};

template <typename T>
inline Mask<T> operator&(const Mask<T>& a, const Mask<T>& b) {
  return {a.lanes & b.lanes};
}

template <typename T>
inline Mask<T> is_less(const Vec<T>& a, const Vec<T>& b) {
  return {a < b};
}

template <typename T>
inline Mask<T> is_at_most(const Vec<T>& a, const Vec<T>& b) {
  return {a <= b};
}

// Lanes of `yes` where the mask holds, of `no` elsewhere.
template <typename T>
inline Vec<T> choose(const Mask<T>& mask, const Vec<T>& yes, const Vec<T>& no) {
  return Vec<T>::blendv(no, yes, mask.lanes);
}

template <typename T>
inline IntVec<T> choose(const Mask<T>& mask, const IntVec<T>& yes, const IntVec<T>& no) {
  return IntVec<T>::blendv(no, yes, at::vec::cast<IntOf<T>, T>(mask.lanes));
}

// Lanes where the mask holds, zero elsewhere.
template <typename T>
inline Vec<T> keep(const Mask<T>& mask, const Vec<T>& v) {
  return v & mask.lanes;
}

template <typename T>
inline IntVec<T> keep(const Mask<T>& mask, const IntVec<T>& v) {
  return v & at::vec::cast<IntOf<T>, T>(mask.lanes);
}

#if defined(CPU_CAPABILITY_AVX512)

// AVX-512 compares into registers of its own.
template <>
struct Mask<float> {
  __mmask16 lanes;
};

template <>
inline Mask<float> operator&(const Mask<float>& a, const Mask<float>& b) {
  return {static_cast<__mmask16>(a.lanes & b.lanes)};
}

template <>
inline Mask<float> is_less(const Vec<float>& a, const Vec<float>& b) {
  return {_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)};
}

template <>
inline Mask<float> is_at_most(const Vec<float>& a, const Vec<float>& b) {
  return {_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)};
}

template <>
inline Vec<float> choose(const Mask<float>& mask, const Vec<float>& yes, const Vec<float>& no) {
  return _mm512_mask_blend_ps(mask.lanes, no, yes);
}

template <>
inline IntVec<float> choose<float>(const Mask<float>& mask, const IntVec<float>& yes,
                                   const IntVec<float>& no) {
  return _mm512_mask_blend_epi32(mask.lanes, no, yes);
}

template <>
inline Vec<float> keep(const Mask<float>& mask, const Vec<float>& v) {
  return _mm512_maskz_mov_ps(mask.lanes, v);
}

template <>
inline IntVec<float> keep<float>(const Mask<float>& mask, const IntVec<float>& v) {
  return _mm512_maskz_mov_epi32(mask.lanes, v);
}

#endif

template <typename T>
inline T lane_sum(const Vec<T>& v) {
  T lanes[kLanes<T>];
  v.store(lanes);
  T sum = 0;
  for (int64_t i = 0; i < kLanes<T>; ++i) sum += lanes[i];
  return sum;
}

// Whether none of eight values of `a` and of `b` is zero.
template <typename I>
inline bool are_nonzero(const I* a, const I* b) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(I) == 4) {
    const auto zeros = [](const I* from) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      return _mm256_cmpeq_epi32(v, _mm256_setzero_si256());
    };
    const __m256i any = _mm256_or_si256(zeros(a), zeros(b));
    return _mm256_testz_si256(any, any);
  }
#endif
  bool result = true;
  for (int64_t i = 0; i < 8; ++i) result &= a[i] != 0 && b[i] != 0;
  return result;
}

// out[0..3] = lane sums of four vectors.
template <typename T>
inline void lane_sums(const Vec<T>& a, const Vec<T>& b, const Vec<T>& c, const Vec<T>& d, T* out) {
  out[0] = lane_sum(a);
  out[1] = lane_sum(b);
  out[2] = lane_sum(c);
  out[3] = lane_sum(d);
}

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)

inline float lane_sum_128(__m128 v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}

inline __m128 fold_256(__m256 v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

// Transposed reduction: lane i of the result is the lane sum of the i-th argument.
inline __m128 lane_sums_256(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = _mm256_add_ps(_mm256_blend_ps(a, b, 0xCC), _mm256_shuffle_ps(a, b, 0x4E));
  const __m256 cd = _mm256_add_ps(_mm256_blend_ps(c, d, 0xCC), _mm256_shuffle_ps(c, d, 0x4E));
  const __m256 sums =
      _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xDD));
  return fold_256(sums);
}

#endif
#if defined(CPU_CAPABILITY_AVX2)

template <>
inline float lane_sum<float>(const Vec<float>& v) {
  return lane_sum_128(fold_256(v));
}

template <>
inline void lane_sums<float>(const Vec<float>& a, const Vec<float>& b, const Vec<float>& c,
                             const Vec<float>& d, float* out) {
  _mm_storeu_ps(out, lane_sums_256(a, b, c, d));
}

#elif defined(CPU_CAPABILITY_AVX512)

inline __m256 fold_512(__m512 v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

template <>
inline float lane_sum<float>(const Vec<float>& v) {
  return lane_sum_128(fold_256(fold_512(v)));
}

#endif

// Vectors of channels in the backward pass, which reads values soon after it has written them and
// sums lanes: both take longer for the vectors of AVX-512 than for two of half their width.
#if defined(CPU_CAPABILITY_AVX512)

struct HalfVec {
  __m256 lanes;

  HalfVec() = default;
  HalfVec(__m256 lanes) : lanes(lanes) {}
  explicit HalfVec(float value) : lanes(_mm256_set1_ps(value)) {}

  static constexpr int64_t size() { return 8; }
  static __mmask8 first(int64_t count) { return static_cast<__mmask8>((1 << count) - 1); }
  static HalfVec loadu(const float* from, int64_t count) {
    if (count == size()) return _mm256_loadu_ps(from);
    return _mm256_maskz_loadu_ps(first(count), from);
  }
  void store(float* to, int64_t count) const {
    if (count == size()) {
      _mm256_storeu_ps(to, lanes);
    } else {
      _mm256_mask_storeu_ps(to, first(count), lanes);
    }
  }
};

inline HalfVec operator*(HalfVec a, HalfVec b) { return _mm256_mul_ps(a.lanes, b.lanes); }
inline HalfVec fmadd(HalfVec a, HalfVec b, HalfVec c) {
  return _mm256_fmadd_ps(a.lanes, b.lanes, c.lanes);
}
inline void lane_sums(HalfVec a, HalfVec b, HalfVec c, HalfVec d, float* out) {
  _mm_storeu_ps(out, lane_sums_256(a.lanes, b.lanes, c.lanes, d.lanes));
}

template <typename T>
using ChannelVec = std::conditional_t<std::is_same_v<T, float>, HalfVec, Vec<T>>;

#else

template <typename T>
using ChannelVec = Vec<T>;

#endif

// exp for |x| <= kExpLimit, within 2 units in the last place.
template <typename T>
constexpr T kExpLimit = 32;

template <typename T>
inline Vec<T> exp_limited(const Vec<T>& x) {
  T lanes[kLanes<T>];
  x.store(lanes);
  for (int64_t i = 0; i < kLanes<T>; ++i) lanes[i] = std::exp(lanes[i]);
  return Vec<T>::loadu(lanes);
}

// x = n ln2 + r with |r| <= ln2 / 2; a polynomial for exp(r) and the exponent field for 2^n.
template <>
inline Vec<float> exp_limited<float>(const Vec<float>& x) {
  using V = Vec<float>;
  const V n = (x * V(1.44269504f)).round();
  V r = at::vec::fnmadd(n, V(0.693359375f), x);  // ln2 in two parts, the first exact in few bits
  r = at::vec::fnmadd(n, V(-2.12194440e-4f), r);
  V p = at::vec::fmadd(r, V(1.98412698e-4f), V(1.38888889e-3f));
  p = at::vec::fmadd(r, p, V(8.33333333e-3f));
  p = at::vec::fmadd(r, p, V(4.16666667e-2f));
  p = at::vec::fmadd(r, p, V(1.66666667e-1f));
  p = at::vec::fmadd(r, p, V(0.5f));
  p = at::vec::fmadd(r, p, V(1.0f));
  p = at::vec::fmadd(r, p, V(1.0f));
  const IntVec<float> exponent = at::vec::convert_to_int_of_same_size(n) + IntVec<float>(127);
  return p * at::vec::cast<float, int32_t>(exponent << IntVec<float>(23));
}

}  // namespace internimage::cpu::CPU_CAPABILITY
