// DCNv3 backward on the CPU. Each call has exclusive access to the input gradient that it adds to,
// so there are no atomics, and the order of the additions depends only on the region.
#pragma once

#include "tile.h"

namespace internimage::cpu::CPU_CAPABILITY {

constexpr int64_t kBackwardPoints = 144;

// Pointers to the channels of a row: value and gradient of input pixel (0, 0), and dummy memory for
// points that do not contribute.
template <typename T>
struct RowPointers {
  const T* input;
  const T* grad;  // gradient of the output row
  T* grad_input;  // may be null
  const T* zeros;
  T* scratch;  // receives the additions of points that do not contribute
};

// kVecs vectors of channels (the first `count` lanes of each) of one row: adds to the input
// gradient, and sets (or adds to, for `more` channels of the same row) the dot products of the
// corners with the gradient.
template <typename T, int kVecs, int kPoints, bool kInterior>
INTERNIMAGE_INLINE inline void backward_channels(const RowPointers<T> row, const Problem& problem,
                                                 GradTile<T>& tile, int64_t t, int64_t points,
                                                 bool want_dots, bool want_input, bool more,
                                                 int64_t count) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  V grad[kVecs];
  for (int v = 0; v < kVecs; ++v) grad[v] = V::loadu(row.grad + v * lanes, count);
  const int64_t step_x = problem.channels, step_y = problem.channels * problem.width;
  const int64_t n = kPoints > 0 ? kPoints : points;
#pragma GCC unroll 9
  for (int64_t k = 0; k < n; ++k) {
    const int64_t p = t + k;
    const int64_t element = tile.element[p];
    const int64_t to_x = kInterior ? step_x : tile.step_x[p];
    const int64_t to_y = kInterior ? step_y : tile.step_y[p];
    const int64_t step[4] = {0, to_x, to_y, to_x + to_y};
    if (want_dots) {
      const T* corner = kInterior ? row.input + element : select(row.input, row.zeros, element);
      V dot[4];
      for (int i = 0; i < 4; ++i) {
        dot[i] = V::loadu(corner + step[i], count) * grad[0];
        for (int v = 1; v < kVecs; ++v) {
          dot[i] = at::vec::fmadd(V::loadu(corner + step[i] + v * lanes, count), grad[v], dot[i]);
        }
      }
      T* out = tile.dot + 4 * p;
      if (more) {
        T sums[4];
        lane_sums<T>(dot[0], dot[1], dot[2], dot[3], sums);
        for (int i = 0; i < 4; ++i) out[i] += sums[i];
      } else {
        lane_sums<T>(dot[0], dot[1], dot[2], dot[3], out);
      }
    }
    if (want_input) {
      T* corner =
          kInterior ? row.grad_input + element : select(row.grad_input, row.scratch, element);
      // In order: on the border several corners are the same pixel.
      for (int i = 0; i < 4; ++i) {
        const V weight(tile.weight[i][p]);
        for (int v = 0; v < kVecs; ++v) {
          T* target = corner + step[i] + v * lanes;
          at::vec::fmadd(weight, grad[v], V::loadu(target, count)).store(target, count);
        }
      }
    }
  }
}

template <typename T, int kVecs, int kPoints>
INTERNIMAGE_INLINE inline void backward_row(RowPointers<T> row, const Problem& p, GradTile<T>& tile,
                                            int64_t t, int64_t points, bool want_dots) {
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kVecs > 0) {
    if (is_interior(tile.edge + t, points)) {
      backward_channels<T, kVecs, kPoints, true>(row, p, tile, t, points, true, true, false, lanes);
    } else {
      backward_channels<T, kVecs, kPoints, false>(row, p, tile, t, points, true, true, false,
                                                  lanes);
    }
  } else {
    const int64_t channels = p.group_channels();
    const bool want_input = row.grad_input != nullptr;
    for (int64_t c = 0; c < channels;) {
      const bool is_wide = c + 4 * lanes <= channels;
      const int64_t count = std::min(lanes, channels - c);
      const int64_t advance = is_wide ? 4 * lanes : count;
      if (is_wide) {
        backward_channels<T, 4, kPoints, false>(row, p, tile, t, points, want_dots, want_input,
                                                c > 0, count);
      } else {
        backward_channels<T, 1, kPoints, false>(row, p, tile, t, points, want_dots, want_input,
                                                c > 0, count);
      }
      row.input += advance;
      row.grad += advance;
      if (want_input) row.grad_input += advance;
      c += advance;
    }
  }
}

