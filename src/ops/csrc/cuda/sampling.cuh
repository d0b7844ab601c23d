// The part of DCNv3 that does not depend on channels: softmax of the mask and sampling positions,
// computed once per row and point and handed to the threads of the row through shared memory.
#pragma once

#include "device.cuh"

namespace internimage::cuda {

// A row of a block. One past the end of the image has mask == -1.
template <typename S>
struct Row {
  int64_t offset, mask;  // where its values begin
  int64_t channel;       // where its channels begin, in all output pixels
  int64_t group_channel;  // and in one pixel
  S x, y;                // centre of the window in input pixels
  S peak, factor;        // softmax: weight = exp(logit - peak) * factor
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

template <typename S>
__device__ __forceinline__ S corner_share(const Cell<S>& cell, int corner) {
  return (corner & 2 ? cell.low : 1 - cell.low) * (corner & 1 ? cell.right : 1 - cell.right);
}

template <typename T>
__device__ __forceinline__ int corner_shift(const Call<T>& call, int corner) {
  return (corner & 2 ? call.width * call.channels : 0) + (corner & 1 ? call.channels : 0);
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

template <typename T>
__device__ Row<Sum<T>> make_row(const Call<T>& call, int64_t image, int number) {
  using S = Sum<T>;
  Row<S> row{};
  row.mask = -1;
  if (number >= call.rows) return row;
  const unsigned pixel = static_cast<unsigned>(number) / call.groups;
  const int group = number - static_cast<int>(pixel) * call.groups;
  const int out_y = pixel / call.out_width, out_x = pixel - out_y * call.out_width;
  const int64_t out = image * call.out_pixels + pixel;
  row.offset = out * call.offset.stride + 2 * group * call.points;
  row.mask = out * call.mask.stride + group * call.points;
  row.group_channel = group * call.group_channels;
  row.channel = out * call.channels + row.group_channel;
  row.x = static_cast<S>(out_x * call.stride_w - call.pad_w +
                         call.dilation_w * (call.kernel_w - 1) / 2);
  row.y = static_cast<S>(out_y * call.stride_h - call.pad_h +
                         call.dilation_h * (call.kernel_h - 1) / 2);
  if (call.mask_softmax) {
    row.peak = load_side<T>(call.mask, row.mask);
    for (int p = 1; p < call.points; ++p) {
      row.peak = max(row.peak, load_side<T>(call.mask, row.mask + p));
    }
    S sum = 0;
    for (int p = 0; p < call.points; ++p) {
      sum += exp(load_side<T>(call.mask, row.mask + p) - row.peak);
    }
    row.factor = 1 / sum;
  }
  return row;
}

template <typename T>
__device__ __forceinline__ Cell<Sum<T>> locate(const Call<T>& call, const Row<Sum<T>>& row,
                                               int point, Sum<T> tap_x, Sum<T> tap_y) {
  using S = Sum<T>;
  Cell<S> cell{};
  if (row.mask < 0) return cell;
  cell.weight = load_side<T>(call.mask, row.mask + point);
  if (call.mask_softmax) cell.weight = exp(cell.weight - row.peak) * row.factor;
  const S dx = load_side<T>(call.offset, row.offset + 2 * point);
  const S dy = load_side<T>(call.offset, row.offset + 2 * point + 1);
  const S x = row.x + (tap_x + dx) * call.offset_scale;
  const S y = row.y + (tap_y + dy) * call.offset_scale;
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
        tap_y(arena.take<S>(call.points)) {}

  static size_t size(const Plan& plan, int points) {
    return table_size<Row<S>>(plan.block_rows) + 2 * table_size<S>(points);
  }

  template <typename T>
  __device__ void fill(const Call<T>& call, const Plan& plan, int64_t image, int first) {
    for (int i = threadIdx.x; i < plan.block_rows; i += kThreads) {
      row[i] = make_row(call, image, first + i);
    }
    for (int p = threadIdx.x; p < call.points; p += kThreads) {
      locate_tap(call, p, tap_x + p, tap_y + p);
    }
  }
};

}  // namespace internimage::cuda
