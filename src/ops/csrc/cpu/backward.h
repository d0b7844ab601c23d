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
                                                 GradTile<T>& tile,
                                                 const Layout<kPoints>& layout, int64_t r,
                                                 bool want_dots, bool want_input, bool more,
                                                 int64_t count) {
  using V = ChannelVec<T>;
  constexpr int64_t lanes = V::size();
  V grad[kVecs];
  for (int v = 0; v < kVecs; ++v) grad[v] = V::loadu(row.grad + v * lanes, count);
  const RowWeights<V, T, kPoints> weights(tile, r);
  const int64_t step_x = problem.channels, step_y = problem.channels * problem.width;
  const int64_t n = kPoints > 0 ? kPoints : layout.points;
#pragma GCC unroll 9
  for (int64_t k = 0; k < n; ++k) {
    const int64_t slot = layout.slot(r, k);
    const int64_t element = tile.element[slot];
    const int64_t to_x = kInterior ? step_x : tile.step_x[slot];
    const int64_t to_y = kInterior ? step_y : tile.step_y[slot];
    const int64_t step[4] = {0, to_x, to_y, to_x + to_y};
    if (want_dots) {
      const T* corner = kInterior ? row.input + element : select(row.input, row.zeros, element);
      V dot[4];
      for (int i = 0; i < 4; ++i) {
        dot[i] = V::loadu(corner + step[i], count) * grad[0];
        for (int v = 1; v < kVecs; ++v) {
          dot[i] = fmadd(V::loadu(corner + step[i] + v * lanes, count), grad[v], dot[i]);
        }
      }
      T* out = tile.dot + 4 * slot;
      if (more) {
        T sums[4];
        lane_sums(dot[0], dot[1], dot[2], dot[3], sums);
        for (int i = 0; i < 4; ++i) out[i] += sums[i];
      } else {
        lane_sums(dot[0], dot[1], dot[2], dot[3], out);
      }
    }
    if (want_input) {
      T* corner =
          kInterior ? row.grad_input + element : select(row.grad_input, row.scratch, element);
      // In order: on the border several corners are the same pixel.
      for (int i = 0; i < 4; ++i) {
        const V weight = weights.get(i, slot, k);
        for (int v = 0; v < kVecs; ++v) {
          T* target = corner + step[i] + v * lanes;
          fmadd(weight, grad[v], V::loadu(target, count)).store(target, count);
        }
      }
    }
  }
}

template <typename T, int kVecs, int kPoints>
INTERNIMAGE_INLINE inline void backward_row(RowPointers<T> row, const Problem& p, GradTile<T>& tile,
                                            const Layout<kPoints>& layout, int64_t r,
                                            bool want_dots) {
  constexpr int64_t lanes = ChannelVec<T>::size();
  if constexpr (kVecs > 0) {
    if (is_interior(tile, layout, r)) {
      backward_channels<T, kVecs, kPoints, true>(row, p, tile, layout, r, true, true, false, lanes);
    } else {
      backward_channels<T, kVecs, kPoints, false>(row, p, tile, layout, r, true, true, false,
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
        backward_channels<T, 4, kPoints, false>(row, p, tile, layout, r, want_dots, want_input,
                                                c > 0, count);
      } else {
        backward_channels<T, 1, kPoints, false>(row, p, tile, layout, r, want_dots, want_input,
                                                c > 0, count);
      }
      row.input += advance;
      row.grad += advance;
      if (want_input) row.grad_input += advance;
      c += advance;
    }
  }
}

// softmax = exp / sum per row. Whole vectors are written; values beyond the end of a row are
// overwritten by the next row.
template <typename T>
inline void normalise(GradTile<T>& tile, int64_t rows, int64_t points) {
  for (int64_t t = 0; t < rows * points; t += points) {
    const Vec<T> factor(T(1) / row_sum<T>(tile.exp + t, points));
    for (int64_t p = 0; p < points; p += kLanes<T>) {
      (Vec<T>::loadu(tile.exp + t + p) * factor).store(tile.softmax + t + p);
    }
  }
}