// Gradients of offset and mask of the n points of an output pixel, from the dot products of the
// corners.
template <typename T>
inline void finish_points(const Grid<T>& grid, GradTile<T>& tile, int64_t at, int64_t n,
                          bool is_softmax, T* grad_offset, T* grad_mask) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const V scale(static_cast<T>(grid.problem.offset_scale));
  for_each_vector<T>(n, [&](int64_t q, int64_t count) INTERNIMAGE_INLINE {
    const int64_t t = at + q;
    const T* dot = tile.dot + 4 * t;
    const auto [even0, odd0] = at::vec::deinterleave2(V::loadu(dot), V::loadu(dot + lanes));
    const auto [even1, odd1] =
        at::vec::deinterleave2(V::loadu(dot + 2 * lanes), V::loadu(dot + 3 * lanes));
    const auto [upper0, lower0] = at::vec::deinterleave2(even0, even1);
    const auto [upper1, lower1] = at::vec::deinterleave2(odd0, odd1);
    const V x0 = V::loadu(tile.value_x[0] + t), x1 = V::loadu(tile.value_x[1] + t);
    const V y0 = V::loadu(tile.value_y[0] + t), y1 = V::loadu(tile.value_y[1] + t);
    const V prob = V::loadu(tile.prob + t);
    const V upper = at::vec::fmadd(x0, upper0, x1 * upper1);
    const V lower = at::vec::fmadd(x0, lower0, x1 * lower1);
    const V value = at::vec::fmadd(y0, upper, y1 * lower);
    if (grad_offset != nullptr) {
      const V dx0 = V::loadu(tile.slope_x[0] + t), dx1 = V::loadu(tile.slope_x[1] + t);
      const V dy0 = V::loadu(tile.slope_y[0] + t), dy1 = V::loadu(tile.slope_y[1] + t);
      const V factor = prob * scale;
      const V across = at::vec::fmadd(y0, at::vec::fmadd(dx0, upper0, dx1 * upper1),
                                      y1 * at::vec::fmadd(dx0, lower0, dx1 * lower1));
      const V down = at::vec::fmadd(dy0, upper, dy1 * lower);
      const auto [first, second] = at::vec::interleave2(factor * across, factor * down);
      first.store(grad_offset + 2 * q, std::min(lanes, 2 * count));
      if (2 * count > lanes) second.store(grad_offset + 2 * q + lanes, 2 * count - lanes);
    }
    if (is_softmax) {
      (prob * value).store(tile.product + t);
    } else if (grad_mask != nullptr) {
      value.store(grad_mask + q, count);
    }
  });
  if (!is_softmax || grad_mask == nullptr) return;
  for (int64_t row = 0; row < n; row += grid.points) {
    const T* product = tile.product + at + row;
    const T* prob = tile.prob + at + row;
    const V sum(row_sum<T>(product, grid.points));
    for_each_vector<T>(grid.points, [&](int64_t p, int64_t count) INTERNIMAGE_INLINE {
      at::vec::fnmadd(V::loadu(prob + p), sum, V::loadu(product + p))
          .store(grad_mask + row + p, count);
    });
  }
}

