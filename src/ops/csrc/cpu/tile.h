// The part of DCNv3 that does not depend on channels: softmax of the mask, sampling positions,
// bilinear weights.
//
// A tile is the sampling points of a few rows (points.h), whose geometry is computed first,
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

template <typename T>
struct alignas(64) Tile {
  IntOf<T> element[kTableSize];  // of the top left corner's pixel in its image, -1: no contribution
  // Elements to the right and lower corner; 0 if not both columns or rows are inside.
  IntOf<T> step_x[kTableSize], step_y[kTableSize];
  T weight[4][kTableSize];  // bilinear weight * mask of the four corners
  T exp[kTableSize];        // of the shifted logit, row by row
};

// Additional tables for the gradients.
template <typename T>
struct GradTile : Tile<T> {
  T softmax[kTableSize];           // of the mask, row by row
  T prob[kTableSize];              // mask, after the softmax
  T x[kTableSize], y[kTableSize];  // position in the image, 0 without a contribution
  T dot[4 * kTableSize];           // <corner, grad> of the four corners of each point
  T product[kTableSize];           // prob * d(mask)
  T sum[kTableSize];               // of the products of a row
};

// Constants of a call, and the position of each point of a tile relative to the centre of the
// window of its first pixel.
template <typename T, int kPoints>
struct alignas(64) Grid {
  const Problem& problem;
  int64_t points;
  int64_t groups, pixels;  // that a tile can hold: more than one pixel only with all groups
  Layout<kPoints> layout;
  T tap_x[kTableSize] = {}, tap_y[kTableSize] = {};
  T column[kTableSize] = {};  // distance of the pixels

  Grid(const Problem& p, int64_t wanted_groups, int64_t wanted_points)
      : problem(p),
        points(p.points()),
        groups(std::min(wanted_groups, std::max<int64_t>(1, kMaxPoints / points))),
        pixels(std::max<int64_t>(1, wanted_points / (groups * points))),
        layout(points, pixels * groups) {
    int64_t point = 0;
    for (int64_t i = 0; i < p.kernel_w; ++i) {
      for (int64_t j = 0; j < p.kernel_h; ++j) {
        if (p.remove_center && i == p.kernel_w / 2 && j == p.kernel_h / 2) continue;
        const int64_t slot = layout.slot(0, point++);
        tap_x[slot] = static_cast<T>((i * p.dilation_w - p.half_w()) * p.offset_scale);
        tap_y[slot] = static_cast<T>((j * p.dilation_h - p.half_h()) * p.offset_scale);
      }
    }
    for (int64_t row = 1; row < pixels * groups; ++row) {
      const T distance = static_cast<T>(row / groups * p.stride_w);
      for (int64_t k = 0; k < points; ++k) {
        const int64_t slot = layout.slot(row, k), same = layout.slot(0, k);
        tap_x[slot] = tap_x[same];
        tap_y[slot] = tap_y[same];
        column[slot] = distance;
      }
    }
  }

  // As many of the pixels [first, end) as a tile can hold.
  Span span(int64_t first, int64_t end, int64_t group, int64_t count) const {
    const int64_t line = first / problem.out_width, x = first % problem.out_width;
    return {first,
            std::min({pixels, end - first, problem.out_width - x}),
            group,
            count,
            line / problem.out_height,
            x,
            line % problem.out_height};
  }

