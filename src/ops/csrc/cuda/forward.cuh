// DCNv3 forward: geometry once per row and point into shared memory, then threads of a row gather
// kVector channels each.
#pragma once

#include "sampling.cuh"

namespace internimage::cuda {

// Weights of the four corners of a sampling point, with the mask in them; 0 where it does not count.
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
  const auto pack = load_pack<kVector>(from);
#pragma unroll
  for (int k = 0; k < kVector; ++k) sum[k] += weight * widen(pack.value[k]);
}

template <typename T, int kVector, int kPoints>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    forward_kernel(const Call<T> call, const Plan plan, T* __restrict__ output) {
  using S = Sum<T>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Arena arena{shared_memory};
  Rows<S> rows(call, plan, arena);
  const int points = kPoints > 0 ? kPoints : call.points;
  Corners<S>* const corners = arena.take<Corners<S>>(plan.block_rows * plan.pitch);
  Place* const places = arena.take<Place>(plan.block_rows * plan.pitch);
  int* const is_interior = arena.take<int>(plan.block_rows);  // kAllInside if all its points are

  const int first_row = blockIdx.x * plan.block_rows;
  const int lane = threadIdx.x & ((1 << plan.log_lanes) - 1);
  const int my_row = threadIdx.x >> plan.log_lanes;
  const bool is_row = my_row < plan.block_rows && first_row + my_row < call.rows;
  const int row = is_row ? my_row : 0;  // threads without a row do the work of the first for nothing
  const int64_t image_size = static_cast<int64_t>(call.height) * call.width * call.channels;

  for (int64_t image = blockIdx.y; image < call.batch; image += gridDim.y) {
    rows.fill(call, plan, image, first_row);
    for (int i = threadIdx.x; i < plan.block_rows; i += kThreads) is_interior[i] = kAllInside;
    __syncthreads();
    for (int q = threadIdx.x; q < plan.block_rows * points; q += kThreads) {
      const int r = q / points, p = q - r * points;
      const Cell<S> cell = locate(call, rows.row[r], p, rows.tap_x[p], rows.tap_y[p]);
      const S weight = cell.is_inside != 0 ? cell.weight : 0;
      Corners<S> shares;
#pragma unroll
      for (int c = 0; c < 4; ++c) shares.value[c] = weight * corner_share(cell, c);
      corners[r * plan.pitch + p] = shares;
      places[r * plan.pitch + p] = {cell.element, cell.is_inside};
      if (cell.is_inside != kAllInside) atomicAnd(is_interior + r, cell.is_inside);
    }
    __syncthreads();
    const Corners<S>* const my_corners = corners + row * plan.pitch;
    const Place* const my_places = places + row * plan.pitch;
    // A warp takes the fast way together or not at all.
    const bool is_fast = __all_sync(kWarp, is_interior[row] == kAllInside);
    for (int base = 0; base < call.group_channels; base += kVector << plan.log_lanes) {
      const int channel = base + lane * kVector;
      if (!is_row || channel >= call.group_channels) continue;
      const T* const values =
          call.input + image * image_size + rows.row[row].group_channel + channel;
      S sum[kVector] = {};
      if (is_fast) {
        // More at once would not fit in the registers.
        [[maybe_unused]] constexpr int kUnroll = kPoints == 9 ? 3 : 1;
#pragma unroll kUnroll
        for (int p = 0; p < points; ++p) {
          const Corners<S> shares = my_corners[p];
          const T* const corner = values + my_places[p].element;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            accumulate(sum, shares.value[c], corner + corner_shift(call, c));
          }
        }
      } else {
#pragma unroll 1
        for (int p = 0; p < points; ++p) {
          const Corners<S> shares = my_corners[p];
          const Place place = my_places[p];
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            // Chosen, not multiplied by zero: 0 * inf is NaN.
            if (place.is_inside >> c & 1) {
              accumulate(sum, shares.value[c], values + place.element + corner_shift(call, c));
            }
          }
        }
      }
      store_pack(output + rows.row[row].channel + channel, sum);
    }
    __syncthreads();  // the next image fills the tables again
  }
}

}  // namespace internimage::cuda
