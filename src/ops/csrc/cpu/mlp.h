// The MLP of a block for training, in float32: two linear layers with GELU between them.
//
// Only the values before GELU are kept for the backward pass, and only they are written to memory
// and read again; GELU and its derivative are computed on a few rows in the cache.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "outer.h"
#include "product.h"

#if defined(CPU_CAPABILITY_AVX512)

namespace internimage::cpu::CPU_CAPABILITY {

// Rows that pass through both layers together, a multiple of those of a tile.
constexpr int64_t kMlpRows = 8 * kTileRows;

// Transposes 16 x 16 values.
inline void transpose_block(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
  // In every quarter of 4 values: pairs of 2 rows, then of 4 rows.
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  const auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  for (int i = 0; i < 16; i += 4) {
    a[i] = low(b[i], b[i + 2]);
    a[i + 1] = high(b[i], b[i + 2]);
    a[i + 2] = low(b[i + 1], b[i + 3]);
    a[i + 3] = high(b[i + 1], b[i + 3]);
  }
  // Then whole quarters.
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 16; half += 8) {
      b[half + i] = _mm512_shuffle_f32x4(a[half + i], a[half + 4 + i], 0x88);
      b[half + 4 + i] = _mm512_shuffle_f32x4(a[half + i], a[half + 4 + i], 0xdd);
    }
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(b[i], b[8 + i], 0x88));
    _mm512_storeu_ps(to + (8 + i) * to_stride, _mm512_shuffle_f32x4(b[i], b[8 + i], 0xdd));
  }
}

// (rows, columns) -> (columns, rows) for columns [begin, end), all multiples of 16.
inline void transpose(const float* from, float* to, int64_t rows, int64_t columns, int64_t begin,
                      int64_t end) {
  for (int64_t c = begin; c < end; c += kLanes16) {
    for (int64_t r = 0; r < rows; r += kLanes16) {
      transpose_block(from + r * columns + c, columns, to + c * rows + r, rows);
    }
  }
}

// Packs the panels [begin, end) of `columns` columns. The weight is (inner, columns), or
// (columns, inner) if it is transposed.
inline void pack(const float* weight, bool is_transposed, int64_t inner, int64_t columns,
                 float* packed, int64_t begin, int64_t end) {
  for (int64_t c = begin * kPanelColumns; c < std::min(columns, end * kPanelColumns);
       c += kLanes16) {
    float* to = packed + c / kPanelColumns * kPanelColumns * inner + c % kPanelColumns;
    if (is_transposed) {
      for (int64_t k = 0; k < inner; k += kLanes16) {
        transpose_block(weight + c * inner + k, inner, to + k * kPanelColumns, kPanelColumns);
      }
    } else {
      for (int64_t k = 0; k < inner; ++k) {
        _mm512_storeu_ps(to + k * kPanelColumns, _mm512_loadu_ps(weight + k * columns + c));
      }
    }
  }
}

// Values of the hidden layer of kMlpRows rows.
class HiddenRows {
 public:
  // Rows a power of two apart would share few sets of the cache.
  explicit HiddenRows(int64_t hidden)
      : stride(hidden + 32),
        memory_(static_cast<float*>(std::aligned_alloc(64, kMlpRows * stride * sizeof(float))),
                &std::free) {
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  float* at(int64_t row) const { return memory_.get() + row * stride; }
  const int64_t stride;

 private:
  const std::unique_ptr<float, decltype(&std::free)> memory_;
};

inline void mlp(const Mlp& call, int64_t begin, int64_t end) {
  const int64_t channels = call.fc2.columns, hidden = call.fc1.columns;
  const HiddenRows activated(hidden);
  for (int64_t first = begin; first < end; first += kMlpRows) {
    const int64_t count = std::min(kMlpRows, end - first);
    float* before = call.hidden + first * hidden;
    multiply(call.fc1, call.input + first * channels, channels, count,
             [&](int64_t row, int64_t column, const Float& value) INTERNIMAGE_INLINE {
               value.store(before + row * hidden + column);
               gelu(value).store(activated.at(row) + column);
             });
    float* out = call.output + first * channels;
    multiply(call.fc2, activated.at(0), activated.stride, count,
             [&](int64_t row, int64_t column, const Float& value) INTERNIMAGE_INLINE {
               value.store(out + row * channels + column);
             });
  }
}

// The gradient of the input, and what mlp_weight_gradients() reads, for rows [begin, end) of a part.
inline void mlp_backward(const MlpBackward& call, int64_t begin, int64_t end) {
  const int64_t channels = call.fc1.columns, hidden = call.fc2.columns;
  const HiddenRows grad_hidden(hidden);
  for (int64_t first = begin; first < end; first += kMlpRows) {
    const int64_t count = std::min(kMlpRows, end - first);
    const int64_t row0 = call.first_row + first;
    const float* grad = call.grad + row0 * channels;
    const float* before = call.hidden + row0 * hidden;
    multiply(call.fc2, grad, channels, count,
             [&](int64_t row, int64_t column, const Float& value) INTERNIMAGE_INLINE {
               const Float x = Float::loadu(before + row * hidden + column);
               const Tail of(x);
               const Float slope = value * of.gelu_slope(x);
               slope.store(grad_hidden.at(row) + column);
               if (!call.needs_weights) return;
               const int64_t at = (column / kPanelColumns * call.fc1_sum.part_rows + first + row) *
                                      kPanelColumns + column % kPanelColumns;
               slope.store(call.grad_hidden + at);
               of.gelu(x).store(call.activated + at);
             });
    if (call.grad_input != nullptr) {
      float* out = call.grad_input + row0 * channels;
      multiply(call.fc1, grad_hidden.at(0), grad_hidden.stride, count,
               [&](int64_t row, int64_t column, const Float& value) INTERNIMAGE_INLINE {
                 value.store(out + row * channels + column);
               });
    }
    if (call.needs_weights) {
      const int64_t at = first * kTileRows, part_rows = call.fc1_sum.part_rows;
      copy_to_tiles(call.input + row0 * channels, channels, count, call.input_tiles + at, part_rows);
      copy_to_tiles(grad, channels, count, call.grad_tiles + at, part_rows);
    }
  }
}

// Adds the gradients of weights and of the first bias of a part, for panels [begin, end) of the
// hidden layer.
inline void mlp_weight_gradients(const MlpBackward& call, int64_t begin, int64_t end) {
  const OuterSum& fc1 = call.fc1_sum;
  const int64_t tiles = (fc1.channels + kTileRows - 1) / kTileRows;
  for (int64_t panel = begin; panel < end; ++panel) {
    add_outer_products(fc1, panel, 0, tiles);
    add_outer_products(call.fc2_sum, panel, 0, tiles);
    const int64_t column = panel * kPanelColumns;
    for (int64_t c = column; c < std::min(fc1.columns, column + kPanelColumns); c += kLanes16) {
      const float* from = call.grad_hidden + column * fc1.part_rows + c - column;
      Float sum = fc1.is_first ? Float(0) : Float::loadu(call.grad_bias + c);
      for (int64_t row = 0; row < fc1.rows; ++row) sum += Float::loadu(from + row * kPanelColumns);
      sum.store(call.grad_bias + c);
    }
  }
}

}  // namespace internimage::cpu::CPU_CAPABILITY

#endif