// Gradients of the logits, from the products of prob and the gradient of prob.
template <typename T, int kPoints>
inline void finish_softmax(const Layout<kPoints>& layout, int64_t rows, GradTile<T>& tile,
                           PointRows<T, T, kPoints>& grads) {
  using V = Vec<T>;
  const int64_t whole = 8 * layout.octets();
  for (int64_t row = 0; row < rows; ++row) {
    T sum = row_sum<T>(tile.product + row * whole, whole);
    for (int64_t k = whole; k < layout.points; ++k) sum += tile.product[layout.slot(row, k)];
    std::fill_n(tile.sum + row * whole, whole, sum);
    for (int64_t k = whole; k < layout.points; ++k) tile.sum[layout.slot(row, k)] = sum;
  }
  layout.template for_each_vector<kLanes<T>>(rows, [&](auto in_octets, int64_t t)
                                                       INTERNIMAGE_INLINE {
    const V sum = V::loadu(tile.sum + t);
    grads.set_weights(in_octets, t,
                      at::vec::fnmadd(V::loadu(tile.prob + t), sum, V::loadu(tile.product + t)));
  });
}

// Gradients of the offsets and masks of a span, from the dot products of the corners.
template <typename T, int kPoints>
INTERNIMAGE_INLINE inline void finish(const Grid<T, kPoints>& grid, const Span& span,
                                      GradTile<T>& tile, PointRows<T, T, kPoints>& grads) {
  using V = Vec<T>;
  constexpr int64_t lanes = kLanes<T>;
  const Problem& p = grid.problem;
  const V scale(static_cast<T>(p.offset_scale));
  const V last_x(static_cast<T>(p.width - 2)), last_y(static_cast<T>(p.height - 2));
  grid.layout.template for_each_vector<lanes>(
      span.rows(), [&](auto in_octets, int64_t t) INTERNIMAGE_INLINE {
        const T* dot = tile.dot + 4 * t;
        const auto [even0, odd0] = at::vec::deinterleave2(V::loadu(dot), V::loadu(dot + lanes));
        const auto [even1, odd1] =
            at::vec::deinterleave2(V::loadu(dot + 2 * lanes), V::loadu(dot + 3 * lanes));
        const auto [upper0, lower0] = at::vec::deinterleave2(even0, even1);
        const auto [upper1, lower1] = at::vec::deinterleave2(odd0, odd1);
        const Axis<T> ax(V::loadu(tile.x + t), last_x), ay(V::loadu(tile.y + t), last_y);
        const V prob = V::loadu(tile.prob + t);
        const V upper = at::vec::fmadd(ax.value[0], upper0, ax.value[1] * upper1);
        const V lower = at::vec::fmadd(ax.value[0], lower0, ax.value[1] * lower1);
        const V value = at::vec::fmadd(ay.value[0], upper, ay.value[1] * lower);
        const auto [dx0, dx1] = ax.slopes();
        const auto [dy0, dy1] = ay.slopes();
        const V across =
            at::vec::fmadd(ay.value[0], at::vec::fmadd(dx0, upper0, dx1 * upper1),
                           ay.value[1] * at::vec::fmadd(dx0, lower0, dx1 * lower1));
        const V down = at::vec::fmadd(dy0, upper, dy1 * lower);
        const V factor = prob * scale;
        grads.set_offsets(in_octets, t, factor * across, factor * down);
        if (p.mask_softmax) {
          (prob * value).store(tile.product + t);
        } else {
          grads.set_weights(in_octets, t, value);
        }
      });
  if (p.mask_softmax) finish_softmax(grid.layout, span.rows(), tile, grads);
  grads.write_rest();
}

