// Arguments of one DCNv3 or DCNv4 call. Plain C++ without torch types: filled in by the binding, passed to
// kernels by value. plan.h divides the work into blocks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../dcnv3.h"

namespace internimage::cuda {

// Type of positions, weights and sums.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Offset or mask, or the gradient of one: of type Sum<T> if wide, else T. `stride` values lie
// between output pixels and `group` values between their groups. Pairs of values can be read at once
// where they are aligned.
struct Side {
  void* data;
  int64_t stride;
  int group;
  bool is_wide, has_aligned_pairs;
};

template <typename T>
Side make_side(void* data, int64_t stride, int64_t group, bool is_wide) {
  const size_t pair = 2 * (is_wide ? sizeof(Sum<T>) : sizeof(T));
  const bool is_aligned = reinterpret_cast<uintptr_t>(data) % pair == 0 && (stride | group) % 2 == 0;
  return {data, stride, static_cast<int>(group), is_wide, is_aligned};
}

struct Sides {
  Side offset, mask;
};

// The two sides of packed rows of `stride` values: 2P offsets and P weights of each group.
template <typename T>
Sides make_packed_sides(void* rows, int64_t stride, int64_t points, bool is_wide) {
  const size_t size = is_wide ? sizeof(Sum<T>) : sizeof(T);
  void* const mask = rows == nullptr ? nullptr : static_cast<char*>(rows) + 2 * points * size;
  return {make_side<T>(rows, stride, 3 * points, is_wide),
          make_side<T>(mask, stride, 3 * points, is_wide)};
}

// Division by a divisor that is known before the launch: for numerators below 2^31, with
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
  int height, width, channels, groups, group_channels;
  int out_height, out_width;
  int points, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool remove_center, mask_softmax;
  Sum<T> offset_scale;
  const T* input;
  Side offset, mask;  // read only
};

// Additional arguments of the backward pass.
template <typename T>
struct Gradients {
  const T* output;    // gradient of the output, dense
  // Null if not needed. If blocks own whole feature maps it is written, in T; otherwise it is added
  // to and has type Sum<T>, or int64 in units of 1 / *unit if there is a unit.
  void* input;
  const double* unit;
  bool is_deterministic;  // bitwise reproducible, also if a sum is not finite
  Side offset, mask;  // data is null if not needed
  int padding;        // values after the last group of packed rows, which are set to zero
};

// All arguments except the tensors.
template <typename T>
Call<T> make_call(const Problem& p) {
  Call<T> call{};
  call.batch = p.batch;
  call.out_pixels = p.out_pixels();
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  call.height = number(p.height);
  call.width = number(p.width);
  call.channels = number(p.channels);
  call.groups = number(p.groups);
  call.group_channels = number(p.group_channels());
  call.out_height = number(p.out_height);
  call.out_width = number(p.out_width);
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

}  // namespace internimage::cuda
