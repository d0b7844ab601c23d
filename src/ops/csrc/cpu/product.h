// Matrix products with packed weights, of float32 or, only for AVX-512 with its dot products, of
// bfloat16 stored as uint16_t; summed in float32.
//
// Packed weights are panels of 32 columns. In a panel, the 32 columns of one step over the inner
// dimension follow each other; a step is one value of each column, or two in bfloat16.
#pragma once

#include "norm.h"

namespace internimage::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)

// Of kTileRows rows and two vectors of columns, 28 sums, the weights of a step and a value of a row
// fit into 32 registers.
constexpr int64_t kLanes16 = 16;

#define INTERNIMAGE_BF16 __attribute__((target("avx512bf16")))

// Values of one step: weights of 16 columns, the value of a row in all lanes, and sum + product.
template <typename S>
struct Step {
  static constexpr int64_t size = 1;
  using Values = __m512;
  static Values weights(const float* from) { return _mm512_loadu_ps(from); }
  static Values row(const float* from) { return _mm512_set1_ps(*from); }
  static __m512 add(__m512 sum, Values a, Values b) { return _mm512_fmadd_ps(a, b, sum); }
};

template <>
struct Step<uint16_t> {
  static constexpr int64_t size = 2;
  using Values = __m512bh;
  INTERNIMAGE_BF16 static Values weights(const uint16_t* from) {
    return (Values)_mm512_loadu_si512(from);
  }
  INTERNIMAGE_BF16 static Values row(const uint16_t* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof(pair));
    return (Values)_mm512_set1_epi32(pair);
  }
  INTERNIMAGE_BF16 static __m512 add(__m512 sum, Values a, Values b) {
    return _mm512_dpbf16_ps(sum, a, b);
  }
};

// sums[row][column] = bias[column] + rows x panel, for kCount rows and kVecs vectors of columns.
// The attribute only matters for bfloat16; float32 has no use for the instructions.
template <typename S, int kCount, int kVecs>
INTERNIMAGE_BF16 void multiply_tile(const S* rows, int64_t stride, const S* panel, int64_t steps,
                                    const float* bias, float* sums) {
  using Values = typename Step<S>::Values;
  constexpr int64_t size = Step<S>::size;
  __m512 sum[kCount][kVecs];
#pragma GCC unroll 14
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) sum[r][v] = _mm512_loadu_ps(bias + kLanes16 * v);
  }
  // A pointer for three rows each: one per row would not fit into the registers.
  const S* some[5];
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) some[i] = rows + std::min(3 * i, kCount - 1) * stride;
  for (int64_t k = 0; k < steps; ++k) {
    Values weights[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      weights[v] = Step<S>::weights(panel + (2 * k + v) * kLanes16 * size);
    }
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r) {
      const Values value = Step<S>::row(some[r / 3] + r % 3 * stride + k * size);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[r][v] = Step<S>::add(sum[r][v], value, weights[v]);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      _mm512_storeu_ps(sums + kPanelColumns * r + kLanes16 * v, sum[r][v]);
    }
  }
}

// A tile of at most `count` rows; returns their number.
template <typename S, int kVecs>
inline int64_t multiply_some(const S* rows, int64_t stride, int64_t count, const S* panel,
                             int64_t steps, const float* bias, float* sums) {
  if (count >= kTileRows) {
    multiply_tile<S, kTileRows, kVecs>(rows, stride, panel, steps, bias, sums);
    return kTileRows;
  }
  if (count >= 7) {
    multiply_tile<S, 7, kVecs>(rows, stride, panel, steps, bias, sums);
    return 7;
  }
  if (count >= 4) {
    multiply_tile<S, 4, kVecs>(rows, stride, panel, steps, bias, sums);
    return 4;
  }
  multiply_tile<S, 1, kVecs>(rows, stride, panel, steps, bias, sums);
  return 1;
}