// Copies the gradients of the points of an output pixel to its packed row.
template <typename T, int kPoints>
inline void store_row(const T* offset, const T* mask, int64_t points, int64_t groups, T* row) {
  const int64_t count = kPoints > 0 ? kPoints : points;
  const auto copy = [](const T* from, int64_t size, T* to) INTERNIMAGE_INLINE {
    for_each_vector<T>(size, [&](int64_t q, int64_t part) INTERNIMAGE_INLINE {
      Vec<T>::loadu(from + q, part).store(to + q, part);
    });
  };
  for (int64_t g = 0; g < groups; ++g) {
    copy(offset + g * 2 * count, 2 * count, row + g * 3 * count);
    copy(mask + g * count, count, row + g * 3 * count + 2 * count);
  }
}

// prob = exp / sum per row. Whole vectors are written; values beyond the end of a row are
// overwritten by the next row.
template <typename T>
inline void normalise(GradTile<T>& tile, int64_t n, int64_t points) {
  for (int64_t t = 0; t < n; t += points) {
    const Vec<T> factor(T(1) / row_sum<T>(tile.exp + t, points));
    for (int64_t p = 0; p < points; p += kLanes<T>) {
      (Vec<T>::loadu(tile.exp + t + p) * factor).store(tile.prob + t + p);
    }
  }
}

template <typename T, int kVecs, int kPoints>
void backward_region(const Backward<T>& call, const Region& region, T* grad_image) {
  const Problem& p = call.problem;
  const int64_t points = kPoints > 0 ? kPoints : p.points();
  const int64_t group_channels = p.group_channels();
  const bool want_dots =
      call.grad_offset != nullptr || call.grad_mask != nullptr || call.grad_rows != nullptr;
  const Grid<T> grid(p, region.group_end - region.group_begin);
  const Array<T> zeros(group_channels), scratch(group_channels);
  GradTile<T> tile;
  const T* image = call.input + region.image * p.height * p.width * p.channels;
  const int64_t begin = region.image * p.out_pixels() + region.pixel_begin;  // in the batch
  const int64_t end = region.image * p.out_pixels() + region.pixel_end;
  for (int64_t group = region.group_begin; group < region.group_end; group += grid.groups) {
    Span span{begin, 0, group, std::min(grid.groups, region.group_end - group)};
    const int64_t n = span.groups * points;
    const int64_t tile_pixels = std::max<int64_t>(1, kBackwardPoints / n);
    for (; span.first < end; span.first += span.pixels) {
      span.pixels = std::min(tile_pixels, end - span.first);
      if (call.points.is_packed) {
        locate<T>(grid, PackedRows<T, kPoints>(call.points, span, points), span, tile);
      } else {
        SeparateRows<T> rows(call.points, span, points);
        if (p.mask_softmax) {
          exponentiate(grid, rows, span, tile);
          normalise<T>(tile, span.pixels * n, points);
          rows.table = tile.prob;
        }
        locate<T>(grid, rows, span, tile);
      }
      for (int64_t i = 0; i < span.pixels; ++i) {
        const int64_t ahead =
            (span.first - begin + region.pixel_begin + i + kPrefetchRows * p.width) * p.channels +
            group * group_channels;
        prefetch(image + ahead, span.groups * group_channels);
        if (grad_image != nullptr) prefetch(grad_image + ahead, span.groups * group_channels);
        for (int64_t g = 0; g < span.groups; ++g) {
          const int64_t c = (group + g) * group_channels;
          const RowPointers<T> row{image + c, call.grad + (span.first + i) * p.channels + c,
                                   grad_image == nullptr ? nullptr : grad_image + c, zeros.data,
                                   scratch.data};
          backward_row<T, kVecs, kPoints>(row, p, tile, i * n + g * points, points, want_dots);
        }
      }
      if (!want_dots) continue;
      if (call.grad_rows != nullptr) {
        for (int64_t i = 0; i < span.pixels; ++i) {
          finish_points<T>(grid, tile, i * n, n, false, tile.grad_offset + 2 * i * n,
                           tile.grad_mask + i * n);
        }
        for (int64_t i = 0; i < span.pixels; ++i) {
          T* row = call.grad_rows + (span.first + i) * call.row_width;
          store_row<T, kPoints>(tile.grad_offset + 2 * i * n, tile.grad_mask + i * n, points,
                                span.groups, row + group * points * 3);
          if (group + span.groups == p.groups) {
            std::fill(row + p.groups * points * 3, row + call.row_width, T(0));
          }
        }
        continue;
      }
      for (int64_t i = 0; i < span.pixels; ++i) {
        const int64_t out = ((span.first + i) * p.groups + group) * points;
        finish_points<T>(grid, tile, i * n, n, p.mask_softmax,
                         call.grad_offset == nullptr ? nullptr : call.grad_offset + 2 * out,
                         call.grad_mask == nullptr ? nullptr : call.grad_mask + out);
      }
    }
  }
}

