// DCNv3 backward. Per row and point: products of the four corners with the output gradient, reduced
// over the channels by shuffles, give the gradients of offset and mask, which leave in their own
// type; the input gradient is added up in global memory.
#pragma once

#include "sampling.cuh"

namespace internimage::cuda {

// <sample, gradient> and its derivatives by the position.
template <typename S>
struct Products {
  S value, slope_x, slope_y;
};

template <typename T>
size_t backward_shared_size(const Plan& plan, int points) {
  const size_t count = plan.block_rows * plan.pitch;
  return Rows<Sum<T>>::size(plan, points) + table_size<Cell<Sum<T>>>(count) +
         table_size<Products<Sum<T>>>(count) + table_size<Sum<T>>(plan.block_rows);
}

template <typename S>
__device__ __forceinline__ Products<S> sum_over_lanes(Products<S> products, int log_lanes) {
  for (int i = 0; i < log_lanes; ++i) {
    products.value += __shfl_xor_sync(kWarp, products.value, 1 << i);
    products.slope_x += __shfl_xor_sync(kWarp, products.slope_x, 1 << i);
    products.slope_y += __shfl_xor_sync(kWarp, products.slope_y, 1 << i);
  }
  return products;
}

// One point and kVector channels of one row: adds to the input gradient, returns the products.
template <typename T, int kVector, bool kFixedPoint>
__device__ __forceinline__ Products<Sum<T>> backward_point(const Call<T>& call,
                                                           const Gradients<T>& gradients,
                                                           const Cell<Sum<T>>& cell,
                                                           const Sum<T> (&upstream)[kVector],
                                                           int64_t channel) {
  using S = Sum<T>;
  Pack<T, kVector> values[4] = {};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (cell.is_inside >> c & 1) {
      values[c] = load_pack<kVector>(call.input + channel + cell.element + corner_shift(call, c));
    }
  }
  S dot[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    dot[c] = 0;
#pragma unroll
    for (int k = 0; k < kVector; ++k) dot[c] += widen(values[c].value[k]) * upstream[k];
  }
  if (gradients.input != nullptr) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (cell.is_inside >> c & 1) {
        const S weight = cell.weight * corner_share(cell, c);
        S parts[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k) parts[k] = weight * upstream[k];
        const int64_t at = channel + cell.element + corner_shift(call, c);
        if constexpr (kFixedPoint) {
          add_fixed_point(static_cast<int64_t*>(gradients.input) + at, parts, *gradients.unit);
        } else {
          add_atomically(static_cast<S*>(gradients.input) + at, parts);
        }
      }
    }
  }
  Products<S> products{};
#pragma unroll
  for (int c = 0; c < 4; ++c) products.value += corner_share(cell, c) * dot[c];
  products.slope_x = (1 - cell.low) * (dot[1] - dot[0]) + cell.low * (dot[3] - dot[2]);
  products.slope_y = (1 - cell.right) * (dot[2] - dot[0]) + cell.right * (dot[3] - dot[1]);
  return products;
}

template <typename T, int kVector, int kPoints, bool kFixedPoint>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    backward_kernel(const Call<T> call, const Plan plan, const Gradients<T> gradients) {
  using S = Sum<T>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Arena arena{shared_memory};
  Rows<S> rows(call, plan, arena);
  const int points = kPoints > 0 ? kPoints : call.points;
  Cell<S>* const cells = arena.take<Cell<S>>(plan.block_rows * plan.pitch);
  Products<S>* const products = arena.take<Products<S>>(plan.block_rows * plan.pitch);
  S* const means = arena.take<S>(plan.block_rows);

  const int first_row = blockIdx.x * plan.block_rows;
  const int block_rows = min(plan.block_rows, call.rows - first_row);
  const int lane = threadIdx.x & ((1 << plan.log_lanes) - 1);
  const int my_row = threadIdx.x >> plan.log_lanes;
  const bool is_row = my_row < block_rows;
  const int row = is_row ? my_row : 0;
  const int64_t image_size = static_cast<int64_t>(call.height) * call.width * call.channels;

  for (int64_t image = blockIdx.y; image < call.batch; image += gridDim.y) {
    rows.fill(call, plan, image, first_row);
    __syncthreads();
    for (int q = threadIdx.x; q < block_rows * points; q += kThreads) {
      const int r = q / points, p = q - r * points;
      cells[r * plan.pitch + p] = locate(call, rows.row[r], p, rows.tap_x[p], rows.tap_y[p]);
    }
    __syncthreads();
    for (int base = 0; base < call.group_channels; base += kVector << plan.log_lanes) {
      const int channel = base + lane * kVector;
      // Threads without channels stay for the shuffles.
      const bool is_active = is_row && channel < call.group_channels;
      S upstream[kVector] = {};
      if (is_active) {
        const auto pack = load_pack<kVector>(gradients.output + rows.row[row].channel + channel);
#pragma unroll
        for (int k = 0; k < kVector; ++k) upstream[k] = widen(pack.value[k]);
      }
      const int64_t at = image * image_size + rows.row[row].group_channel + channel;
#pragma unroll 1
      for (int p = 0; p < points; ++p) {
        Cell<S> cell = cells[row * plan.pitch + p];
        if (!is_active) cell.is_inside = 0;
        const Products<S> sum = sum_over_lanes(
            backward_point<T, kVector, kFixedPoint>(call, gradients, cell, upstream, at),
            plan.log_lanes);
        if (is_row && lane == 0) {
          Products<S>& total = products[row * plan.pitch + p];
          total = base == 0 ? sum
                            : Products<S>{total.value + sum.value, total.slope_x + sum.slope_x,
                                          total.slope_y + sum.slope_y};
        }
      }
    }
    __syncthreads();
    if (call.mask_softmax) {
      for (int r = threadIdx.x; r < block_rows; r += kThreads) {
        means[r] = 0;
        for (int p = 0; p < points; ++p) {
          means[r] += cells[r * plan.pitch + p].weight * products[r * plan.pitch + p].value;
        }
      }
      __syncthreads();
    }
    const int64_t first_point = (image * call.rows + first_row) * points;
    for (int q = threadIdx.x; q < block_rows * points; q += kThreads) {
      const int r = q / points, p = q - r * points;
      const Cell<S> cell = cells[r * plan.pitch + p];
      const Products<S> product = products[r * plan.pitch + p];
      if (gradients.offset.data != nullptr) {
        const S factor = cell.is_inside != 0 ? cell.weight * call.offset_scale : 0;
        const S pair[2] = {factor * product.slope_x, factor * product.slope_y};
        store_side<T>(gradients.offset, 2 * (first_point + q), pair);
      }
      if (gradients.mask.data != nullptr) {
        const S value[1] = {call.mask_softmax ? cell.weight * (product.value - means[r])
                                              : product.value};
        store_side<T>(gradients.mask, first_point + q, value);
      }
    }
    __syncthreads();  // the next image fills the tables again
  }
}

}  // namespace internimage::cuda
