// DCNv3 backward on the CPU. One call owns the input gradient it adds to, so there are no atomics, and the order of
// the additions depends on the region alone.
#pragma once

#include <memory>

#include "tile.h"

namespace internimage::cpu::CPU_CAPABILITY {

constexpr int64_t kBackwardPoints = 144;

// Where a row's channels are: value and gradient of input pixel (0, 0), and stand-ins for points that do not count.
template <typename T>
struct RowPointers {
  const T* input;
  const T* grad;       // gradient of the output row
  T* grad_input;       // may be null
  const T* zeros;
  T* scratch;          // swallows what is added for points that do not count
};

// kVecs vectors of channels of one row (the last `tail` lanes only if tail > 0): adds to the input gradient, and sets
// (or adds to, for `more` channels of the same row) the dot products of the corners with the gradient.
template <typename T, int kVecs, int kPoints>
inline void backward_channels(const RowPointers<T>& row, int64_t channels, GradTile<T>& tile, int64_t t,
                              int64_t points, bool want_dots, bool more, int64_t tail) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t count = tail > 0 ? tail : lanes;
  V grad[kVecs];
  for (int v = 0; v < kVecs; ++v) grad[v] = V::loadu(row.grad + v * lanes, count);
  const int64_t n = kPoints > 0 ? kPoints : points;
#pragma GCC unroll 9
  for (int64_t p = t; p < t + n; ++p) {
    const auto pixel = tile.pixel[p];
    const int64_t step[4] = {0, tile.step_x[p], tile.step_y[p], tile.step_x[p] + tile.step_y[p]};
    const int64_t at = static_cast<int64_t>(pixel) * channels;
    if (want_dots) {
      const T* corner = pixel >= 0 ? row.input + at : row.zeros;
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
    if (row.grad_input != nullptr) {
      T* corner = pixel >= 0 ? row.grad_input + at : row.scratch;
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
inline void backward_row(RowPointers<T> row, const Problem& p, GradTile<T>& tile, int64_t t, int64_t points,
                         bool want_dots) {
  if constexpr (kVecs > 0) {
    backward_channels<T, kVecs, kPoints>(row, p.channels, tile, t, points, want_dots, false, 0);
  } else {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t count = p.group_channels();
    const auto advance = [&row](int64_t n) {
      row.input += n;
      row.grad += n;
      if (row.grad_input != nullptr) row.grad_input += n;
    };
    int64_t c = 0;
    for (; c + 4 * lanes <= count; c += 4 * lanes) {
      backward_channels<T, 4, kPoints>(row, p.channels, tile, t, points, want_dots, c > 0, 0);
      advance(4 * lanes);
    }
    for (; c < count; c += lanes) {
      const int64_t tail = count - c < lanes ? count - c : 0;
      backward_channels<T, 1, kPoints>(row, p.channels, tile, t, points, want_dots, c > 0, tail);
      advance(lanes);
    }
  }
}

// Gradients of offset and mask of the n points of one output pixel from the corners' dot products.
template <typename T>
inline void finish_points(const Grid<T>& grid, GradTile<T>& tile, int64_t at, int64_t n, bool is_softmax,
                          T* grad_offset, T* grad_mask) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  for_each_vector<T>(n, [&](int64_t q, int64_t count) {
    const int64_t t = at + q;
    const T* dot = tile.dot + 4 * t;
    const auto [even0, odd0] = at::vec::deinterleave2(V::loadu(dot), V::loadu(dot + lanes));
    const auto [even1, odd1] = at::vec::deinterleave2(V::loadu(dot + 2 * lanes), V::loadu(dot + 3 * lanes));
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
      const V factor = prob * V(grid.scale);
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
    for_each_vector<T>(grid.points, [&](int64_t p, int64_t count) {
      at::vec::fnmadd(V::loadu(prob + p), sum, V::loadu(product + p)).store(grad_mask + row + p, count);
    });
  }
}

// prob = exp / sum per row. Whole vectors: what spills over a row's end is overwritten by the next row.
template <typename T>
inline void normalise(GradTile<T>& tile, int64_t at, int64_t n, int64_t points) {
  for (int64_t t = at; t < at + n; t += points) {
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
  const bool want_dots = call.grad_offset != nullptr || call.grad_mask != nullptr;
  const std::unique_ptr<Grid<T>> grid(new Grid<T>(p, region.group_end - region.group_begin));
  const std::unique_ptr<GradTile<T>> tile_owner(new GradTile<T>);
  GradTile<T>& tile = *tile_owner;
  const auto zeros = std::make_unique<T[]>(group_channels);
  const auto scratch = std::make_unique<T[]>(group_channels);
  const T* image = call.input + region.image * p.height * p.width * p.channels;
  for (int64_t group = region.group_begin; group < region.group_end; group += grid->tile_groups) {
    const int64_t groups = std::min(grid->tile_groups, region.group_end - group);
    const int64_t pixel_points = groups * points;
    const int64_t tile_pixels = std::max<int64_t>(1, kBackwardPoints / pixel_points);
    for (int64_t begin = region.pixel_begin; begin < region.pixel_end; begin += tile_pixels) {
      const int64_t pixels = std::min(tile_pixels, region.pixel_end - begin);
      const int64_t first = region.image * p.out_pixels() + begin;  // in the batch
      for (int64_t i = 0; i < pixels; ++i) {
        const T* offset = call.offset + (first + i) * call.offset_stride + group * points * 2;
        const T* mask = call.mask + (first + i) * call.mask_stride + group * points;
        const int64_t at = i * pixel_points;
        if (p.mask_softmax) {
          exponentiate<T>(mask, pixel_points, points, tile.exp + at);
          normalise<T>(tile, at, pixel_points, points);
        } else {
          std::copy(mask, mask + pixel_points, tile.prob + at);
        }
        const int64_t x = (begin + i) % p.out_width, y = (begin + i) / p.out_width;
        locate<T>(*grid, offset, tile.prob + at, pixel_points,
                  static_cast<T>(x * p.stride_w - p.pad_w + p.half_w()),
                  static_cast<T>(y * p.stride_h - p.pad_h + p.half_h()), tile, at);
      }
      for (int64_t i = 0; i < pixels; ++i) {
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t c = (group + g) * group_channels;
          const RowPointers<T> row{image + c, call.grad + (first + i) * p.channels + c,
                                   grad_image == nullptr ? nullptr : grad_image + c, zeros.get(),
                                   scratch.get()};
          backward_row<T, kVecs, kPoints>(row, p, tile, i * pixel_points + g * points, points, want_dots);
        }
      }
      if (!want_dots) continue;
      for (int64_t i = 0; i < pixels; ++i) {
        const int64_t out = ((first + i) * p.groups + group) * points;
        finish_points<T>(*grid, tile, i * pixel_points, pixel_points, p.mask_softmax,
                         call.grad_offset == nullptr ? nullptr : call.grad_offset + 2 * out,
                         call.grad_mask == nullptr ? nullptr : call.grad_mask + out);
      }
    }
  }
}

template <typename T, int kPoints>
void backward_for_points(const Backward<T>& call, const Region& region, T* grad_image) {
  const int64_t channels = call.problem.group_channels();
  if (channels == kLanes<T>) return backward_region<T, 1, kPoints>(call, region, grad_image);
  if (channels == 2 * kLanes<T>) return backward_region<T, 2, kPoints>(call, region, grad_image);
  if (channels == 4 * kLanes<T>) return backward_region<T, 4, kPoints>(call, region, grad_image);
  return backward_region<T, 0, kPoints>(call, region, grad_image);
}

template <typename T>
void backward(const Backward<T>& call, const Region& region, T* grad_image) {
  if constexpr (!std::is_same_v<T, float>) return backward_region<T, 0, 0>(call, region, grad_image);
  switch (call.problem.points()) {
    case 9:
      return backward_for_points<T, 9>(call, region, grad_image);
    case 8:
      return backward_for_points<T, 8>(call, region, grad_image);
    default:
      return backward_for_points<T, 0>(call, region, grad_image);
  }
}

template <typename T>
void sampled_rows(const Backward<T>& call, const Region& region, int64_t* first, int64_t* last) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const Problem& p = call.problem;
  const int64_t points = p.points();
  const std::unique_ptr<Grid<T>> grid(new Grid<T>(p, region.group_end - region.group_begin));
  const V none_low(static_cast<T>(p.height)), none_high(-2);
  V low = none_low, high = none_high;
  for (int64_t pixel = region.pixel_begin; pixel < region.pixel_end; ++pixel) {
    const T centre = static_cast<T>(pixel / p.out_width * p.stride_h - p.pad_h + p.half_h());
    for (int64_t group = region.group_begin; group < region.group_end; group += grid->tile_groups) {
      const int64_t n = std::min(grid->tile_groups, region.group_end - group) * points;
      const T* offset = call.offset + (region.image * p.out_pixels() + pixel) * call.offset_stride +
                        group * points * 2;
      for_each_vector<T>(n, [&](int64_t q, int64_t count) {
        const int64_t second = std::max<int64_t>(0, 2 * count - lanes);
        const auto [dx, dy] = at::vec::deinterleave2(V::loadu(offset + 2 * q, std::min(lanes, 2 * count)),
                                                     V::loadu(offset + 2 * q + lanes, second));
        const V y = at::vec::fmadd(dy, V(grid->scale), V::loadu(grid->tap_y + q) + V(centre));
        const V counts = (y > V(-1)) & (y < V(grid->size_y));
        low = at::vec::minimum(low, V::blendv(none_low, y, counts));
        high = at::vec::maximum(high, V::blendv(none_high, y, counts));
      });
    }
  }
  T lows[lanes], highs[lanes];
  low.floor().store(lows);
  high.floor().store(highs);
  const auto least = static_cast<int64_t>(*std::min_element(lows, lows + lanes));
  const auto most = static_cast<int64_t>(*std::max_element(highs, highs + lanes));
  *first = std::max<int64_t>(least, 0);
  *last = std::min(most + 1, p.height - 1);
}

}  // namespace internimage::cpu::CPU_CAPABILITY
