// Shared by the bindings of all devices, on the LibTorch stable ABI: the sizes of a call from its
// tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "window.h"

namespace internimage {

using torch::stable::Tensor;

inline std::vector<int64_t> shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

// DCNv3: offset and mask are two tensors.
inline Problem make_problem(const Tensor& input, const Tensor& offset, const Tensor& mask,
                            int64_t groups, const Pair& kernel_size, const Pair& stride,
                            const Pair& padding, const Pair& dilation, double offset_scale,
                            bool remove_center, bool mask_softmax) {
  const Problem p = make_window(shape_of(input), groups, kernel_size, stride, padding, dilation,
                                offset_scale, remove_center, mask_softmax);
  check_rows(p, shape_of(offset), p.groups * p.points() * 2, "offset");
  check_rows(p, shape_of(mask), p.groups * p.points(), "mask");
  return p;
}

// DCNv4: both are in packed rows.
inline Problem make_packed_problem(const Tensor& input, const Tensor& offset_mask, int64_t groups,
                                   const Pair& kernel_size, const Pair& stride, const Pair& padding,
                                   const Pair& dilation, double offset_scale, bool remove_center) {
  const Problem p = make_window(shape_of(input), groups, kernel_size, stride, padding, dilation,
                                offset_scale, remove_center, false);
  check_rows(p, shape_of(offset_mask), p.row_width(), "offset_mask");
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
