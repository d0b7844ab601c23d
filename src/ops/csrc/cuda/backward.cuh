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
#pragma unroll 1
  for (int i = 0; i < log_lanes; ++i) {
    products.value += __shfl_xor_sync(kWarp, products.value, 1 << i);
    products.slope_x += __shfl_xor_sync(kWarp, products.slope_x, 1 << i);
    products.slope_y += __shfl_xor_sync(kWarp, products.slope_y, 1 << i);
  }
  return products;
}

// One point and kVector channels of one row, whose input begins at `values` and its gradient at
// `totals`, which is added to unless it is null. Returns the products. With kAll the point is known
// to be inside with all corners.
template <bool kAll, typename T, int kVector, typename Total>
__device__ __forceinline__ Products<Sum<T>> backward_point(
    const Cell<Sum<T>> cell, bool is_active, const Sum<T> (&upstream)[kVector], const T* values,
    Total* totals, const double* unit, unsigned right, unsigned down) {
  using S = Sum<T>;
  const unsigned shift[4] = {0, right, down, down + right};
  values += cell.element;
  const int is_inside = kAll ? kAllInside : is_active ? cell.is_inside : 0;
  Raw<T, kVector> raw[4] = {};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (is_inside >> c & 1) raw[c] = load_raw<kVector>(values + shift[c]);
  }
  const S top = 1 - cell.low, left = 1 - cell.right;
  const S share[4] = {top * left, top * cell.right, cell.low * left, cell.low * cell.right};
  S dot[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    dot[c] = 0;
#pragma unroll
    for (int k = 0; k < kVector; ++k) dot[c] += widen<T, kVector>(raw[c], k) * upstream[k];
  }
  if (totals != nullptr) {
    totals += cell.element;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const S weight = cell.weight * share[c];
      S parts[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) parts[k] = weight * upstream[k];
      if (is_inside >> c & 1) {
        if constexpr (std::is_same_v<Total, S>) {
          add_atomically(totals + shift[c], parts);
        } else {
          add_fixed_point(totals + shift[c], parts, *unit);
        }
      }
    }
  }
  Products<S> products;
  products.value = share[0] * dot[0] + share[1] * dot[1] + share[2] * dot[2] + share[3] * dot[3];
  products.slope_x = top * (dot[1] - dot[0]) + cell.low * (dot[3] - dot[2]);
  products.slope_y = left * (dot[2] - dot[0]) + cell.right * (dot[3] - dot[1]);
  return products;
}

template <typename T, int kVector, int kPoints, bool kFixedPoint>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    backward_kernel(const Call<T> call, const Plan plan, const Gradients<T> gradients) {
  using S = Sum<T>;
  using Total = std::conditional_t<kFixedPoint, int64_t, S>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Arena arena{shared_memory};
  const int64_t image = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  if (image >= call.batch) return;
  Rows<S> rows(call, plan, arena);
  const int points = kPoints > 0 ? kPoints : call.points;
  const int pitch = kPoints > 0 ? kPoints | 1 : plan.pitch;
  Cell<S>* const cells = arena.take<Cell<S>>(plan.block_rows * pitch);
  Products<S>* const products = arena.take<Products<S>>(plan.block_rows * pitch);
  S* const means = arena.take<S>(plan.block_rows);

  const int first_row = blockIdx.x * plan.block_rows;
  const int block_rows = min(plan.block_rows, call.rows - first_row);
  const int lane = threadIdx.x & ((1 << plan.log_lanes) - 1);
  const int my_row = threadIdx.x >> plan.log_lanes;
  const bool is_row = my_row < block_rows;
  const int row = is_row ? my_row : 0;
  const unsigned right = call.channels, down = call.width * right;

  rows.template fill<kPoints>(call, image, first_row, block_rows, [&](int r, int p) -> S& {
    return cells[r * pitch + p].weight;
  });
  __syncthreads();
  for (int q = threadIdx.x; q < block_rows * points; q += kThreads) {
    const int r = q / points, p = q - r * points;
    Cell<S>& cell = cells[r * pitch + p];
    cell = locate(call, rows.row[r], p, rows.tap_x[p], rows.tap_y[p], cell.weight);
  }
  __syncthreads();
  const Cell<S>* const my_cells = cells + row * pitch;
  Products<S>* const my_products = products + row * pitch;
  for (int base = 0; base < call.group_channels; base += kVector << plan.log_lanes) {
    const int channel = base + lane * kVector;
    // Threads without channels stay for the shuffles.
    const bool is_active = is_row && channel < call.group_channels;
    S upstream[kVector] = {};
    if (is_active) {
      const auto raw = load_raw<kVector>(gradients.output + rows.row[row].channel + channel);
#pragma unroll
      for (int k = 0; k < kVector; ++k) upstream[k] = widen<T, kVector>(raw, k);
    }
    const int64_t at = first_element(call, image, rows.row[row], channel);
    const T* const values = call.input + at;
    Total* const totals =
        gradients.input == nullptr ? nullptr : static_cast<Total*>(gradients.input) + at;
#pragma unroll 1
    for (int p = 0; p < points; ++p) {
      const Cell<S> cell = my_cells[p];
      // A warp takes the fast way together or not at all.
      const bool is_fast = __all_sync(kWarp, is_active && cell.is_inside == kAllInside);
      Products<S> sum;
      if (is_fast) {
        sum = backward_point<true, T>(cell, is_active, upstream, values, totals, gradients.unit,
                                      right, down);
      } else {
        sum = backward_point<false, T>(cell, is_active, upstream, values, totals, gradients.unit,
                                       right, down);
      }
      sum = sum_over_lanes(sum, plan.log_lanes);
      if (is_row && lane == 0) {
        Products<S>& total = my_products[p];
        total = base == 0 ? sum
                          : Products<S>{total.value + sum.value, total.slope_x + sum.slope_x,
                                        total.slope_y + sum.slope_y};
      }
    }
  }
  __syncthreads();
  if (call.mask_softmax) {
    if (threadIdx.x < block_rows) {
      const int r = threadIdx.x;
      S mean = 0;
#pragma unroll
      for (int p = 0; p < points; ++p) {
        mean += cells[r * pitch + p].weight * products[r * pitch + p].value;
      }
      means[r] = mean;
    }
    __syncthreads();
  }
  const int64_t first_point = (image * call.rows + first_row) * points;
  for (int q = threadIdx.x; q < block_rows * points; q += kThreads) {
    const int r = q / points, p = q - r * points;
    const Cell<S> cell = cells[r * pitch + p];
    const Products<S> product = products[r * pitch + p];
    if (gradients.offset.data != nullptr) {
      const S factor = cell.is_inside != 0 ? cell.weight * call.offset_scale : 0;
      const S pair[2] = {factor * product.slope_x, factor * product.slope_y};
      with_type<T>(gradients.offset,
                   [&](auto* values) { store_pack(values + 2 * (first_point + q), pair); });
    }
    if (gradients.mask.data != nullptr) {
      const S value[1] = {call.mask_softmax ? cell.weight * (product.value - means[r])
                                            : product.value};
      with_type<T>(gradients.mask,
                   [&](auto* values) { store_pack(values + first_point + q, value); });
    }
  }
}

}  // namespace internimage::cuda
