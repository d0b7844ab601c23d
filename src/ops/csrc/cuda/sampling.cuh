// The part of DCNv3 that does not depend on channels: softmax of the mask and sampling positions,
// computed once per row and point and passed to the threads of a warp through shared memory.
#pragma once

#include "device.cuh"

namespace internimage::cuda {

// Work of a block: one group in a tile of output pixels of one image.
struct Block {
  int64_t image;
  int group;
  int out_y, out_x;  // first pixel
  int rows;          // in lines of the tile's width, including those outside the image
};

// A row of a chunk.
template <typename S>
struct Row {
  int64_t offset;  // index of its first value
  int64_t pixel;   // output pixel, counted in all images; -1: there is no such row
  S x, y;          // centre of the window in input pixels
};

// A sampling point: the cell of four pixels that it falls into.
template <typename S>
struct alignas(16) Cell {
  S low, right;    // distance from the top left pixel
  int element;     // top left pixel in its image
  int is_inside;   // bits for top left, top right, bottom left, bottom right; 0: no contribution
};

// The same, and the coordinates of its top left pixel.
template <typename S>
struct Point {
  Cell<S> cell;
  int y, x;
};

constexpr int kAllInside = 15;

// Groups vary fastest, so that concurrent blocks read the same lines of offset and mask.
template <typename T>
__device__ __forceinline__ Block locate_block(const Call<T>& call, const Plan& plan) {
  Block block;
  block.image = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const int tile = quotient(blockIdx.x, plan.groups);
  block.group = blockIdx.x - tile * plan.groups.value;
  const int tile_y = quotient(tile, plan.tiles_x);
  block.out_y = tile_y * plan.tile_height;
  block.out_x = (tile - tile_y * static_cast<int>(plan.tiles_x.value)) * plan.tile_width;
  block.rows = min(plan.tile_height, call.out_height - block.out_y) * plan.tile_width;
  return block;
}

// Displacement of a tap from the window's centre: points have the width index slow.
template <typename T>
__device__ void locate_tap(const Call<T>& call, int point, Sum<T>* x, Sum<T>* y) {
  const int centre = call.kernel_h * call.kernel_w / 2;
  const int tap = point + (call.remove_center && point >= centre ? 1 : 0);
  const int i = tap / call.kernel_h, j = tap % call.kernel_h;
  *x = static_cast<Sum<T>>(i * call.dilation_w - call.dilation_w * (call.kernel_w - 1) / 2);
  *y = static_cast<Sum<T>>(j * call.dilation_h - call.dilation_h * (call.kernel_h - 1) / 2);
}

// Threads that share the softmax of a row: neighbours in a warp.
constexpr int kLogWays = 2, kWays = 1 << kLogWays;

// Softmax of a row. each(run) calls run(weight) for the points of this thread.
template <typename S, typename Each>
__device__ __forceinline__ void softmax(const Each& each) {
  S peak = -INFINITY;
  each([&](S& weight) { peak = max(peak, weight); });
#pragma unroll
  for (int i = 1; i < kWays; i *= 2) peak = max(peak, __shfl_xor_sync(kWarp, peak, i));
  S sum = 0;
  each([&](S& weight) {
    weight = exponential(weight - peak);
    sum += weight;
  });
#pragma unroll
  for (int i = 1; i < kWays; i *= 2) sum += __shfl_xor_sync(kWarp, sum, i);
  const S factor = inverse(sum);
  each([&](S& weight) { weight *= factor; });
}

// Weights of the points of a row into a table from `begin`: the mask as it is, or its softmax.
// Thread `way` takes every kWays-th point. Called by whole warps.
template <int kPoints, typename S, typename V>
__device__ __forceinline__ void make_weights(const V* mask, int points, bool is_row,
                                             bool has_softmax, int way, Table<S> table,
                                             int begin) {
  if constexpr (kPoints > 0) {
    // Issue all loads at once.
    constexpr int kCount = (kPoints + kWays - 1) / kWays;
    S kept[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int p = way + i * kWays;
      kept[i] = is_row && p < kPoints ? S(widen(mask[p])) : -INFINITY;
    }
    if (has_softmax) {
      softmax<S>([&](const auto& run) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) run(kept[i]);
      });
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int p = way + i * kWays;
      if (is_row && p < kPoints) table.put(begin + p, kept[i]);
    }
  } else {
    const auto each = [&](const auto& run) {
      for (int p = way; is_row && p < points; p += kWays) run(p);
    };
    each([&](int p) { table.put(begin + p, widen(mask[p])); });
    if (has_softmax) {
      softmax<S>([&](const auto& run) {
        each([&](int p) {
          S weight = table.get(begin + p);
          run(weight);
          table.put(begin + p, weight);
        });
      });
    }
  }
}

template <typename V>
__device__ __forceinline__ Pack<Sum<V>, 2> load_pair(const V* from, bool is_aligned) {
  if (!is_aligned) return {widen(from[0]), widen(from[1])};
  const Raw<V, 2> raw = load_raw<2>(from);
  return {widen<V, 2>(raw, 0), widen<V, 2>(raw, 1)};
}

// dx and dy: value `at` and the next one.
template <typename T>
__device__ __forceinline__ Pack<Sum<T>, 2> load_offset(const Side& offset, int64_t at) {
  Pack<Sum<T>, 2> pair;
  with_type<T>(offset, [&](const auto* values) {
    pair = load_pair(values + at, offset.has_aligned_pairs);
  });
  return pair;
}

