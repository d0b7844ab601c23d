// The part of DCNv3 that does not depend on channels: softmax of the mask, sampling positions, bilinear weights.
//
// A tile is a run of sampling points, [pixel][group][point], whose geometry is computed first, vectorised over points;
// the channel loops then only load, multiply and add.
//
// A point on the border has corners outside the image. Along an axis with only one side inside, both sides are made
// the inside pixel and share its weight. So every address is valid and no pixel outside the image is ever multiplied
// by a zero weight (0 * inf would be NaN). Points that do not count at all have pixel -1.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "vec.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Padded so that the tables, used side by side, do not fall on the same cache sets.
constexpr int64_t kTableSize = kMaxPoints + 48;

template <typename T>
struct Tile {
  IntOf<T> pixel[kTableSize];                         // number of the top left corner, -1: does not count
  IntOf<T> step_x[kTableSize], step_y[kTableSize];    // elements to the right and lower corner, or 0
  T exp[kTableSize];                                  // mask, or exp of the shifted logit
  T weight[4][kTableSize];                            // bilinear weight * mask of the four corners
};

// What the gradients need on top.
template <typename T>
struct GradTile : Tile<T> {
  T prob[kTableSize];                                 // mask, normalised
  T value_x[2][kTableSize], value_y[2][kTableSize];   // bilinear weights of the two sides
  T slope_x[2][kTableSize], slope_y[2][kTableSize];   // their derivatives
  T dot[4 * kTableSize];                              // <corner, grad> of the four corners of each point
  T product[kTableSize];                              // prob * d(mask)
};

// Constants of a call, and the positions of the taps relative to the window centre for a few groups in a row.
template <typename T>
struct Grid {
  int64_t points, channels, width;
  int64_t tile_groups;  // groups of one pixel that a tile can hold
  T scale, last_x, last_y, size_x, size_y;
  T tap_x[kTableSize], tap_y[kTableSize];

  Grid(const Problem& p, int64_t groups)
      : points(p.points()),
        channels(p.channels),
        width(p.width),
        tile_groups(std::min(groups, std::max<int64_t>(1, kMaxPoints / p.points()))),
        scale(static_cast<T>(p.offset_scale)),
        last_x(static_cast<T>(p.width - 2)),
        last_y(static_cast<T>(p.height - 2)),
        size_x(static_cast<T>(p.width)),
        size_y(static_cast<T>(p.height)) {
    int64_t q = 0;
    for (int64_t g = 0; g < tile_groups; ++g) {
      for (int64_t i = 0; i < p.kernel_w; ++i) {
        for (int64_t j = 0; j < p.kernel_h; ++j) {
          if (p.remove_center && i == p.kernel_w / 2 && j == p.kernel_h / 2) continue;
          tap_x[q] = static_cast<T>((i * p.dilation_w - p.half_w()) * p.offset_scale);
          tap_y[q] = static_cast<T>((j * p.dilation_h - p.half_h()) * p.offset_scale);
          ++q;
        }
      }
    }
  }
};

// Calls body(first, count) for pieces of [0, n) of one vector each. The last piece overlaps the one before if it can,
// so `body` must be free of accumulation; `count` is short of a vector only for n below one vector.
template <typename T, typename Body>
inline void for_each_vector(int64_t n, const Body& body) {
  constexpr int64_t lanes = kLanes<T>;
  if (n < lanes) {
    if (n > 0) body(0, n);
    return;
  }
  int64_t q = 0;
  for (; q + lanes <= n; q += lanes) body(q, lanes);
  if (q < n) body(n - lanes, lanes);
}

// exp of the logits of consecutive rows of `points`, not normalised. A row is shifted by its maximum only if it holds
// a large value, which depends on the row alone: the same bits whichever tile a row falls into.
template <typename T>
inline void exponentiate(const T* logits, int64_t n, int64_t points, T* out) {
  using V = Vec<T>;
  V is_small = V(0) == V(0);
  for_each_vector<T>(n, [&](int64_t q, int64_t count) {
    const V x = V::loadu(logits + q, count);
    is_small = is_small & (x.abs() < V(kExpLimit<T>));  // false for NaN
    exp_limited<T>(x).store(out + q);
  });
  T lanes[kLanes<T>];
  (is_small & V(1)).store(lanes);
  bool all_small = true;
  for (int64_t i = 0; i < kLanes<T>; ++i) all_small &= lanes[i] == T(1);
  if (all_small) return;
  for (int64_t row = 0; row < n; row += points) {
    T largest = -std::numeric_limits<T>::infinity();
    bool small = true;
    for (int64_t p = 0; p < points; ++p) {
      const T x = logits[row + p];
      small &= std::abs(x) < kExpLimit<T>;
      largest = std::max(largest, x);
    }
    if (small) continue;
    for (int64_t p = 0; p < points; ++p) out[row + p] = std::exp(logits[row + p] - largest);
  }
}

