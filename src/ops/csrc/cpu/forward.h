// DCNv3 forward on the CPU.
#pragma once

#include "tile.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Number of points whose geometry stays in the cache between the two phases.
constexpr int64_t kForwardPoints = 288;

// kVecs vectors of channels (the first `count` lanes of each) of one (pixel, group) row.
template <typename S, int kVecs, int kPoints, bool kInterior, typename T = Computing<S>>
INTERNIMAGE_INLINE inline void sample_channels(const S* base, const Problem& problem,
                                               const S* zeros, const Tile<T>& tile, int64_t t,
                                               int64_t points, T scale, S* out, int64_t count) {
  using V = Vec<T>;
  // Four accumulators per vector hide the latency of the multiply-add; fewer if registers are
  // scarce.
  constexpr int kChains = kVecs >= 4 ? 2 : 4;
  V sum[kChains][kVecs];
  for (auto& chain : sum) {
    for (auto& v : chain) v = V(0);
  }
  const int64_t step_x = problem.channels, step_y = problem.channels * problem.width;
  const int64_t n = kPoints > 0 ? kPoints : points;
#pragma GCC unroll 9
  for (int64_t k = 0; k < n; ++k) {
    const int64_t p = t + k;
    const S* corner[4];
    corner[0] = kInterior ? base + tile.element[p] : select(base, zeros, tile.element[p]);
    corner[1] = corner[0] + (kInterior ? step_x : tile.step_x[p]);
    corner[2] = corner[0] + (kInterior ? step_y : tile.step_y[p]);
    corner[3] = corner[2] + (kInterior ? step_x : tile.step_x[p]);
    for (int i = 0; i < 4; ++i) {
      const V weight(tile.weight[i][p]);
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
                                          const Tile<T>& tile, int64_t t, int64_t points, T scale,
                                          S* out) {
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (kVecs > 0) {
    if (is_interior(tile.edge + t, points)) {
      sample_channels<S, kVecs, kPoints, true>(base, p, zeros, tile, t, points, scale, out, lanes);
    } else {
      sample_channels<S, kVecs, kPoints, false>(base, p, zeros, tile, t, points, scale, out, lanes);
    }
  } else {
    const int64_t channels = p.group_channels();
    int64_t c = 0;
    for (; c + 4 * lanes <= channels; c += 4 * lanes) {
      sample_channels<S, 4, kPoints, false>(base + c, p, zeros, tile, t, points, scale, out + c,
                                            lanes);
    }
    for (; c < channels; c += lanes) {
      const int64_t count = std::min(lanes, channels - c);
      sample_channels<S, 1, kPoints, false>(base + c, p, zeros, tile, t, points, scale, out + c,
                                            count);
    }
  }
}

template <typename S, int kVecs, int kPoints>
void forward_pixels(const Forward<S>& call, int64_t begin, int64_t end) {
  using T = Computing<S>;
  const Problem& p = call.problem;
  const int64_t points = kPoints > 0 ? kPoints : p.points();
  const int64_t group_channels = p.group_channels();
  const Grid<T> grid(p, p.groups);
  const Array<S> zeros(group_channels);
  Tile<T> tile;
  for (int64_t group = 0; group < p.groups; group += grid.groups) {
    Span span{begin, 0, group, std::min(grid.groups, p.groups - group)};
    const int64_t n = span.groups * points;
    const int64_t tile_pixels = std::max<int64_t>(1, kForwardPoints / n);
    for (; span.first < end; span.first += span.pixels) {
      span.pixels = std::min(tile_pixels, end - span.first);
      if (call.points.is_packed) {
        locate<T>(grid, PackedRows<S, kPoints>(call.points, span, points), span, tile);
      } else {
        SeparateRows<S> rows(call.points, span, points);
        if (p.mask_softmax) {
          exponentiate(grid, rows, span, tile);
          rows.table = tile.exp;
        }
        locate<T>(grid, rows, span, tile);
      }
      for (int64_t i = 0; i < span.pixels; ++i) {
        const int64_t image = (span.first + i) / p.out_pixels();
        const S* base = call.input + image * p.height * p.width * p.channels;
        S* out = call.output + (span.first + i) * p.channels;
        prefetch(call.input + (span.first + i + kPrefetchRows * p.width) * p.channels, p.channels);
        for (int64_t g = 0; g < span.groups; ++g) {
          const int64_t t = i * n + g * points;
          const int64_t c = (group + g) * group_channels;
          const T scale = p.mask_softmax ? T(1) / row_sum<T>(tile.exp + t, points) : T(1);
          sample_row<S, kVecs, kPoints>(base + c, p, zeros.data, tile, t, points, scale, out + c);
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