template <typename T>
__device__ __forceinline__ Point<Sum<T>> locate(const Call<T>& call, const Row<Sum<T>>& row,
                                                int point, Sum<T> tap_x, Sum<T> tap_y) {
  using S = Sum<T>;
  const Pack<S, 2> shift = load_offset<T>(call.offset, row.offset + 2 * point);
  const S x = row.x + (tap_x + shift.value[0]) * call.offset_scale;
  const S y = row.y + (tap_y + shift.value[1]) * call.offset_scale;
  if (!(x > -1 && x < call.width && y > -1 && y < call.height)) return {};  // also for NaN
  const S left = floor(x), top = floor(y);
  const int column = static_cast<int>(left), line = static_cast<int>(top);
  const int columns = (column >= 0 ? 5 : 0) | (column + 1 < call.width ? 10 : 0);
  const int lines = (line >= 0 ? 3 : 0) | (line + 1 < call.height ? 12 : 0);
  const int element = (line * call.width + column) * call.channels;
  return {{y - top, x - left, element, columns & lines}, line, column};
}

// kVector channels of the four corners of a point. Nothing is read outside the image; kAll means
// that all are inside.
template <bool kAll, int kVector, typename T>
__device__ __forceinline__ void load_corners(Raw<T, kVector> (&raw)[4], const T* values,
                                             int is_inside, unsigned right, unsigned down) {
  const unsigned shift[4] = {0, right, down, down + right};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (!kAll) raw[c] = {};
    if (kAll || is_inside >> c & 1) raw[c] = load_raw<kVector>(values + shift[c]);
  }
}

// Displacements of the taps, for all warps of a block.
template <typename S>
struct Taps {
  Table<S> x, y;

  template <typename T>
  __device__ __forceinline__ Taps(const Call<T>& call, const Plan& plan, Arena& arena)
      : x(arena.take<S>(call.points)), y(arena.take<S>(call.points)) {
    for (int p = threadIdx.x; p < call.points; p += plan.threads) {
      S tap_x, tap_y;
      locate_tap(call, p, &tap_x, &tap_y);
      x.put(p, tap_x);
      y.put(p, tap_y);
    }
  }

  static int64_t size(int points) { return 2 * table_size<S>(points); }
};

// The rows of a chunk and the weights of their points: tables of one warp.
template <typename S>
struct Rows {
  Table<Row<S>> row;
  Table<S> weight;

  __device__ __forceinline__ Rows(const Plan& plan, int pitch, Arena& arena)
      : row(arena.take<Row<S>>(1 << plan.log_rows)),
        weight(arena.take<S>(pitch << plan.log_rows)) {}

  static int64_t size(const Plan& plan) {
    return table_size<Row<S>>(1 << plan.log_rows) + table_size<S>(plan.pitch << plan.log_rows);
  }

  // The rows of the block from number `first`.
  template <int kPoints, typename T>
  __device__ __forceinline__ void fill(const Call<T>& call, const Plan& plan, const Block& block,
                                       int first, int pitch) const {
    const int lane = threadIdx.x & 31, way = lane % kWays;
#pragma unroll 1
    for (int r = lane / kWays; r < max(1 << plan.log_rows, 32 / kWays); r += 32 / kWays) {
      const int number = first + r, line = quotient(number, plan.tile_columns);
      const int out_y = block.out_y + line;
      const int out_x = block.out_x + number - line * static_cast<int>(plan.tile_columns.value);
      const bool is_in_chunk = r < 1 << plan.log_rows;
      const bool is_row = is_in_chunk && number < block.rows && out_x < call.out_width;
      const int64_t pixel = block.image * call.out_pixels + out_y * call.out_width + out_x;
      if (is_in_chunk && way == 0) {
        Row<S> values;
        values.offset = pixel * call.offset.stride + block.group * call.offset.group;
        values.pixel = is_row ? pixel : -1;
        values.x = static_cast<S>(out_x * call.stride_w - call.pad_w +
                                  call.dilation_w * (call.kernel_w - 1) / 2);
        values.y = static_cast<S>(out_y * call.stride_h - call.pad_h +
                                  call.dilation_h * (call.kernel_h - 1) / 2);
        row.put(r, values);
      }
      const int64_t begin = pixel * call.mask.stride + block.group * call.mask.group;
      with_type<T>(call.mask, [&](const auto* values) {
        make_weights<kPoints>(values + begin, call.points, is_row, call.mask_softmax, way, weight,
                              r * pitch);
      });
    }
  }

  // Calls run(point, place in tables) once for every point of the rows that exist.
  template <int kPoints, typename T, typename Run>
  __device__ __forceinline__ void locate_points(const Call<T>& call, const Plan& plan,
                                                const Taps<S>& taps, int pitch,
                                                const Run& run) const {
    const int points = kPoints > 0 ? kPoints : call.points;
    for (int q = threadIdx.x & 31; q < points << plan.log_rows; q += 32) {
      const int r = kPoints > 0 ? q / points : quotient(q, plan.points), p = q - r * points;
      const Row<S> values = row.get(r);
      if (values.pixel < 0) continue;
      run(locate(call, values, p, taps.x.get(p), taps.y.get(p)), r * pitch + p);
    }
  }
};

}  // namespace internimage::cuda
