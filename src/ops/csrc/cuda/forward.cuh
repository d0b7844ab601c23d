// DCNv3 forward: geometry once per row and point into shared memory, then the threads of a row
// gather kVector channels each.
#pragma once

#include "sampling.cuh"

namespace internimage::cuda {

// Weights of the four corners of a sampling point, with the mask in them; 0 outside the image.
template <typename S>
using Corners = Pack<S, 4>;

// Top left pixel of the cell in its image and Cell::is_inside.
struct alignas(8) Place {
  int element, is_inside;
};

template <typename S>
struct ForwardTables {
  Rows<S> rows;
  Table<Corners<S>> corners;
  Table<Place> places;

  __device__ __forceinline__ ForwardTables(const Plan& plan, int pitch, Arena& arena)
      : rows(plan, pitch, arena),
        corners(arena.take<Corners<S>>(pitch << plan.log_rows)),
        places(arena.take<Place>(pitch << plan.log_rows)) {}

  static int64_t size(const Plan& plan) {
    const int64_t count = plan.pitch << plan.log_rows;
    return Rows<S>::size(plan) + table_size<Corners<S>>(count) + table_size<Place>(count);
  }
};

template <typename T>
Plan make_forward_plan(const Call<T>& call, int channels_per_thread, const Limits& limits) {
  return plan_forward(call, channels_per_thread, limits, Taps<Sum<T>>::size(call.points),
                      ForwardTables<Sum<T>>::size);
}

template <typename T, int kVector>
__device__ __forceinline__ void accumulate(Sum<T> (&sum)[kVector], const Corners<Sum<T>>& weights,
                                           const Raw<T, kVector> (&raw)[4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) sum[k] += weights.value[c] * widen<T, kVector>(raw[c], k);
  }
}

// Sum of the samples of one row, whose points start at `begin` in the tables. The corners of the
// next point are loaded while those of the current one are added.
template <bool kAll, int kPoints, typename T, int kVector>
__device__ __forceinline__ void gather(Sum<T> (&sum)[kVector], const ForwardTables<Sum<T>>& tables,
                                       int begin, int points, const T* values, unsigned right,
                                       unsigned down) {
  Raw<T, kVector> raw[2][4];
  const auto load = [&](int p) {
    const Place place = tables.places.get(begin + p);
    load_corners<kAll, kVector>(raw[p % 2], values + place.element, place.is_inside, right, down);
  };
  if constexpr (kAll && kPoints > 0) {
    load(0);
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      if (p + 1 < kPoints) load(p + 1);
      accumulate<T>(sum, tables.corners.get(begin + p), raw[p % 2]);
    }
  } else {
#pragma unroll 1
    for (int p = 0; p < points; ++p) {
      const Place place = tables.places.get(begin + p);
      load_corners<kAll, kVector>(raw[0], values + place.element, place.is_inside, right, down);
      accumulate<T>(sum, tables.corners.get(begin + p), raw[0]);
    }
  }
}

template <typename T, int kVector, int kPoints>
__global__ void __launch_bounds__(32 * kForwardWarps, std::is_same_v<T, double> ? 4 : 7)
    forward_kernel(const Call<T> call, const Plan plan, T* __restrict__ output) {
  using S = Sum<T>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Block block = locate_block(call, plan);
  if (block.image >= call.batch) return;
  const int points = kPoints > 0 ? kPoints : call.points;
  const int pitch = kPoints > 0 ? kPoints | 1 : plan.pitch;
  Arena arena{shared_memory};
  const Taps<S> taps(call, plan, arena);
  const int warp = threadIdx.x / 32;
  arena.next += warp * plan.warp_shared;
  const ForwardTables<S> tables(plan, pitch, arena);
  __syncthreads();

  const int my_row = (threadIdx.x & 31) >> plan.log_lanes;
  const int lane = threadIdx.x & ((1 << plan.log_lanes) - 1);
  const bool has_row = my_row < 1 << plan.log_rows;
  const int row = has_row ? my_row : 0;
  const unsigned right = call.channels, down = call.width * right;
  const T* const input =
      call.input + block.image * (int64_t{call.height} * call.width * call.channels);
  for (int first = warp << plan.log_rows; first < block.rows;
       first += plan.warps << plan.log_rows) {
    tables.rows.template fill<kPoints>(call, plan, block, first, pitch);
    __syncwarp();
    bool is_interior = true;
    tables.rows.template locate_points<kPoints>(
        call, plan, taps, pitch, [&](const Point<S>& point, int at) {
          const Cell<S>& cell = point.cell;
          const S weight = tables.rows.weight.get(at);
          const S bottom = weight * cell.low, top = weight * (1 - cell.low);
          Corners<S> shares = {top * (1 - cell.right), top * cell.right,
                               bottom * (1 - cell.right), bottom * cell.right};
          // Selected instead of multiplied by zero, because the weight may be NaN.
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (!(cell.is_inside >> c & 1)) shares.value[c] = 0;
          }
          tables.corners.put(at, shares);
          tables.places.put(at, {cell.element, cell.is_inside});
          is_interior &= cell.is_inside == kAllInside;
        });
    // The fast path is taken only if all threads of the warp can take it.
    const bool is_fast = __all_sync(kWarp, is_interior);
    __syncwarp();
    const int64_t pixel = has_row ? tables.rows.row.get(row).pixel : -1;
    const int begin = row * pitch;
    for (int channel = lane * kVector; pixel >= 0 && channel < call.group_channels;
         channel += kVector << plan.log_lanes) {
      const int at = block.group * call.group_channels + channel;
      S sum[kVector] = {};
      if (is_fast) {
        gather<true, kPoints>(sum, tables, begin, points, input + at, right, down);
      } else {
        gather<false, kPoints>(sum, tables, begin, points, input + at, right, down);
      }
      store_pack(output + pixel * call.channels + at, sum);
    }
    __syncwarp();
  }
}

}  // namespace internimage::cuda
