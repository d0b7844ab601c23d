// The part of DCNv3 that does not depend on channels: softmax of the mask, sampling positions,
// bilinear weights.
//
// A tile is a run of sampling points, [pixel][group][point], whose geometry is computed first,
// vectorised over points; the channel loops then only load, multiply and add.
//
// A point on the border has corners outside the image. Along an axis with only one side inside,
// both sides refer to the inside pixel and share its weight. So every address is valid, and no
// pixel outside the image is multiplied by a zero weight (0 * inf would be NaN). Points that do not
// contribute have element -1.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>

#include "points.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Padded so that the tables, used side by side, do not fall on the same cache sets.
constexpr int64_t kTableSize = kMaxPoints + 48;

template <typename T>
struct Tile {
  IntOf<T> element[kTableSize];  // of the top left corner's pixel in its image, -1: no contribution
  IntOf<T> step_x[kTableSize], step_y[kTableSize];  // elements to the right and lower corner, or 0
  T edge[kTableSize];                               // zero if all four corners are inside
  T exp[kTableSize];                                // of the shifted logit
  T weight[4][kTableSize];                          // bilinear weight * mask of the four corners
};

// Additional tables for the gradients.
template <typename T>
struct GradTile : Tile<T> {
  T prob[kTableSize];                                // mask, after the softmax
  T value_x[2][kTableSize], value_y[2][kTableSize];  // bilinear weights of the two sides
  T slope_x[2][kTableSize], slope_y[2][kTableSize];  // their derivatives
  T dot[4 * kTableSize];  // <corner, grad> of the four corners of each point
  T product[kTableSize];  // prob * d(mask)
  T grad_offset[2 * kTableSize], grad_mask[kTableSize];  // of packed rows
};

// Constants of a call, and the positions of the taps relative to the window centre for a few
// consecutive groups.
template <typename T>
struct Grid {
  const Problem& problem;
  int64_t points;
  int64_t groups;  // groups of one pixel that a tile can hold
  T tap_x[kTableSize], tap_y[kTableSize];

  Grid(const Problem& p, int64_t wanted_groups)
      : problem(p),
        points(p.points()),
        groups(std::min(wanted_groups, std::max<int64_t>(1, kMaxPoints / p.points()))) {
    int64_t q = 0;
    for (int64_t i = 0; i < p.kernel_w; ++i) {
      for (int64_t j = 0; j < p.kernel_h; ++j) {
        if (p.remove_center && i == p.kernel_w / 2 && j == p.kernel_h / 2) continue;
        tap_x[q] = static_cast<T>((i * p.dilation_w - p.half_w()) * p.offset_scale);
        tap_y[q] = static_cast<T>((j * p.dilation_h - p.half_h()) * p.offset_scale);
        ++q;
      }
    }
    for (; q < groups * points; ++q) {
      tap_x[q] = tap_x[q - points];
      tap_y[q] = tap_y[q - points];
    }
  }
};

