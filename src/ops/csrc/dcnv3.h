// Sizes and window of a DCNv3 or DCNv4 call, for kernels of any device; no tensors and no torch
// types.
//
// Layouts: input (N, H, W, G*Cg); offset (N, Ho, Wo, G*P*2) with (dx, dy) pairs; mask (N, Ho, Wo,
// G*P); packed rows of DCNv4 (N, Ho, Wo, R), the 2P offsets and P weights of one group after the
// other, R a multiple of 8; output (N, Ho, Wo, G*Cg). Points run over the window with the width index slow and the
// height index fast; with remove_center the centre point is omitted.
#pragma once

#include <cstdint>

namespace internimage {

// Kernel implementations size their tables for this many points per group.
constexpr int64_t kMaxPoints = 1024;

struct Problem {
  int64_t batch, height, width, channels, groups;
  int64_t out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  double offset_scale;
  bool remove_center, mask_softmax;

  int64_t points() const { return kernel_h * kernel_w - (remove_center ? 1 : 0); }
  int64_t group_channels() const { return channels / groups; }
  int64_t row_width() const { return (groups * points() * 3 + 7) / 8 * 8; }
  int64_t out_pixels() const { return out_height * out_width; }
  // Distance from the first tap to the window centre; floor, so even windows are asymmetric.
  int64_t half_h() const { return (dilation_h * (kernel_h - 1)) / 2; }
  int64_t half_w() const { return (dilation_w * (kernel_w - 1)) / 2; }
};

}  // namespace internimage