// Calls store(row, column, value) for every vector of the product of `count` rows, which are
// `stride` apart. A panel stays in the cache while all rows are multiplied by it.
template <typename S, typename Store>
INTERNIMAGE_INLINE inline void multiply(const Product<S>& product, const S* rows, int64_t stride,
                                        int64_t count, const Store& store) {
  alignas(64) float sums[kTileRows * kPanelColumns];
  const int64_t steps = product.inner / Step<S>::size;
  for (int64_t column = 0; column < product.columns; column += kPanelColumns) {
    const S* panel = product.weight + column * product.inner;
    const float* bias = product.bias + column;
    const int64_t vecs = product.columns - column > kLanes16 ? 2 : 1;
    for (int64_t row = 0; row < count;) {
      const S* from = rows + row * stride;
      const int64_t some =
          vecs == 2 ? multiply_some<S, 2>(from, stride, count - row, panel, steps, bias, sums)
                    : multiply_some<S, 1>(from, stride, count - row, panel, steps, bias, sums);
      for (int64_t r = 0; r < some; ++r) {
        for (int64_t v = 0; v < vecs; ++v) {
          store(row + r, column + v * kLanes16,
                Float::loadu(sums + r * kPanelColumns + v * kLanes16));
        }
      }
      row += some;
    }
  }
}

#else

// Columns that are multiplied together. With AVX2, the sums of six rows, the weights of a step and a
// value of a row fit into 16 registers.
constexpr int64_t kStripColumns = 2 * kLanes<float>;
constexpr int kStripRows = 6;

// sums[row][column] = bias[column] + rows x strip, for kCount rows.
template <int kCount>
void multiply_tile(const float* rows, int64_t stride, const float* strip, int64_t inner,
                   const float* bias, float* sums) {
  constexpr int64_t lanes = kLanes<float>;
  Float sum[kCount][2];
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) {
    sum[r][0] = Float::loadu(bias);
    sum[r][1] = Float::loadu(bias + lanes);
  }
  for (int64_t k = 0; k < inner; ++k) {
    const Float first = Float::loadu(strip + k * kPanelColumns);
    const Float second = Float::loadu(strip + k * kPanelColumns + lanes);
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r) {
      const Float value(rows[r * stride + k]);
      sum[r][0] = at::vec::fmadd(value, first, sum[r][0]);
      sum[r][1] = at::vec::fmadd(value, second, sum[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) {
    sum[r][0].store(sums + kStripColumns * r);
    sum[r][1].store(sums + kStripColumns * r + lanes);
  }
}

// Calls store(row, column, value) for every vector of the product of `count` rows, which are
// `stride` apart. A strip stays in the cache while all rows are multiplied by it.
template <typename Store>
INTERNIMAGE_INLINE inline void multiply(const Product<float>& product, const float* rows,
                                        int64_t stride, int64_t count, const Store& store) {
  float sums[kStripRows * kStripColumns];
  for (int64_t column = 0; column < product.columns; column += kStripColumns) {
    const int64_t panel = column / kPanelColumns * kPanelColumns;
    const float* strip = product.weight + panel * product.inner + column - panel;
    const float* bias = product.bias + column;
    for (int64_t row = 0; row < count;) {
      const float* from = rows + row * stride;
      const bool is_full = count - row >= kStripRows;
      if (is_full) {
        multiply_tile<kStripRows>(from, stride, strip, product.inner, bias, sums);
      } else {
        multiply_tile<1>(from, stride, strip, product.inner, bias, sums);
      }
      const int64_t some = is_full ? kStripRows : 1;
      for (int64_t r = 0; r < some; ++r) {
        for (int64_t v = 0; v < kStripColumns; v += kLanes<float>) {
          store(row + r, column + v, Float::loadu(sums + r * kStripColumns + v));
        }
      }
      row += some;
    }
  }
}

#endif

}  // namespace internimage::cpu::CPU_CAPABILITY