template <typename T, int kVecs, int kPoints>
void backward_region(const Backward<T>& call, const Region& region, T* grad_image) {
  const Problem& p = call.problem;
  const int64_t group_channels = p.group_channels();
  const bool want_dots = call.grad_points.offset.data != nullptr;
  const Grid<T, kPoints> grid(p, region.group_end - region.group_begin, kBackwardPoints);
  const int64_t points = grid.points;
  const Array<T> zeros(group_channels), scratch(group_channels);
  GradTile<T> tile;
  const T* image = call.input + region.image * p.height * p.width * p.channels;
  const int64_t image_first = region.image * p.out_pixels();  // output pixel in the batch
  const int64_t end = image_first + region.pixel_end;
  for (int64_t group = region.group_begin; group < region.group_end; group += grid.groups) {
    const int64_t groups = std::min(grid.groups, region.group_end - group);
    const Points<const T>& from = call.points;
    const Points<T>& to = call.grad_points;
    const Values<const T> weights =
        p.mask_softmax ? Values<const T>{tile.softmax, groups * points, points} : from.mask;
    PointRows<const T, const T, kPoints> rows(from.offset, weights, grid.pixels, groups,
                                              grid.layout);
    PointRows<T, T, kPoints> grads(to.offset, to.mask, grid.pixels, groups, grid.layout);
    Span span;
    for (int64_t first = image_first + region.pixel_begin; first < end; first += span.pixels) {
      span = grid.span(first, end, group, groups);
      if (p.mask_softmax) {
        exponentiate<T>(from.mask, span, points, tile);
        normalise<T>(tile, span.rows(), points);
      }
      rows.move(from.offset.at(first, group),
                p.mask_softmax ? tile.softmax : from.mask.at(first, group), span);
      locate(grid, rows, span, tile);
      int64_t r = 0;
      for (int64_t pixel = first; pixel < first + span.pixels; ++pixel) {
        const int64_t ahead =
            (pixel - image_first + kPrefetchRows * p.width) * p.channels + group * group_channels;
        prefetch(image + ahead, groups * group_channels);
        if (grad_image != nullptr) prefetch(grad_image + ahead, groups * group_channels);
        for (int64_t g = 0; g < groups; ++g, ++r) {
          const int64_t c = (group + g) * group_channels;
          const RowPointers<T> row{image + c, call.grad + pixel * p.channels + c,
                                   grad_image == nullptr ? nullptr : grad_image + c, zeros.data,
                                   scratch.data};
          backward_row<T, kVecs, kPoints>(row, p, tile, grid.layout, r, want_dots);
        }
      }
      if (!want_dots) continue;
      grads.move(to.offset.at(first, group), to.mask.at(first, group), span);
      finish(grid, span, tile, grads);
      if (call.padding == 0 || group + groups < p.groups) continue;
      for (int64_t i = 0; i < span.pixels; ++i) {
        std::fill_n(to.offset.at(first + i, p.groups), call.padding, T(0));
      }
    }
  }
}

template <typename T>
void backward(const Backward<T>& call, const Region& region, T* grad_image) {
  if constexpr (std::is_same_v<T, float>) {
    const bool wants_all = grad_image != nullptr && call.grad_points.offset.data != nullptr;
    if (call.problem.points() == 9 && wants_all) {
      constexpr int64_t lanes = ChannelVec<T>::size();
      const int64_t channels = call.problem.group_channels();
      if (channels == lanes) return backward_region<T, 1, 9>(call, region, grad_image);
      if (channels == 2 * lanes) return backward_region<T, 2, 9>(call, region, grad_image);
      if (channels == 4 * lanes) return backward_region<T, 4, 9>(call, region, grad_image);
    }
  }
  return backward_region<T, 0, 0>(call, region, grad_image);
}

template <typename T>
void sampled_rows(const Backward<T>& call, const Region& region, int64_t* first, int64_t* last) {
  using V = Vec<T>;
  const Problem& p = call.problem;
  const Grid<T, 0> grid(p, region.group_end - region.group_begin, kBackwardPoints);
  const V size(static_cast<T>(p.height)), scale(static_cast<T>(p.offset_scale));
  V low = size, high(-2);
  const int64_t image_first = region.image * p.out_pixels();
  const int64_t end = image_first + region.pixel_end;
  const Points<const T>& from = call.points;
  for (int64_t group = region.group_begin; group < region.group_end; group += grid.groups) {
    const int64_t groups = std::min(grid.groups, region.group_end - group);
    PointRows<const T, const T, 0> rows(from.offset, from.mask, grid.pixels, groups, grid.layout);
    Span span;
    for (int64_t first = image_first + region.pixel_begin; first < end; first += span.pixels) {
      span = grid.span(first, end, group, groups);
      rows.move(from.offset.at(first, group), from.mask.at(first, group), span);
      const V centre(grid.centre_y(span));
      // Lanes that are of no row can make the result too large, which does no harm.
      grid.layout.template for_each_vector<kLanes<T>>(
          span.rows(), [&](auto in_octets, int64_t t) INTERNIMAGE_INLINE {
            const V dy = rows.offsets(in_octets, t).second;
            const V y = at::vec::fmadd(dy, scale, V::loadu(grid.tap_y + t) + centre);
            const Mask<T> counts = is_less(V(-1), y) & is_less(y, size);
            low = at::vec::minimum(low, choose(counts, y, size));
            high = at::vec::maximum(high, choose(counts, y, V(-2)));
          });
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
