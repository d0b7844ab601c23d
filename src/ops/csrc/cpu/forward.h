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
  const RowWeights<T, kPoints> weights(tile, row);
  const int64_t n = kPoints > 0 ? kPoints : layout.points;
#pragma GCC unroll 9
  for (int64_t k = 0; k < n; ++k) {
    const int64_t slot = layout.slot(row, k);
    const Steps step(problem, kInterior ? 0 : tile.outside[slot]);
    const S* corner[4];
    corner[0] = kInterior ? base + tile.element[slot] : select(base, zeros, tile.element[slot]);
    corner[1] = corner[0] + step.x;
    corner[2] = corner[0] + step.y;
    corner[3] = corner[2] + step.x;
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
    Span span{begin, 0, group, std::min(grid.groups, p.groups - group)};
    for (; span.first < end; span.first += span.pixels) {
      span.pixels = grid.pixels_until(end, span);
      const Values<const S> offset = call.points.offset.from(span.first, group);
      if (p.mask_softmax) {
        exponentiate<T>(call.points.mask, span, points, tile);
        const Values<const T> weight{tile.exp, span.groups * points, points};
        locate(grid, PointRows<const S, const T, kPoints>(offset, weight, span, grid.layout), span,
               tile);
      } else {
        const Values<const S> weight = call.points.mask.from(span.first, group);
        locate(grid, PointRows<const S, const S, kPoints>(offset, weight, span, grid.layout), span,
               tile);
      }
      const int64_t image = span.first / p.out_pixels();
      const S* base = call.input + image * p.height * p.width * p.channels;
      int64_t row = 0;
      for (int64_t pixel = span.first; pixel < span.first + span.pixels; ++pixel) {
        prefetch(call.input + (pixel + kPrefetchRows * p.width) * p.channels, p.channels);
        for (int64_t g = 0; g < span.groups; ++g, ++row) {
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
