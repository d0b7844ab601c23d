// The part of DCNv3 that does not depend on channels: softmax of the mask and sampling positions,
// computed once per row and point and handed to the threads of the row through shared memory.
#pragma once

#include "device.cuh"

namespace internimage::cuda {

// A row of a block.
template <typename S>
struct Row {
  int64_t offset;     // where its values begin
  int64_t channel;    // where its channels begin, in all output pixels
  int group_channel;  // and in one pixel
  S x, y;             // centre of the window in input pixels
};

// A sampling point: the cell of four pixels that it falls into.
template <typename S>
struct Cell {
  S weight;        // of the point
  S low, right;    // distance from the top left pixel
  int element;     // top left pixel in its image
  int is_inside;   // bits for top left, top right, bottom left, bottom right; 0: does not count
};

constexpr int kAllInside = 15;

// Displacement of a tap from the window's centre: points have the width index slow.
template <typename T>
__device__ void locate_tap(const Call<T>& call, int point, Sum<T>* x, Sum<T>* y) {
  const int centre = call.kernel_h * call.kernel_w / 2;
  const int tap = point + (call.remove_center && point >= centre ? 1 : 0);
  const int i = tap / call.kernel_h, j = tap % call.kernel_h;
  *x = static_cast<Sum<T>>(i * call.dilation_w - call.dilation_w * (call.kernel_w - 1) / 2);
  *y = static_cast<Sum<T>>(j * call.dilation_h - call.dilation_h * (call.kernel_h - 1) / 2);
}

template <typename S, typename Weight>
__device__ __forceinline__ void softmax(int points, const Weight& weight) {
  S peak = weight(0);
#pragma unroll
  for (int p = 1; p < points; ++p) peak = max(peak, weight(p));
  S sum = 0;
#pragma unroll
  for (int p = 0; p < points; ++p) {
    weight(p) = exponential(weight(p) - peak);
    sum += weight(p);
  }
  const S factor = inverse(sum);
#pragma unroll
  for (int p = 0; p < points; ++p) weight(p) *= factor;
}

// Weights of the points of a row to their table: the mask as it is, or its softmax.
template <int kPoints, typename S, typename V, typename Weight>
__device__ __forceinline__ void make_weights(const V* mask, int points, bool has_softmax,
                                             const Weight& table) {
  if constexpr (kPoints > 0) {
    S kept[kPoints];
#pragma unroll
    for (int p = 0; p < kPoints; ++p) kept[p] = widen(mask[p]);
    if (has_softmax) softmax<S>(kPoints, [&](int p) -> S& { return kept[p]; });
#pragma unroll
    for (int p = 0; p < kPoints; ++p) table(p) = kept[p];
  } else {
    for (int p = 0; p < points; ++p) table(p) = widen(mask[p]);
    if (has_softmax) softmax<S>(points, table);
  }
}

// Row `number` of an image; table(p) takes the weights of its points.
template <int kPoints, typename T, typename Weight>
__device__ __forceinline__ Row<Sum<T>> make_row(const Call<T>& call, int64_t image, int number,
                                                const Weight& table) {
  using S = Sum<T>;
  Row<S> row;
  const int pixel = quotient(number, call.groups);
  const int group = number - pixel * static_cast<int>(call.groups.value);
  const int out_y = quotient(pixel, call.out_width);
  const int out_x = pixel - out_y * static_cast<int>(call.out_width.value);
  const int64_t out = image * call.out_pixels + pixel;
  row.offset = out * call.offset.stride + 2 * group * call.points;
  row.group_channel = group * call.group_channels;
  row.channel = out * call.channels + row.group_channel;
  row.x = static_cast<S>(out_x * call.stride_w - call.pad_w +
                         call.dilation_w * (call.kernel_w - 1) / 2);
  row.y = static_cast<S>(out_y * call.stride_h - call.pad_h +
                         call.dilation_h * (call.kernel_h - 1) / 2);
  const int64_t mask = out * call.mask.stride + group * call.points;
  with_type<T>(call.mask, [&](const auto* values) {
    make_weights<kPoints, S>(values + mask, call.points, call.mask_softmax, table);
  });
  return row;
}

template <typename V>
__device__ __forceinline__ Pack<Sum<V>, 2> load_pair(const V* from, bool is_aligned) {
  if (!is_aligned) return {widen(from[0]), widen(from[1])};
  const Raw<V, 2> raw = load_raw<2>(from);
  return {widen<V, 2>(raw, 0), widen<V, 2>(raw, 1)};
}

// dx and dy, which are value `at` and the next.
template <typename T>
__device__ __forceinline__ Pack<Sum<T>, 2> load_offset(const Side& offset, int64_t at) {
  Pack<Sum<T>, 2> pair;
  with_type<T>(offset, [&](const auto* values) {
    pair = load_pair(values + at, offset.has_aligned_pairs);
  });
  return pair;
}

template <typename T>
__device__ __forceinline__ Cell<Sum<T>> locate(const Call<T>& call, const Row<Sum<T>>& row,
                                               int point, Sum<T> tap_x, Sum<T> tap_y,
                                               Sum<T> weight) {
  using S = Sum<T>;
  Cell<S> cell{};
  cell.weight = weight;
  const Pack<S, 2> shift = load_offset<T>(call.offset, row.offset + 2 * point);
  const S x = row.x + (tap_x + shift.value[0]) * call.offset_scale;
  const S y = row.y + (tap_y + shift.value[1]) * call.offset_scale;
  if (!(x > -1 && x < call.width && y > -1 && y < call.height)) return cell;  // also for NaN
  const S left = floor(x), top = floor(y);
  const int column = static_cast<int>(left), line = static_cast<int>(top);
  cell.right = x - left;
  cell.low = y - top;
  cell.element = (line * call.width + column) * call.channels;
  const int columns = (column >= 0 ? 5 : 0) | (column + 1 < call.width ? 10 : 0);
  const int lines = (line >= 0 ? 3 : 0) | (line + 1 < call.height ? 12 : 0);
  cell.is_inside = columns & lines;
  return cell;
}

// Where a channel of a row begins in the input, as seen from the top left pixel of its image.
template <typename T>
__device__ __forceinline__ int64_t first_element(const Call<T>& call, int64_t image,
                                                 const Row<Sum<T>>& row, int channel) {
  return image * (call.height * call.width * call.channels) + row.group_channel + channel;
}

// Cuts the shared memory of a block into tables.
struct Arena {
  unsigned char* next;