// Zeroed memory of a length known at run time.
template <typename T>
struct Array {
  explicit Array(int64_t n) : data(static_cast<T*>(std::calloc(n, sizeof(T)))) {
    if (data == nullptr) throw std::bad_alloc();
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { std::free(data); }

  T* const data;
};

// `base` plus `element`, or `other` for element -1, without a branch, because it cannot be
// predicted which points are outside.
template <typename T>
INTERNIMAGE_INLINE inline T* select(T* base, T* other, int64_t element) {
  const auto outside = reinterpret_cast<intptr_t>(other);
  const auto distance = reinterpret_cast<intptr_t>(base) - outside;
  const intptr_t bytes = distance + element * static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<T*>(outside + (bytes & ~(element >> 63)));
}

// Calls body(first, count) for pieces of [0, n) of one vector each. The last piece may overlap the
// previous one, so `body` must not accumulate; `count` is less than a vector only if n is.
template <typename T, typename Body>
INTERNIMAGE_INLINE inline void for_each_vector(int64_t n, const Body& body) {
  constexpr int64_t lanes = kLanes<T>;
  if (n < lanes) {
    body(0, n);
    return;
  }
  for (int64_t q = 0; q < n; q += lanes) body(std::min(q, n - lanes), lanes);
}

template <typename T, typename S>
inline void exponentiate_slowly(const S* logits, int64_t n, int64_t points, T* out) {
  for (int64_t row = 0; row < n; row += points) {
    T largest = -std::numeric_limits<T>::infinity();
    bool is_small = true;
    for (int64_t p = 0; p < points; ++p) {
      const T x = value_of(logits[row + p]);
      is_small &= std::abs(x) < kExpLimit<T>;
      largest = std::max(largest, x);
    }
    if (is_small) continue;
    for (int64_t p = 0; p < points; ++p) out[row + p] = std::exp(value_of(logits[row + p]) - largest);
  }
}

// Writes exp of the logits of a span to tile.exp, not normalised. A row is shifted by its maximum
// only if it contains a large value. This depends only on the row, so results do not depend on the
// tile that contains it.
template <typename T, typename S>
inline void exponentiate(const Grid<T>& grid, const SeparateRows<S>& rows, const Span& span,
                         Tile<T>& tile) {
  using V = Vec<T>;
  const int64_t n = span.groups * grid.points;
  const S* logits = rows.mask;
  const int64_t stride = rows.mask_stride;
  V largest(0);
  for (int64_t i = 0; i < span.pixels; ++i) {
    prefetch(logits + (i + kPrefetchPixels) * stride, n);
    for_each_vector<T>(n, [&](int64_t q, int64_t count) INTERNIMAGE_INLINE {
      const V x = load(logits + i * stride + q, count);
      largest = at::vec::maximum(largest, x.abs());
      exp_limited<T>(x).store(tile.exp + i * n + q);
    });
  }
  T lanes[kLanes<T>];
  V::blendv(V(0), V(1), largest < V(kExpLimit<T>))
      .store(lanes);  // 0 for NaN, which maximum() keeps
  if (std::count(lanes, lanes + kLanes<T>, T(1)) == kLanes<T>) return;
  for (int64_t i = 0; i < span.pixels; ++i) {
    exponentiate_slowly<T>(logits + i * stride, n, grid.points, tile.exp + i * n);
  }
}

template <typename T>
INTERNIMAGE_INLINE inline T row_sum(const T* row, int64_t points) {
  T sum = 0;
  int64_t p = 0;
  for (; p + kLanes<T> <= points; p += kLanes<T>) sum += lane_sum<T>(Vec<T>::loadu(row + p));
  if (kLanes<T> > 8 && p < points) return sum + lane_sum<T>(Vec<T>::loadu(row + p, points - p));
  for (; p < points; ++p) sum += row[p];
  return sum;
}

// Whether all points of a row have all their corners inside the image.
template <typename T>
INTERNIMAGE_INLINE inline bool is_interior(const T* edge, int64_t points) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr int all = static_cast<int>((int64_t{1} << lanes) - 1);
  int64_t p = 0;
  for (; p + lanes <= points; p += lanes) {
    if (Vec<T>::loadu(edge + p).zero_mask() != all) return false;
  }
  if (lanes > 8 && p < points) return Vec<T>::loadu(edge + p, points - p).zero_mask() == all;
  for (; p < points; ++p) {
    if (edge[p] != T(0)) return false;
  }
  return true;
}

// One axis of a position inside (-1, size): pixel of the lower side, and weights of the two sides.
template <typename T>
struct Axis {
  Vec<T> pixel, both, value[2], is_lower_inside;

  INTERNIMAGE_INLINE Axis(const Vec<T>& x, const Vec<T>& last) {
    const Vec<T> lower = x.floor();
    const Vec<T> upper_value = x - lower;
    const Vec<T> lower_value = Vec<T>(1) - upper_value;
    is_lower_inside = lower >= Vec<T>(0);
    both = is_lower_inside & (lower <= last);
    const Vec<T> shared = Vec<T>(0.5) * Vec<T>::blendv(upper_value, lower_value, is_lower_inside);
    value[0] = Vec<T>::blendv(shared, lower_value, both);
    value[1] = Vec<T>::blendv(shared, upper_value, both);
    pixel = at::vec::maximum(lower, Vec<T>(0));
  }