template <typename T>
void backward(const Backward<T>& call, const Region& region, T* grad_image) {
  if constexpr (std::is_same_v<T, float>) {
    const bool wants_points =
        call.grad_rows != nullptr || (call.grad_offset != nullptr && call.grad_mask != nullptr);
    const bool wants_all = grad_image != nullptr && wants_points;
    if (call.problem.points() == 9 && wants_all) {
      const int64_t channels = call.problem.group_channels();
      if (channels == kLanes<T>) return backward_region<T, 1, 9>(call, region, grad_image);
      if (channels == 2 * kLanes<T>) return backward_region<T, 2, 9>(call, region, grad_image);
      if (channels == 4 * kLanes<T>) return backward_region<T, 4, 9>(call, region, grad_image);
    }
  }
  return backward_region<T, 0, 0>(call, region, grad_image);
}

template <typename T>
void sampled_rows(const Backward<T>& call, const Region& region, int64_t* first, int64_t* last) {
  using V = Vec<T>;
  const Problem& p = call.problem;
  const Grid<T> grid(p, region.group_end - region.group_begin);
  const V size(static_cast<T>(p.height)), scale(static_cast<T>(p.offset_scale));
  V low = size, high(-2);
  for (int64_t pixel = region.pixel_begin; pixel < region.pixel_end; ++pixel) {
    const V centre(static_cast<T>(pixel / p.out_width * p.stride_h - p.pad_h + p.half_h()));
    for (int64_t group = region.group_begin; group < region.group_end; group += grid.groups) {
      const Span span{region.image * p.out_pixels() + pixel, 1, group,
                      std::min(grid.groups, region.group_end - group)};
      const auto widen = [&](const auto& rows) {
        for_each_vector<T>(
            span.groups * grid.points, [&](int64_t q, int64_t count) INTERNIMAGE_INLINE {
              const V dy = rows.offsets(0, q, count).second;
              const V y = at::vec::fmadd(dy, scale, V::loadu(grid.tap_y + q) + centre);
              const V counts = (y > V(-1)) & (y < size);
              low = at::vec::minimum(low, V::blendv(size, y, counts));
              high = at::vec::maximum(high, V::blendv(V(-2), y, counts));
            });
      };
      if (call.points.is_packed) {
        widen(PackedRows<T, 0>(call.points, span, grid.points));
      } else {
        widen(SeparateRows<T>(call.points, span, grid.points));
      }
    }
  }
  T lows[kLanes<T>], highs[kLanes<T>];
  low.floor().store(lows);
  high.floor().store(highs);
  const auto least = static_cast<int64_t>(*std::min_element(lows, lows + kLanes<T>));
  const auto most = static_cast<int64_t>(*std::max_element(highs, highs + kLanes<T>));
  *first = std::max<int64_t>(least, 0);
  *last = std::min(most + 1, p.height - 1);
}

}  // namespace internimage::cpu::CPU_CAPABILITY
