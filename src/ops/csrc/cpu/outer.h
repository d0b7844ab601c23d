// Sums of outer products of rows, such as the gradient of a weight: (channels, columns) from rows of
// channels and rows of columns, in float32. For AVX-512.
//
// Rows are copied to tiles of kTileRows channels and to panels of kPanelColumns columns, which the
// innermost loop reads one row after the other.
#pragma once

#include "norm.h"

#if defined(CPU_CAPABILITY_AVX512)

namespace internimage::cpu::CPU_CAPABILITY {

// Copies rows of channels to tiles that are `part_rows` rows apart; the last one ends with zeros.
inline void copy_to_tiles(const float* rows, int64_t channels, int64_t count, float* tiles,
                          int64_t part_rows) {
  for (int64_t row = 0; row < count; ++row, rows += channels, tiles += kTileRows) {
    float* to = tiles;
    int64_t c = 0;
    for (; c + kTileRows <= channels; c += kTileRows, to += part_rows * kTileRows) {
      std::copy_n(rows + c, kTileRows, to);
    }
    if (c < channels) {
      std::fill_n(std::copy_n(rows + c, channels - c, to), kTileRows - (channels - c), 0.0f);
    }
  }
}

// Copies rows of columns, a multiple of 16, to panels that are `part_rows` rows apart.
inline void copy_to_panels(const float* rows, int64_t columns, int64_t count, float* panels,
                           int64_t part_rows) {
  for (int64_t row = 0; row < count; ++row, rows += columns, panels += kPanelColumns) {
    for (int64_t c = 0; c < columns; c += 16) {
      const int64_t at = c / kPanelColumns * kPanelColumns * part_rows + c % kPanelColumns;
      _mm512_storeu_ps(panels + at, _mm512_loadu_ps(rows + c));
    }
  }
}

// sums[i][j] += sum over rows of tile[row][i] * panel[row][j], for `count` of kCount values i; the
// first time =.
template <int kCount, int kVecs>
void add_outer(const float* tile, const float* panel, int64_t rows, float* sums, int64_t stride,
               int64_t count, bool is_first) {
  __m512 sum[kCount][kVecs];
#pragma GCC unroll 14
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      const bool is_zero = is_first || i >= count;
      sum[i][v] = is_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + i * stride + 16 * v);
    }
  }
  for (int64_t row = 0; row < rows; ++row, tile += kTileRows, panel += kPanelColumns) {
    __m512 values[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) values[v] = _mm512_loadu_ps(panel + 16 * v);
#pragma GCC unroll 14
    for (int i = 0; i < kCount; ++i) {
      const __m512 value = _mm512_set1_ps(tile[i]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[i][v] = _mm512_fmadd_ps(value, values[v], sum[i][v]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      if (i < count) _mm512_storeu_ps(sums + i * stride + 16 * v, sum[i][v]);
    }
  }
}

template <int kVecs>
void add_panel(const OuterSum& call, int64_t panel, int64_t tile_begin, int64_t tile_end) {
  const int64_t column = panel * kPanelColumns;
  const float* columns = call.panels + column * call.part_rows;
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    const int64_t channel = t * kTileRows;
    const int64_t count = std::min<int64_t>(kTileRows, call.channels - channel);
    const auto add = count > 8   ? add_outer<kTileRows, kVecs>
                     : count > 4 ? add_outer<8, kVecs>
                                 : add_outer<4, kVecs>;
    add(call.tiles + channel * call.part_rows, columns, call.rows,
        call.sums + channel * call.columns + column, call.columns, count, call.is_first);
  }
}

// Adds the products of tiles [tile_begin, tile_end) and a panel.
inline void add_outer_products(const OuterSum& call, int64_t panel, int64_t tile_begin,
                               int64_t tile_end) {
  const bool is_wide = call.columns - panel * kPanelColumns > 16;
  (is_wide ? add_panel<2> : add_panel<1>)(call, panel, tile_begin, tile_end);
}

}  // namespace internimage::cpu::CPU_CAPABILITY

#endif
