// Division of the work of a DCNv3 call into blocks and warps. Plain C++ for the host; kernels
// receive the results by value.
//
// A row is one group of one output pixel. A block takes the rows of one group in a two-dimensional
// tile of output pixels, so that its rows sample overlapping input. Its warps process chunks of
// rows in turn without synchronisation: the tables of a chunk belong to its warp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "call.h"

namespace internimage::cuda {

// Properties of the device.
struct Limits {
  int multiprocessors;
  int64_t block_shared, multiprocessor_shared;  // bytes of shared memory
};

struct Plan {
  int warps, threads;  // of a block
  int log_rows;   // of the rows of a chunk
  int log_lanes;  // of the threads that share the channels of a row
  int pitch;      // distance of two rows in tables of points: odd, for the banks of shared memory
  int tile_height, tile_width;  // output pixels of a block
  Divisor tile_columns, tiles_x, groups, points;
  unsigned blocks_per_image, images_y, images_z;  // the grid
  int warp_shared;  // bytes of shared memory of a warp
  size_t shared;    // and of a block
};

// The part of the input gradient that a block of the backward adds up in shared memory: integers,
// in planes of kPlaneChannels channels.
struct Copy {
  bool is_whole_map;  // no other block adds to it, and no sample is outside
  int height, width;  // pixels at most; 0: there is no copy
  // First pixel relative to the first output pixel of the block times the stride, and the number of
  // pixels within reach if the image had no borders.
  int first_y, first_x, reach_y, reach_x;
  int pitch;   // distance of two lines
  int pixels;  // of a plane; behind them are kSpare more, for corners that are not in the copy
  int planes;
  Divisor pitch_pixels;
};

constexpr int kPlaneChannels = 8;
constexpr int kPlanesAtOnce = 2;  // planes come in pairs
constexpr int kSpare = 4;
// More than fit into shared memory; a corner's place in the copy takes 16 bits (backward.cuh).
constexpr int kMostCopyPixels = 1 << 14;
// Pixels around the window of a tile that its copy contains: offsets of up to that many pixels stay
// in shared memory, others go to global memory.
constexpr int kHalo = 4;
// With larger copies, a block has fewer rounds over its rows, and fewer blocks share a
// multiprocessor.
constexpr int64_t kMostTileCopy = 64 * 1024;

constexpr int kForwardWarps = 4;
constexpr int kMostSide = 16;  // output pixels of a tile along one axis
// Most blocks along the second and third axis of a grid; the emulator of the tests takes fewer.
#ifndef INTERNIMAGE_MAX_GRID
#define INTERNIMAGE_MAX_GRID 65535
#endif
constexpr int64_t kMaxGrid = INTERNIMAGE_MAX_GRID;
// Tables of a warp have space for this many sampling points, but at least for one row.
constexpr int kChunkPoints = 288;

inline int64_t align_table(int64_t bytes) { return (bytes + 15) / 16 * 16; }

inline int floor_log2(int64_t value) {
  int log = 0;
  while (value >> (log + 1) > 0) ++log;
  return log;
}

inline int64_t parts(int64_t size, int64_t most) { return (size + most - 1) / most; }

// Length of the parts if an axis is divided into equal parts of at most `most`.
inline int cut(int size, int most) { return static_cast<int>(parts(size, parts(size, most))); }

template <typename T>
void set_tile(const Call<T>& call, int most_side, Plan* plan) {
  plan->tile_height = cut(call.out_height, most_side);
  plan->tile_width = cut(call.out_width, most_side);
  const int64_t tiles_x = parts(call.out_width, plan->tile_width);
  const int64_t tiles = tiles_x * parts(call.out_height, plan->tile_height);
  plan->tiles_x = make_divisor(static_cast<int>(tiles_x));
  plan->tile_columns = make_divisor(plan->tile_width);
  plan->blocks_per_image = static_cast<unsigned>(tiles * call.groups);
}

// The part that does not depend on the tile. `most_log_rows`: logarithm of the most rows of a
// chunk.
template <typename T>
Plan begin_plan(const Call<T>& call, int channels_per_thread) {
  Plan plan{};
  while (plan.log_lanes < 5 && (channels_per_thread << plan.log_lanes) < call.group_channels) {
    ++plan.log_lanes;
  }
  plan.pitch = call.points | 1;
  plan.groups = make_divisor(call.groups);
  plan.points = make_divisor(call.points);
  plan.images_y = static_cast<unsigned>(std::min<int64_t>(call.batch, kMaxGrid));
  plan.images_z = static_cast<unsigned>(parts(call.batch, kMaxGrid));
  return plan;
}

template <typename T>
int choose_log_rows(const Call<T>& call, int most) {
  return std::min(most, floor_log2(std::max(1, kChunkPoints / call.points)));
}

// Rounds of a warp over the rows of a tile.
inline int chunks(const Plan& plan) {
  return static_cast<int>(parts(int64_t{plan.tile_height} * plan.tile_width, 1 << plan.log_rows));
}

// As many rows per chunk as a warp has space for, and large tiles, unless multiprocessors would be
// idle. Sizes: bytes of shared memory of a block and of each of its warps.
template <typename T, typename WarpSize>
Plan plan_forward(const Call<T>& call, int channels_per_thread, const Limits& limits,
                  int64_t block_size, const WarpSize& warp_size) {
  Plan plan = begin_plan(call, channels_per_thread);
  plan.log_rows = choose_log_rows(call, 5 - plan.log_lanes);
  int side = kMostSide;
  set_tile(call, side, &plan);
  while (side > 4 && call.batch * plan.blocks_per_image < 2 * limits.multiprocessors) {
    side /= 2;
    set_tile(call, side, &plan);
  }
  const int64_t size = plan.warp_shared = static_cast<int>(warp_size(plan));
  const int64_t room = (limits.block_shared - block_size) / size;
  plan.warps = static_cast<int>(
      std::clamp<int64_t>(std::min<int64_t>(room, chunks(plan)), 1, kForwardWarps));
  plan.threads = 32 * plan.warps;
  plan.shared = block_size + plan.warps * size;
  return plan;
}

// One axis of the copy: Copy::first and Copy::reach for tiles of `side` output pixels.
struct Reach {
  int first, count;
};

inline Reach reach(int side, int kernel, int stride, int pad, int dilation, double scale) {
  const double half = dilation * (kernel - 1) / 2, last = double(dilation) * (kernel - 1) - half;
  const double low = std::floor(std::min(-half * scale, last * scale));
  const double high = std::ceil(std::max(-half * scale, last * scale));
  const double first = low + half - pad - kHalo;
  const double count = double(side - 1) * stride + (high - low) + 2 * kHalo + 2;
  // The copy is empty if the window exceeds the range of the integers.
  constexpr double most = 1 << 30;
  if (!(std::abs(first) < most && count < most)) return {0, 0};
  return {static_cast<int>(first), static_cast<int>(count)};
}

template <typename T>
Copy make_copy(const Call<T>& call, Reach y, Reach x) {
  Copy copy{};
  copy.first_y = y.first;
  copy.first_x = x.first;
  copy.reach_y = y.count;
  copy.reach_x = x.count;
  copy.height = std::min(y.count, call.height);
  copy.width = std::min(x.count, call.width);
  // Two modulo four, so that the four corners of a cell are in different quarters of the banks.
  copy.pitch = copy.width + ((2 - copy.width) & 3);
  copy.pixels = static_cast<int>(std::min<int64_t>(int64_t{copy.height} * copy.pitch, 1 << 30));
  const int planes = static_cast<int>(parts(call.group_channels, kPlaneChannels));
  copy.planes = static_cast<int>(parts(planes, kPlanesAtOnce)) * kPlanesAtOnce;
  copy.pitch_pixels = make_divisor(copy.pitch);
  return copy;
}

template <typename T>
Copy copy_of_tile(const Call<T>& call, const Plan& plan) {
  const double scale = call.offset_scale;
  return make_copy(call,
                   reach(plan.tile_height, call.kernel_h, call.stride_h, call.pad_h,
                         call.dilation_h, scale),
                   reach(plan.tile_width, call.kernel_w, call.stride_w, call.pad_w,
                         call.dilation_w, scale));
}

// int32 for float sums, int64 for double.
template <typename T>
int64_t copy_size(const Copy& copy) {
  return int64_t{copy.pixels + kSpare} * copy.planes * kPlaneChannels * sizeof(Sum<T>);
}

template <typename T>
bool fits(const Copy& copy, int64_t bytes) {
  return copy.pixels <= kMostCopyPixels && copy_size<T>(copy) <= bytes;
}

struct BackwardPlan {
  Plan plan;
  Copy copy;
};

template <typename T>
constexpr int kMostBackwardWarps = std::is_same_v<T, double> ? 8 : 16;

// Whole feature maps if a block can hold the feature map of a group with enough warps to hide
// latencies, and there are enough groups to occupy the multiprocessors (or a feature map is not
// larger than a tile); otherwise tiles with a halo; otherwise (very wide groups or windows) no
// copy.
template <typename T, typename WarpSize>
BackwardPlan plan_backward(const Call<T>& call, int channels_per_thread, const Limits& limits,
                           int64_t block_size, const WarpSize& warp_size) {
  constexpr int most_warps = kMostBackwardWarps<T>;
  Plan plan = begin_plan(call, channels_per_thread);
  plan.log_rows = choose_log_rows(call, 3);
  const int64_t size = plan.warp_shared = static_cast<int>(warp_size(plan));
  const int64_t room = limits.block_shared - block_size;
  const int64_t maps = call.batch * call.groups;
  const bool is_small = call.out_pixels <= kMostSide * kMostSide;
  // A pixel has at least 4 bytes, so larger feature maps do not fit; this also avoids an overflow.
  Copy copy{};
  if (int64_t{call.height} * call.width <= kMostCopyPixels) {
    copy = make_copy(call, {0, call.height}, {0, call.width});
    copy.is_whole_map = fits<T>(copy, room - most_warps * size) &&
                        (is_small || 2 * maps >= limits.multiprocessors) &&
                        call.out_pixels < int64_t{1} << 24;
  }
  if (copy.is_whole_map) {
    set_tile(call, std::max(call.out_height, call.out_width), &plan);
  } else {
    int side = kMostSide;
    const auto try_side = [&] {
      set_tile(call, side, &plan);
      copy = copy_of_tile(call, plan);
      return fits<T>(copy, std::min(kMostTileCopy, room - size)) &&
             (side == 4 || call.batch * plan.blocks_per_image >= limits.multiprocessors);
    };
    while (!try_side() && side > 4) side -= 4;
    if (!fits<T>(copy, std::min(kMostTileCopy, room - size))) copy = Copy{};
  }
  // As many warps on a multiprocessor as shared memory allows, in small blocks.
  const int64_t fixed = block_size + (copy.height > 0 ? copy_size<T>(copy) : 0);
  const int64_t blocks = parts(call.batch * plan.blocks_per_image, limits.multiprocessors);
  int64_t most = 0;
  for (int warps = most_warps; warps >= 1; warps /= 2) {
    const int64_t shared = fixed + warps * size;
    if (shared > limits.block_shared || (warps > 1 && warps / 2 >= chunks(plan))) continue;
    // CUDA reserves 1 KiB per block.
    const int64_t resident = std::min(blocks, limits.multiprocessor_shared / (shared + 1024));
    const int64_t active = std::min<int64_t>(32, std::max<int64_t>(1, resident) * warps);
    if (active < most || (active == most && warps < 4)) continue;
    most = active;
    plan.warps = warps;
    plan.threads = 32 * warps;
    plan.shared = static_cast<size_t>(shared);
  }
  return {plan, copy};
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls run(channels per thread, points or 0 for any number) with compile-time constants for the
// call: loads of 16 bytes if the groups allow it.
template <typename T, typename Run>
void choose_kernel(const Call<T>& call, bool is_aligned, const Run& run) {
  constexpr int vector = 16 / sizeof(T);
  if (!is_aligned || call.group_channels % vector != 0) {
    run(Constant<1>(), Constant<0>());
  } else if (call.points == 9) {
    run(Constant<vector>(), Constant<9>());
  } else {
    run(Constant<vector>(), Constant<0>());
  }
}

}  // namespace internimage::cuda
