// Sizes of a call from those of its tensors and from the window, for bindings of any framework.
//
// The checks only keep memory accesses in bounds; Python checks arguments with messages for users.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "dcnv3.h"

namespace internimage {

using Pair = std::vector<int64_t>;

inline std::string text_of(const char* text) { return text; }
inline std::string text_of(int64_t number) { return std::to_string(number); }

// Throws an error with the joined parts of its message unless `holds`.
template <typename... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (!holds) throw std::runtime_error((text_of(parts) + ...));
}

inline void check_pair(const Pair& pair, int64_t least, const char* name) {
  // Twice a larger value, or its product with a side of the window, could overflow.
  constexpr int64_t most = int64_t{1} << 30;
  check(pair.size() == 2 && pair[0] >= least && pair[1] >= least && pair[0] <= most &&
            pair[1] <= most,
        name, " must be two integers of at least ", least);
}

// The tensors of the points are not checked yet. `input` is the shape of the values.
inline Problem make_window(const std::vector<int64_t>& input, int64_t groups,
                           const Pair& kernel_size, const Pair& stride, const Pair& padding,
                           const Pair& dilation, double offset_scale, bool remove_center,
                           bool mask_softmax) {
  check_pair(kernel_size, 1, "kernel_size");
  check_pair(stride, 1, "stride");
  check_pair(padding, 0, "padding");
  check_pair(dilation, 1, "dilation");
  check(input.size() == 4, "input must have four axes");
  check(kernel_size[0] <= kMaxPoints + 1 && kernel_size[1] <= kMaxPoints + 1,
        "kernel_size must give 1 to ", kMaxPoints, " points");
  Problem p{};
  p.batch = input[0];
  p.height = input[1];
  p.width = input[2];
  p.channels = input[3];
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
  check(groups >= 1 && p.channels % groups == 0, "groups must divide the channels of input");
  check(p.points() >= 1 && p.points() <= kMaxPoints,
        "kernel_size must give 1 to ", kMaxPoints, " points");
  check(p.height >= 1 && p.width >= 1 && p.out_height >= 1 && p.out_width >= 1,
        "the window does not fit");
  constexpr int64_t limit = int64_t{1} << 31;
  check(p.channels == 0 || p.height * p.width < limit / p.channels,
        "input must have fewer than 2^31 elements per image");
  return p;
}

// The shape of a tensor of the points, whose last axis has `columns` elements.
inline void check_rows(const Problem& p, const std::vector<int64_t>& shape, int64_t columns,
                       const char* name) {
  check(shape == std::vector<int64_t>{p.batch, p.out_height, p.out_width, columns},
        name, " does not have the shape that input and window ask for");
}

}  // namespace internimage
