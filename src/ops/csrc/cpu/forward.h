// DCNv3 forward on the CPU.
#pragma once

#include <memory>

#include "tile.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Points of geometry to keep in cache between the two phases.
constexpr int64_t kForwardPoints = 288;

// kVecs vectors of channels (the last `tail` lanes only if tail > 0) of one (pixel, group) row.
template <typename T, int kVecs, int kPoints>
inline void sample_channels(const T* base, int64_t channels, const T* zeros, const Tile<T>& tile, int64_t t,
                            int64_t points, T scale, T* out, int64_t tail) {
  using V = Vec<T>;
  // Four chains per vector hide the latency of the multiply-add; fewer where registers are short.
  constexpr int kChains = kVecs >= 4 ? 2 : 4;
  const int64_t count = tail > 0 ? tail : kLanes<T>;
  V sum[kChains][kVecs];
  for (auto& chain : sum) {
    for (auto& v : chain) v = V(0);
  }
  const int64_t n = kPoints > 0 ? kPoints : points;
#pragma GCC unroll 9
  for (int64_t p = t; p < t + n; ++p) {
    const auto pixel = tile.pixel[p];
    const T* corner[4];
    corner[0] = pixel >= 0 ? base + static_cast<int64_t>(pixel) * channels : zeros;
    corner[1] = corner[0] + tile.step_x[p];
    corner[2] = corner[0] + tile.step_y[p];
    corner[3] = corner[1] + tile.step_y[p];
    for (int i = 0; i < 4; ++i) {
      const V weight(tile.weight[i][p]);
      for (int v = 0; v < kVecs; ++v) {
        V& target = sum[i % kChains][v];
        target = at::vec::fmadd(weight, V::loadu(corner[i] + v * kLanes<T>, count), target);
      }
    }
  }
  for (int v = 0; v < kVecs; ++v) {
    V total = sum[0][v] + sum[1][v];
    if constexpr (kChains == 4) total = total + (sum[2][v] + sum[3][v]);
    (total * V(scale)).store(out + v * kLanes<T>, count);
  }
}

// All channels of a row. kVecs > 0: the group has exactly kVecs vectors of channels.
template <typename T, int kVecs, int kPoints>
inline void sample_row(const T* base, const Problem& p, const T* zeros, const Tile<T>& tile, int64_t t,
                       int64_t points, T scale, T* out) {
  if constexpr (kVecs > 0) {
    sample_channels<T, kVecs, kPoints>(base, p.channels, zeros, tile, t, points, scale, out, 0);
  } else {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t count = p.group_channels();
    int64_t c = 0;
    for (; c + 4 * lanes <= count; c += 4 * lanes) {
      sample_channels<T, 4, kPoints>(base + c, p.channels, zeros, tile, t, points, scale, out + c, 0);
    }
    for (; c < count; c += lanes) {
      const int64_t tail = count - c < lanes ? count - c : 0;
      sample_channels<T, 1, kPoints>(base + c, p.channels, zeros, tile, t, points, scale, out + c, tail);
    }
  }
}

template <typename T, int kVecs, int kPoints>
void forward_pixels(const Forward<T>& call, int64_t begin, int64_t end) {
  const Problem& p = call.problem;
  const int64_t points = kPoints > 0 ? kPoints : p.points();
  const int64_t group_channels = p.group_channels();
  const std::unique_ptr<Grid<T>> grid(new Grid<T>(p, p.groups));
  const std::unique_ptr<Tile<T>> tile(new Tile<T>);  // not zeroed
  const auto zeros = std::make_unique<T[]>(group_channels);
  const T* zero = zeros.get();
  for (int64_t group = 0; group < p.groups; group += grid->tile_groups) {
    const int64_t groups = std::min(grid->tile_groups, p.groups - group);
    const int64_t pixel_points = groups * points;
    const int64_t tile_pixels = std::max<int64_t>(1, kForwardPoints / pixel_points);
    for (int64_t pixel = begin; pixel < end; pixel += tile_pixels) {
      const int64_t pixels = std::min(tile_pixels, end - pixel);
      int64_t x = pixel % p.out_width;
      int64_t y = pixel / p.out_width % p.out_height;
      for (int64_t i = 0; i < pixels; ++i) {
        const T* offset = call.offset + (pixel + i) * call.offset_stride + group * points * 2;
        const T* mask = call.mask + (pixel + i) * call.mask_stride + group * points;
        const int64_t at = i * pixel_points;
        if (p.mask_softmax) {
          exponentiate<T>(mask, pixel_points, points, tile->exp + at);
          mask = tile->exp + at;
        }
        locate<T>(*grid, offset, mask, pixel_points, static_cast<T>(x * p.stride_w - p.pad_w + p.half_w()),
                  static_cast<T>(y * p.stride_h - p.pad_h + p.half_h()), *tile, at);
        if (++x == p.out_width) {
          x = 0;
          if (++y == p.out_height) y = 0;
        }
      }
      for (int64_t i = 0; i < pixels; ++i) {
        const int64_t image = (pixel + i) / p.out_pixels();
        const T* base = call.input + image * p.height * p.width * p.channels;
        T* out = call.output + (pixel + i) * p.channels;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t t = i * pixel_points + g * points;
          const int64_t c = (group + g) * group_channels;
          const T scale = p.mask_softmax ? T(1) / row_sum<T>(tile->exp + t, points) : T(1);
          sample_row<T, kVecs, kPoints>(base + c, p, zero, *tile, t, points, scale, out + c);
        }
      }
    }
  }
}

template <typename T, int kPoints>
void forward_for_points(const Forward<T>& call, int64_t begin, int64_t end) {
  const int64_t channels = call.problem.group_channels();
  if (channels == kLanes<T>) return forward_pixels<T, 1, kPoints>(call, begin, end);
  if (channels == 2 * kLanes<T>) return forward_pixels<T, 2, kPoints>(call, begin, end);
  if (channels == 4 * kLanes<T>) return forward_pixels<T, 4, kPoints>(call, begin, end);
  return forward_pixels<T, 0, kPoints>(call, begin, end);
}

// float32 has loops of constant length for the sizes that released models use.
template <typename T>
void forward(const Forward<T>& call, int64_t begin, int64_t end) {
  if constexpr (!std::is_same_v<T, float>) return forward_pixels<T, 0, 0>(call, begin, end);
  switch (call.problem.points()) {
    case 9:
      return forward_for_points<T, 9>(call, begin, end);
    case 8:
      return forward_for_points<T, 8>(call, begin, end);
    default:
      return forward_for_points<T, 0>(call, begin, end);
  }
}

}  // namespace internimage::cpu::CPU_CAPABILITY
