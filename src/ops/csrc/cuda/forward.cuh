// DCNv3 forward: geometry once per row and point into shared memory, then threads of a row gather
// kVector channels each.
#pragma once

#include "sampling.cuh"

namespace internimage::cuda {

// Weights of the four corners of a sampling point, with the mask in them.
template <typename S>
using Corners = Pack<S, 4>;

// Top left pixel of the cell in its image and Cell::is_inside.
struct alignas(8) Place {
  int element, is_inside;
};

template <typename T>
size_t forward_shared_size(const Plan& plan, int points) {
  const size_t count = plan.block_rows * plan.pitch;
  return Rows<Sum<T>>::size(plan, points) + table_size<Corners<Sum<T>>>(count) +
         table_size<Place>(count) + table_size<int>(plan.block_rows);
}

template <int kVector, typename T>
__device__ __forceinline__ void accumulate(Sum<T> (&sum)[kVector], Sum<T> weight, const T* from) {
  const auto raw = load_raw<kVector>(from);
#pragma unroll
  for (int k = 0; k < kVector; ++k) sum[k] += weight * widen<T, kVector>(raw, k);
}

template <typename T, int kVector, int kPoints>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    forward_kernel(const Call<T> call, const Plan plan, T* __restrict__ output) {
  using S = Sum<T>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Arena arena{shared_memory};
  const int64_t image = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  if (image >= call.batch) return;
  Rows<S> rows(call, plan, arena);
  const int points = kPoints > 0 ? kPoints : call.points;
  const int pitch = kPoints > 0 ? kPoints | 1 : plan.pitch;
  Corners<S>* const corners = arena.take<Corners<S>>(plan.block_rows * pitch);
  Place* const places = arena.take<Place>(plan.block_rows * pitch);
  int* const is_interior = arena.take<int>(plan.block_rows);  // kAllInside if all its points are

  const int first_row = blockIdx.x * plan.block_rows;
  const int block_rows = min(plan.block_rows, call.rows - first_row);
  const int lane = threadIdx.x & ((1 << plan.log_lanes) - 1);
  const int my_row = threadIdx.x >> plan.log_lanes;
  const bool is_row = my_row < block_rows;
  const int row = is_row ? my_row : 0;  // threads without a row vote with the first

  // Until a point is located, its weight waits where the shares of its corners go.
  rows.template fill<kPoints>(call, image, first_row, block_rows, [&](int r, int p) -> S& {
    return corners[r * pitch + p].value[0];
  });
  if (threadIdx.x < block_rows) is_interior[threadIdx.x] = kAllInside;
  __syncthreads();
  for (int q = threadIdx.x; q < block_rows * points; q += kThreads) {
    const int r = q / points, p = q - r * points;
    Corners<S>& shares = corners[r * pitch + p];
    const Cell<S> cell =
        locate(call, rows.row[r], p, rows.tap_x[p], rows.tap_y[p], shares.value[0]);
    const S bottom = cell.weight * cell.low, top = cell.weight * (1 - cell.low);
    shares = {top * (1 - cell.right), top * cell.right, bottom * (1 - cell.right),
              bottom * cell.right};
    places[r * pitch + p] = {cell.element, cell.is_inside};
    if (cell.is_inside != kAllInside) atomicAnd(is_interior + r, cell.is_inside);
  }
  __syncthreads();
  const Corners<S>* const my_corners = corners + row * pitch;
  const Place* const my_places = places + row * pitch;
  // A warp takes the fast way together or not at all.
  const bool is_fast = __all_sync(kWarp, is_interior[row] == kAllInside);
  for (int base = 0; base < call.group_channels; base += kVector << plan.log_lanes) {
    const int channel = base + lane * kVector;
    if (!is_row || channel >= call.group_channels) continue;
    const T* const values = call.input + first_element(call, image, rows.row[row], channel);
    const unsigned right = call.channels, down = call.width * right;
    S sum[kVector] = {};
    if (is_fast) {
      [[maybe_unused]] constexpr int kUnroll = kPoints > 0 ? kPoints : 1;
#pragma unroll kUnroll
      for (int p = 0; p < points; ++p) {
        const Corners<S> shares = my_corners[p];
        const T* const corner = values + my_places[p].element;
        accumulate(sum, shares.value[0], corner);
        accumulate(sum, shares.value[1], corner + right);
        accumulate(sum, shares.value[2], corner + down);
        accumulate(sum, shares.value[3], corner + down + right);
      }
    } else {
#pragma unroll 1
      for (int p = 0; p < points; ++p) {
        const Corners<S> shares = my_corners[p];
        const Place place = my_places[p];
        const T* const corner = values + place.element;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          // Chosen, not multiplied by zero: 0 * inf is NaN.
          if (place.is_inside >> c & 1) {
            accumulate(sum, shares.value[c], corner + (c & 2 ? down : 0u) + (c & 1 ? right : 0u));
          }
        }
      }
    }
    store_pack(output + rows.row[row].channel + channel, sum);
  }
}

}  // namespace internimage::cuda