template <typename T>
inline T row_sum(const T* row, int64_t points) {
  T sum = 0;
  int64_t p = 0;
  for (; p + kLanes<T> <= points; p += kLanes<T>) sum += lane_sum<T>(Vec<T>::loadu(row + p));
  if (kLanes<T> > 8 && p < points) return sum + lane_sum<T>(Vec<T>::loadu(row + p, points - p));
  for (; p < points; ++p) sum += row[p];
  return sum;
}

// One axis of a position inside (-1, size): the lower side's pixel and how the two sides enter.
template <typename T>
struct Axis {
  Vec<T> pixel, both, value[2], is_lower_inside;

  Axis(const Vec<T>& x, const Vec<T>& last) {
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

  // Derivatives of the two values, as they are shared on the border.
  void slopes(Vec<T>& lower, Vec<T>& upper) const {
    const Vec<T> shared = Vec<T>::blendv(Vec<T>(0.5), Vec<T>(-0.5), is_lower_inside);
    lower = Vec<T>::blendv(shared, Vec<T>(-1), both);
    upper = Vec<T>::blendv(shared, Vec<T>(1), both);
  }
};

// Fills the tables of a tile from `at` on for the n points of one output pixel with window centre (x, y).
template <typename T, typename TileType>
inline void locate(const Grid<T>& grid, const T* offset, const T* mask, int64_t n, T centre_x, T centre_y,
                   TileType& tile, int64_t at) {
  using V = Vec<T>;
  using I = IntVec<T>;
  constexpr int64_t lanes = kLanes<T>;
  for_each_vector<T>(n, [&](int64_t q, int64_t count) {
    const int64_t second = std::max<int64_t>(0, 2 * count - lanes);
    const auto [dx, dy] = at::vec::deinterleave2(V::loadu(offset + 2 * q, std::min(lanes, 2 * count)),
                                                 V::loadu(offset + 2 * q + lanes, second));
    V x = at::vec::fmadd(dx, V(grid.scale), V::loadu(grid.tap_x + q) + V(centre_x));
    V y = at::vec::fmadd(dy, V(grid.scale), V::loadu(grid.tap_y + q) + V(centre_y));
    const V counts = (x > V(-1)) & (x < V(grid.size_x)) & (y > V(-1)) & (y < V(grid.size_y));
    x = x & counts;
    y = y & counts;
    const Axis<T> ax(x, V(grid.last_x)), ay(y, V(grid.last_y));
    const int64_t t = at + q;
    const I row = at::vec::convert_to_int_of_same_size(ay.pixel);
    const I pixel = row * I(grid.width) + at::vec::convert_to_int_of_same_size(ax.pixel);
    (pixel | (as_int<T>(counts) ^ I(-1))).store(tile.pixel + t);
    (as_int<T>(ax.both & counts) & I(grid.channels)).store(tile.step_x + t);
    (as_int<T>(ay.both & counts) & I(grid.channels * grid.width)).store(tile.step_y + t);
    const V m = V::loadu(mask + q, count) & counts;
    const V upper = ay.value[0] * m, lower = ay.value[1] * m;
    (ax.value[0] * upper).store(tile.weight[0] + t);
    (ax.value[1] * upper).store(tile.weight[1] + t);
    (ax.value[0] * lower).store(tile.weight[2] + t);
    (ax.value[1] * lower).store(tile.weight[3] + t);
    if constexpr (std::is_same_v<TileType, GradTile<T>>) {
      V slope[2];
      for (int side = 0; side < 2; ++side) {
        ax.value[side].store(tile.value_x[side] + t);
        ay.value[side].store(tile.value_y[side] + t);
      }
      ax.slopes(slope[0], slope[1]);
      slope[0].store(tile.slope_x[0] + t);
      slope[1].store(tile.slope_x[1] + t);
      ay.slopes(slope[0], slope[1]);
      slope[0].store(tile.slope_y[0] + t);
      slope[1].store(tile.slope_y[1] + t);
    }
  });
}

}  // namespace internimage::cpu::CPU_CAPABILITY