  template <typename V>
  __device__ V* take(int count) {
    V* table = reinterpret_cast<V*>(next);
    next += (count * sizeof(V) + 15) / 16 * 16;
    return table;
  }
};

template <typename V>
constexpr size_t table_size(size_t count) {
  return (count * sizeof(V) + 15) / 16 * 16;
}

// What every kernel starts with: rows by one thread each, and taps.
template <typename S>
struct Rows {
  Row<S>* row;
  S *tap_x, *tap_y;

  template <typename T>
  __device__ Rows(const Call<T>& call, const Plan& plan, Arena& arena)
      : row(arena.take<Row<S>>(plan.block_rows)),
        tap_x(arena.take<S>(call.points)),
        tap_y(arena.take<S>(call.points)) {
    for (int p = threadIdx.x; p < call.points; p += kThreads) {
      locate_tap(call, p, tap_x + p, tap_y + p);
    }
  }

  static size_t size(const Plan& plan, int points) {
    return table_size<Row<S>>(plan.block_rows) + 2 * table_size<S>(points);
  }

  // The first `count` rows of the block from `first`; weight(row, point) takes the weights.
  template <int kPoints, typename T, typename Weight>
  __device__ __forceinline__ void fill(const Call<T>& call, int64_t image, int first, int count,
                                       const Weight& weight) {
    const int r = threadIdx.x;
    if (r >= count) return;
    row[r] = make_row<kPoints>(call, image, first + r,
                               [&](int p) -> S& { return weight(r, p); });
  }
};

}  // namespace internimage::cuda
