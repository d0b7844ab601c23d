// The operators of the domain `internimage`, version 1.
#pragma once

#include "runtime.h"

namespace internimage::onnx {

// A block of InternImage in float32: input x (N, H, W, C) and the weights of `BlockWeights` in
// cpu_block.py, of which those of norms may be missing; attributes groups, kernel_size,
// dw_kernel_size, hidden, offset_scale, remove_center, has_gate, eps.
CustomOp block_operator();

// DCNv3 of src/ops/dcnv3.py in float32: inputs input, offset, mask; attributes are its arguments,
// kernel_size, stride, padding and dilation with two integers each.
CustomOp dcnv3_operator();

// DCNv4 of src/ops/dcnv4.py in float32, likewise: inputs input and offset_mask.
CustomOp dcnv4_operator();

}  // namespace internimage::onnx