  // Centre of the window of the first pixel of a span.
  T centre_x(const Span& span) const {
    return static_cast<T>(span.x * problem.stride_w - problem.pad_w + problem.half_w());
  }
  T centre_y(const Span& span) const {
    return static_cast<T>(span.y * problem.stride_h - problem.pad_h + problem.half_h());
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
  return reinterpret_cast<T*>(outside + (bytes & (~element >> 63)));
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
inline void exponentiate(const Values<const S>& mask, const Span& span, int64_t points,
                         Tile<T>& tile) {
  using V = Vec<T>;
  const int64_t n = span.groups * points;
  V largest(0);
  for (int64_t i = 0; i < span.pixels; ++i) {
    const S* logits = mask.at(span.first + i, span.group);
    prefetch(logits + kPrefetchPixels * mask.pixel_stride, n);
    for_each_vector<T>(n, [&](int64_t q, int64_t count) INTERNIMAGE_INLINE {
      const V x = load(logits + q, count);
      largest = at::vec::maximum(largest, x.abs());
      exp_limited<T>(x).store(tile.exp + i * n + q);
    });
  }
  T lanes[kLanes<T>];
  V::blendv(V(0), V(1), largest < V(kExpLimit<T>))
      .store(lanes);  // 0 for NaN, which maximum() keeps
  if (std::count(lanes, lanes + kLanes<T>, T(1)) == kLanes<T>) return;
  for (int64_t i = 0; i < span.pixels; ++i) {
    exponentiate_slowly<T>(mask.at(span.first + i, span.group), n, points, tile.exp + i * n);
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
template <typename T, int kPoints>
INTERNIMAGE_INLINE inline bool is_interior(const Tile<T>& tile, const Layout<kPoints>& layout,
                                           int64_t row) {
  const int64_t whole = 8 * layout.octets();
  for (int64_t at = row * whole; at < (row + 1) * whole; at += 8) {
    if (!are_nonzero(tile.step_x + at, tile.step_y + at)) return false;
  }
  for (int64_t k = 0; k < layout.rest(); ++k) {
    const int64_t slot = layout.slot(row, whole + k);
    if (tile.step_x[slot] == 0 || tile.step_y[slot] == 0) return false;
  }
  return true;
}

// Weights of the points of a row, each in all lanes of a vector V.
template <typename V, typename T, int kPoints>
struct RowWeights {
  const Tile<T>& tile;

  INTERNIMAGE_INLINE RowWeights(const Tile<T>& tile, int64_t) : tile(tile) {}

  INTERNIMAGE_INLINE V get(int corner, int64_t slot, int64_t) const {
    return V(tile.weight[corner][slot]);
  }
};

#if defined(CPU_CAPABILITY_AVX512)

// The loads of the channel loops are their limit, so the weights of an octet are permuted in
// registers.
template <typename V>
struct RowWeights<V, float, 9> {
  const Tile<float>& tile;
  __m256 octet[4];

  INTERNIMAGE_INLINE RowWeights(const Tile<float>& tile, int64_t row) : tile(tile) {
    for (int i = 0; i < 4; ++i) octet[i] = _mm256_load_ps(tile.weight[i] + 8 * row);
  }

  INTERNIMAGE_INLINE V get(int corner, int64_t slot, int64_t point) const {
    if (point == 8) return V(tile.weight[corner][slot]);
    const int lane = static_cast<int>(point);
    if constexpr (V::size() == 8) {
      return _mm256_permutexvar_ps(_mm256_set1_epi32(lane), octet[corner]);
    } else {
      return _mm512_permutexvar_ps(_mm512_set1_epi32(lane), _mm512_castps256_ps512(octet[corner]));
    }
  }
};

#endif

// One axis of a position inside (-1, size): pixel of the lower side, and weights of the two sides.
template <typename T>
struct Axis {
  Vec<T> pixel, value[2];
  Mask<T> both, is_lower_inside;

  INTERNIMAGE_INLINE Axis(const Vec<T>& x, const Vec<T>& last) {
    const Vec<T> lower = x.floor();
    const Vec<T> upper_value = x - lower;
    const Vec<T> lower_value = Vec<T>(1) - upper_value;
    is_lower_inside = is_at_most(Vec<T>(0), lower);
    both = is_lower_inside & is_at_most(lower, last);
    const Vec<T> shared = Vec<T>(0.5) * choose(is_lower_inside, lower_value, upper_value);
    value[0] = choose(both, lower_value, shared);
    value[1] = choose(both, upper_value, shared);
    pixel = keep(is_lower_inside, lower);
  }

  // Derivatives of the two values, which are shared on the border.
  INTERNIMAGE_INLINE std::pair<Vec<T>, Vec<T>> slopes() const {
    const Vec<T> shared = choose(is_lower_inside, Vec<T>(-0.5), Vec<T>(0.5));
    return {choose(both, Vec<T>(-1), shared), choose(both, Vec<T>(1), shared)};
  }
};

// Fills the tables of a tile for a span.
template <typename T, int kPoints, typename Rows, typename TileType>
INTERNIMAGE_INLINE inline void locate(const Grid<T, kPoints>& grid, const Rows& rows,
                                      const Span& span, TileType& tile) {
  using V = Vec<T>;
  using I = IntVec<T>;
  const Problem& p = grid.problem;
  const V scale(static_cast<T>(p.offset_scale));
  const V last_x(static_cast<T>(p.width - 2)), last_y(static_cast<T>(p.height - 2));
  const V size_x(static_cast<T>(p.width)), size_y(static_cast<T>(p.height));
  const I channels(p.channels), row_elements(p.width * p.channels);
  const V centre_x(grid.centre_x(span)), centre_y(grid.centre_y(span));
  grid.layout.template for_each_vector<kLanes<T>>(
      span.rows(), [&](auto in_octets, int64_t t) INTERNIMAGE_INLINE {
        const auto [dx, dy] = rows.offsets(in_octets, t);
        const V column = V::loadu(grid.column + t) + centre_x;
        V x = at::vec::fmadd(dx, scale, V::loadu(grid.tap_x + t) + column);
        V y = at::vec::fmadd(dy, scale, V::loadu(grid.tap_y + t) + centre_y);
        const Mask<T> counts =
            is_less(V(-1), x) & is_less(x, size_x) & is_less(V(-1), y) & is_less(y, size_y);
        x = keep(counts, x);
        y = keep(counts, y);
        const Axis<T> ax(x, last_x), ay(y, last_y);
        const I element = at::vec::convert_to_int_of_same_size(ay.pixel) * row_elements +
                          at::vec::convert_to_int_of_same_size(ax.pixel) * channels;
        choose(counts, element, I(-1)).store(tile.element + t);
        keep(ax.both & counts, channels).store(tile.step_x + t);
        keep(ay.both & counts, row_elements).store(tile.step_y + t);
        const V weight = rows.weights(in_octets, t);
        const V m = keep(counts, weight);
        const V upper = ay.value[0] * m, lower = ay.value[1] * m;
        (ax.value[0] * upper).store(tile.weight[0] + t);
        (ax.value[1] * upper).store(tile.weight[1] + t);
        (ax.value[0] * lower).store(tile.weight[2] + t);
        (ax.value[1] * lower).store(tile.weight[3] + t);
        if constexpr (std::is_same_v<TileType, GradTile<T>>) {
          weight.store(tile.prob + t);
          x.store(tile.x + t);
          y.store(tile.y + t);
        }
      });
}

}  // namespace internimage::cpu::CPU_CAPABILITY
