// Shared by the bindings of all devices, on the LibTorch stable ABI: the sizes of a call from its
// tensors.
//
// The checks only keep memory accesses in bounds; Python checks arguments with messages for users.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "dcnv3.h"

namespace internimage {

using torch::stable::Tensor;
using Pair = std::vector<int64_t>;

inline void check_pair(const Pair& pair, int64_t least, const char* name) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least, name,
                  " must be two integers of at least ", least);
}

// Sizes of a call from the values and the window; the tensors of the points are not checked yet.
inline Problem make_window(const Tensor& input, int64_t groups, const Pair& kernel_size,
                           const Pair& stride, const Pair& padding, const Pair& dilation,
                           double offset_scale, bool remove_center, bool mask_softmax) {
  check_pair(kernel_size, 1, "kernel_size");
  check_pair(stride, 1, "stride");
  check_pair(padding, 0, "padding");
  check_pair(dilation, 1, "dilation");
  STD_TORCH_CHECK(input.dim() == 4, "input must have four axes");
  Problem p{};
  p.batch = input.size(0);
  p.height = input.size(1);
  p.width = input.size(2);
  p.channels = input.size(3);
  p.groups = groups;
  p.out_height =
      (p.height + 2 * padding[0] - dilation[0] * (kernel_size[0] - 1) - 1) / stride[0] + 1;
  p.out_width = (p.width + 2 * padding[1] - dilation[1] * (kernel_size[1] - 1) - 1) / stride[1] + 1;
  p.kernel_h = kernel_size[0];
  p.kernel_w = kernel_size[1];
  p.stride_h = stride[0];
  p.stride_w = stride[1];
  p.pad_h = padding[0];
  p.pad_w = padding[1];
  p.dilation_h = dilation[0];
  p.dilation_w = dilation[1];
  p.offset_scale = offset_scale;
  p.remove_center = remove_center;
  p.mask_softmax = mask_softmax;
  STD_TORCH_CHECK(groups >= 1 && p.channels % groups == 0,
                  "groups must divide the channels of input");
  STD_TORCH_CHECK(p.points() >= 1 && p.points() <= kMaxPoints, "kernel_size must give 1 to ",
                  kMaxPoints, " points");
  STD_TORCH_CHECK(p.height >= 1 && p.width >= 1 && p.out_height >= 1 && p.out_width >= 1,
                  "the window does not fit");
  constexpr int64_t limit = int64_t{1} << 31;
  STD_TORCH_CHECK(p.channels == 0 || p.height * p.width < limit / p.channels,
                  "input must have fewer than 2^31 elements per image");
  return p;
}

inline void check_rows(const Problem& p, const Tensor& t, int64_t columns, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == p.batch && t.size(1) == p.out_height &&
                      t.size(2) == p.out_width && t.size(3) == columns,
                  name, " does not have the shape that input and window ask for");
}

// DCNv3: offset and mask are two tensors.
inline Problem make_problem(const Tensor& input, const Tensor& offset, const Tensor& mask,
                            int64_t groups, const Pair& kernel_size, const Pair& stride,
                            const Pair& padding, const Pair& dilation, double offset_scale,
                            bool remove_center, bool mask_softmax) {
  const Problem p = make_window(input, groups, kernel_size, stride, padding, dilation, offset_scale,
                                remove_center, mask_softmax);
  check_rows(p, offset, p.groups * p.points() * 2, "offset");
  check_rows(p, mask, p.groups * p.points(), "mask");
  return p;
}

// DCNv4: both are in packed rows.
inline Problem make_packed_problem(const Tensor& input, const Tensor& offset_mask, int64_t groups,
                                   const Pair& kernel_size, const Pair& stride, const Pair& padding,
                                   const Pair& dilation, double offset_scale, bool remove_center) {
  const Problem p = make_window(input, groups, kernel_size, stride, padding, dilation, offset_scale,
                                remove_center, false);
  check_rows(p, offset_mask, p.row_width(), "offset_mask");
  return p;
}

// Elements between the rows (last dimension) of consecutive pixels, which may be a slice of a wider
// tensor; 0 if the rows are not dense or not evenly spaced.
inline int64_t row_distance(const Tensor& t) {
  if (t.size(2) <= 1 || t.stride(3) != 1) return 0;
  const int64_t step = t.stride(2);
  const bool is_even = (t.size(1) == 1 || t.stride(1) == step * t.size(2)) &&
                       (t.size(0) <= 1 || t.stride(0) == step * t.size(1) * t.size(2));
  return is_even ? step : 0;
}

}  // namespace internimage
