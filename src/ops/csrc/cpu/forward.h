// DCNv3 forward on the CPU.
#pragma once

#include "tile.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Number of points whose geometry stays in the cache between the two phases.
constexpr int64_t kForwardPoints = 288;

// kVecs vectors of channels (the first `count` lanes of each) of a row.
template <typename S, int kVecs, int kPoints, bool kInterior, typename T = Computing<S>>
INTERNIMAGE_INLINE inline void sample_channels(const S* base, const Problem& problem,
                                               const S* zeros, const Tile<T>& tile,
                                               const Layout<kPoints>& layout, int64_t row, T scale,
                                               S* out, int64_t count) {
  using V = Vec<T>;
  // Four accumulators per vector hide the latency of the multiply-add; fewer if registers are
  // scarce.
  constexpr int kChains = kVecs >= 4 ? 2 : 4;
  V sum[kChains][kVecs];
  for (auto& chain : sum) {
    for (auto& v : chain) v = V(0);
  }
  // Not for bfloat16, whose loads permute already.
  const RowWeights<V, T, std::is_same_v<S, T> ? kPoints : 0> weights(tile, row);
  const int64_t step_x = problem.channels, step_y = problem.channels * problem.width;
  const int64_t n = kPoints > 0 ? kPoints : layout.points;
#pragma GCC unroll 9
  for (int64_t k = 0; k < n; ++k) {
    const int64_t slot = layout.slot(row, k);
    const int64_t to_x = kInterior ? step_x : tile.step_x[slot];
    const int64_t to_y = kInterior ? step_y : tile.step_y[slot];
    const S* corner[4];
    corner[0] = kInterior ? base + tile.element[slot] : select(base, zeros, tile.element[slot]);
    corner[1] = corner[0] + to_x;
    corner[2] = corner[0] + to_y;
    corner[3] = corner[2] + to_x;
    for (int i = 0; i < 4; ++i) {
      const V weight = weights.get(i, slot, k);
      for (int v = 0; v < kVecs; ++v) {
        V& target = sum[i % kChains][v];
        target = at::vec::fmadd(weight, load(corner[i] + v * kLanes<T>, count), target);
      }
    }
  }
  for (int v = 0; v < kVecs; ++v) {
    V total = sum[0][v] + sum[1][v];
    if constexpr (kChains == 4) total = total + (sum[2][v] + sum[3][v]);
    store(total * V(scale), out + v * kLanes<T>, count);
  }
}

// All channels of a row. kVecs > 0: the group has exactly kVecs vectors of channels.
template <typename S, int kVecs, int kPoints, typename T = Computing<S>>
INTERNIMAGE_INLINE inline void sample_row(const S* base, const Problem& p, const S* zeros,
                                          const Tile<T>& tile, const Layout<kPoints>& layout,
                                          int64_t row, T scale, S* out) {
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kVecs > 0) {
    if (is_interior(tile, layout, row)) {
      sample_channels<S, kVecs, kPoints, true>(base, p, zeros, tile, layout, row, scale, out,
                                               lanes);
    } else {
      sample_channels<S, kVecs, kPoints, false>(base, p, zeros, tile, layout, row, scale, out,
                                                lanes);
    }
  } else {
    const int64_t channels = p.group_channels();
    int64_t c = 0;
    for (; c + 4 * lanes <= channels; c += 4 * lanes) {
      sample_channels<S, 4, kPoints, false>(base + c, p, zeros, tile, layout, row, scale, out + c,
                                            lanes);
    }
    for (; c < channels; c += lanes) {
      const int64_t count = std::min(lanes, channels - c);
      sample_channels<S, 1, kPoints, false>(base + c, p, zeros, tile, layout, row, scale, out + c,
                                            count);
    }
  }
}

template <typename S, int kVecs, int kPoints>
void forward_pixels(const Forward<S>& call, int64_t begin, int64_t end) {
  using T = Computing<S>;
  const Problem& p = call.problem;
  const int64_t group_channels = p.group_channels();
  const Grid<T, kPoints> grid(p, p.groups, kForwardPoints);
  const int64_t points = grid.points;
  const Array<S> zeros(group_channels);
  Tile<T> tile;
  for (int64_t group = 0; group < p.groups; group += grid.groups) {
    const int64_t groups = std::min(grid.groups, p.groups - group);
    const Points<const S>& from = call.points;
    const Values<const T> softmax{tile.exp, groups * points, points};
    PointRows<const S, const S, kPoints> rows(from.offset, from.mask, grid.pixels, groups,
                                              grid.layout);
    PointRows<const S, const T, kPoints> softmax_rows(from.offset, softmax, grid.pixels, groups,
                                                      grid.layout);
    Span span;
    for (int64_t first = begin; first < end; first += span.pixels) {
      span = grid.span(first, end, group, groups);
      if (p.mask_softmax) {
        exponentiate<T>(from.mask, span, points, tile);
        softmax_rows.move(from.offset.at(first, group), tile.exp, span);
        locate(grid, softmax_rows, span, tile);
      } else {
        rows.move(from.offset.at(first, group), from.mask.at(first, group), span);
        locate(grid, rows, span, tile);
      }
      const S* base = call.input + span.image * p.height * p.width * p.channels;
      int64_t row = 0;
      for (int64_t pixel = first; pixel < first + span.pixels; ++pixel) {
        prefetch(call.input + (pixel + kPrefetchRows * p.width) * p.channels, p.channels);
        for (int64_t g = 0; g < groups; ++g, ++row) {
          const int64_t c = (group + g) * group_channels;
          const T scale =
              p.mask_softmax ? T(1) / row_sum<T>(tile.exp + row * points, points) : T(1);
          sample_row<S, kVecs, kPoints>(base + c, p, zeros.data, tile, grid.layout, row, scale,
                                        call.output + pixel * p.channels + c);
        }
      }
    }
  }
}

// There are loops of constant length for the sizes that released models use, except in float64.
template <typename S>
void forward(const Forward<S>& call, int64_t begin, int64_t end) {
  if constexpr (!std::is_same_v<S, double>) {
    constexpr int64_t lanes = kLanes<float>;
    if (call.problem.points() == 9) {
      const int64_t channels = call.problem.group_channels();
      if (channels == lanes) return forward_pixels<S, 1, 9>(call, begin, end);
      if (channels == 2 * lanes) return forward_pixels<S, 2, 9>(call, begin, end);
      if (channels == 4 * lanes) return forward_pixels<S, 4, 9>(call, begin, end);
    }
  }
  return forward_pixels<S, 0, 0>(call, begin, end);
}

}  // namespace internimage::cpu::CPU_CAPABILITY
