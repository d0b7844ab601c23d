// One DCNv3 call as the CUDA kernels see it, and how its work is cut into blocks of threads. Plain
// C++, no torch types: the binding fills it in, kernels get it by value.
//
// A row is one group of one output pixel. Rows of an image are numbered pixel by pixel; a block
// works on some consecutive rows of one image (never of two), with `lanes` threads per row that
// share its channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../dcnv3.h"

namespace internimage::cuda {

// Type of positions, weights and sums.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Offset or mask, or the gradient of one: of type Sum<T> if wide, else T; one row of `stride` values
// per output pixel. Pairs of values can be read at once where they are aligned.
struct Side {
  void* data;
  int64_t stride;
  bool is_wide, has_aligned_pairs;
};

template <typename T>
Side make_side(void* data, int64_t stride, bool is_wide) {
  const size_t pair = 2 * (is_wide ? sizeof(Sum<T>) : sizeof(T));
  const bool is_aligned = reinterpret_cast<uintptr_t>(data) % pair == 0 && stride % 2 == 0;
  return {data, stride, is_wide, is_aligned};
}

// A divisor that is known before the launch: for numerators below 2^31, with
// high = numerator * factor >> 32, the quotient is (high + numerator) >> shift.
// Source: Granlund and Montgomery, "Division by invariant integers", PLDI 1994, fig. 4.1.
struct Divisor {
  unsigned value, factor;
  int shift;
};

inline Divisor make_divisor(int value) {
  int shift = 0;
  while ((int64_t{1} << shift) < value) ++shift;
  const uint64_t rest = (uint64_t{1} << shift) - static_cast<unsigned>(value);
  const uint64_t factor = (rest << 32) / static_cast<unsigned>(value) + 1;
  return {static_cast<unsigned>(value), static_cast<unsigned>(factor), shift};
}

template <typename T>
struct Call {
  int64_t batch, out_pixels;
  int rows;  // per image
  int height, width, channels, group_channels;
  Divisor groups, out_width;
  int points, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool remove_center, mask_softmax;
  Sum<T> offset_scale;
  const T* input;
  Side offset, mask;  // read only
};

// What the backward adds.
template <typename T>
struct Gradients {
  const T* output;    // gradient that comes in, dense
  void* input;        // Sum<T>, or int64 in units of 1 / *unit; null if not wanted
  const double* unit;  // null: `input` holds Sum<T>
  Side offset, mask;  // dense; data is null if not wanted
};

// Everything but the tensors.
template <typename T>
Call<T> make_call(const Problem& p) {
  Call<T> call{};
  call.batch = p.batch;
  call.out_pixels = p.out_pixels();
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  call.rows = number(p.out_pixels() * p.groups);
  call.height = number(p.height);
  call.width = number(p.width);
  call.channels = number(p.channels);
  call.groups = make_divisor(number(p.groups));
  call.group_channels = number(p.group_channels());
  call.out_width = make_divisor(number(p.out_width));
  call.points = number(p.points());
  call.kernel_h = number(p.kernel_h);
  call.kernel_w = number(p.kernel_w);
  call.stride_h = number(p.stride_h);
  call.stride_w = number(p.stride_w);
  call.pad_h = number(p.pad_h);
  call.pad_w = number(p.pad_w);
  call.dilation_h = number(p.dilation_h);
  call.dilation_w = number(p.dilation_w);
  call.remove_center = p.remove_center;
  call.mask_softmax = p.mask_softmax;
  call.offset_scale = static_cast<Sum<T>>(p.offset_scale);
  return call;
}

constexpr int kThreads = 128;
// That many fit on a multiprocessor at once, as far as registers go: 64 per thread, 128 for double.
template <typename T>
constexpr int kBlocksAtOnce = std::is_same_v<T, double> ? 4 : 8;
// A block has rows for this many sampling points, but at least one row.
template <typename T>
constexpr int kBlockPoints = std::is_same_v<T, double> ? 576 : 1152;

// Most blocks along the second and third axis of a grid; the emulator of the tests takes fewer.
#ifndef INTERNIMAGE_MAX_GRID
#define INTERNIMAGE_MAX_GRID 65535
#endif
constexpr int64_t kMaxGrid = INTERNIMAGE_MAX_GRID;

struct Plan {
  int log_lanes;   // of the threads per row
  int block_rows;  // rows per block
  int pitch;       // distance of two rows in tables of points: odd, for the banks of shared memory
  unsigned blocks_per_image, images_y, images_z;  // the grid
};

// Blocks as large as they may be, but on small maps so small that every multiprocessor gets two; not
// below one sampling point per thread.
template <typename T>
int choose_block_rows(const Call<T>& call, const Plan& plan, int multiprocessors) {
  const int most = std::min(kThreads >> plan.log_lanes, kBlockPoints<T> / plan.pitch);
  const int64_t share = call.batch * call.rows / (2 * multiprocessors);
  const int64_t least = std::min(kThreads / call.points, most);
  return static_cast<int>(std::max<int64_t>(1, std::clamp<int64_t>(share, least, most)));
}

template <typename T>
Plan make_plan(const Call<T>& call, int channels_per_thread, int multiprocessors) {
  Plan plan{};
  while (plan.log_lanes < 5 && (channels_per_thread << plan.log_lanes) < call.group_channels) {
    ++plan.log_lanes;
  }
  plan.pitch = call.points | 1;
  plan.block_rows = choose_block_rows(call, plan, multiprocessors);
  plan.blocks_per_image = (call.rows + plan.block_rows - 1) / plan.block_rows;
  plan.images_y = static_cast<unsigned>(std::min<int64_t>(call.batch, kMaxGrid));
  plan.images_z = static_cast<unsigned>((call.batch + kMaxGrid - 1) / kMaxGrid);
  return plan;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls run(channels per thread, points or 0 for any number) with the constants that suit the call:
// loads of 16 bytes where groups allow it.
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