  // Derivatives of the two values, which are shared on the border.
  INTERNIMAGE_INLINE void store_slopes(T* lower, T* upper) const {
    const Vec<T> shared = Vec<T>::blendv(Vec<T>(0.5), Vec<T>(-0.5), is_lower_inside);
    Vec<T>::blendv(shared, Vec<T>(-1), both).store(lower);
    Vec<T>::blendv(shared, Vec<T>(1), both).store(upper);
  }
};

// Fills the tables of a tile for a span.
template <typename T, typename Rows, typename TileType>
inline void locate(const Grid<T>& grid, const Rows& rows, const Span& span, TileType& tile) {
  using V = Vec<T>;
  using I = IntVec<T>;
  const Problem& p = grid.problem;
  const int64_t n = span.groups * grid.points;
  const V scale(static_cast<T>(p.offset_scale));
  const V last_x(static_cast<T>(p.width - 2)), last_y(static_cast<T>(p.height - 2));
  const V size_x(static_cast<T>(p.width)), size_y(static_cast<T>(p.height));
  const I width(p.width), channels(p.channels), row_elements(p.width * p.channels);
  int64_t out_x = span.first % p.out_width, out_y = span.first / p.out_width % p.out_height;
  for (int64_t i = 0; i < span.pixels; ++i) {
    rows.prefetch_pixel(i + kPrefetchPixels);
    const V centre_x(static_cast<T>(out_x * p.stride_w - p.pad_w + p.half_w()));
    const V centre_y(static_cast<T>(out_y * p.stride_h - p.pad_h + p.half_h()));
    for_each_vector<T>(n, [&](int64_t q, int64_t count) INTERNIMAGE_INLINE {
      const auto [dx, dy] = rows.offsets(i, q, count);
      V x = at::vec::fmadd(dx, scale, V::loadu(grid.tap_x + q) + centre_x);
      V y = at::vec::fmadd(dy, scale, V::loadu(grid.tap_y + q) + centre_y);
      const V counts = (x > V(-1)) & (x < size_x) & (y > V(-1)) & (y < size_y);  // false for NaN
      x = x & counts;
      y = y & counts;
      const Axis<T> ax(x, last_x), ay(y, last_y);
      const int64_t t = i * n + q;
      const I element = at::vec::convert_to_int_of_same_size(ay.pixel) * row_elements +
                        at::vec::convert_to_int_of_same_size(ax.pixel) * channels;
      const V both_x = ax.both & counts, both_y = ay.both & counts;
      (element | (as_int<T>(counts) ^ I(-1))).store(tile.element + t);
      (as_int<T>(both_x) & channels).store(tile.step_x + t);
      (as_int<T>(both_y) & row_elements).store(tile.step_y + t);
      V::blendv(V(1), V(0), both_x & both_y).store(tile.edge + t);
      const V weight = rows.weights(i, q, count);
      const V m = weight & counts;
      const V upper = ay.value[0] * m, lower = ay.value[1] * m;
      (ax.value[0] * upper).store(tile.weight[0] + t);
      (ax.value[1] * upper).store(tile.weight[1] + t);
      (ax.value[0] * lower).store(tile.weight[2] + t);
      (ax.value[1] * lower).store(tile.weight[3] + t);
      if constexpr (std::is_same_v<TileType, GradTile<T>>) {
        weight.store(tile.prob + t, count);  // it may be the same table
        for (int side = 0; side < 2; ++side) {
          ax.value[side].store(tile.value_x[side] + t);
          ay.value[side].store(tile.value_y[side] + t);
        }
        ax.store_slopes(tile.slope_x[0] + t, tile.slope_x[1] + t);
        ay.store_slopes(tile.slope_y[0] + t, tile.slope_y[1] + t);
      }
    });
    if (++out_x == p.out_width) {
      out_x = 0;
      if (++out_y == p.out_height) out_y = 0;
    }
  }
}

}  // namespace internimage::cpu::CPU_CAPABILITY
