// internimage::cpu_block, a block of InternImage for inference, on the LibTorch stable ABI.
#include <algorithm>
#include <vector>

#include "../binding.h"
#ifdef INTERNIMAGE_X86
#include "features.h"
#endif
#include "kernels.h"

namespace internimage::cpu {
namespace {

using torch::headeronly::ScalarType;

// Whether this processor has kernels, and the instructions that oneDNN would use are not faster.
bool has_kernels(ScalarType dtype) {
  if (dtype == ScalarType::Float) return active_kernels().block_f32.finish != nullptr;
#ifdef INTERNIMAGE_X86
  static const Features features = x86_features();
  return dtype == ScalarType::BFloat16 && active_kernels().block_bf16.finish != nullptr &&
         features.avx512_bf16 && !features.amx_bf16;
#else
  return false;
#endif
}

bool can_run_block(const Tensor x) { return has_kernels(x.scalar_type()); }

// Reads the tensors of a block in their order, and checks their sizes.
template <typename S>
class Reader {
 public:
  Reader(const std::vector<Tensor>& tensors, ScalarType dtype)
      : tensors_(tensors), dtype_(dtype) {}

  // Float values, or null if an empty tensor stands for none.
  const float* floats(int64_t count, bool is_optional = false) {
    const Tensor& t = next();
    if (is_optional && t.numel() == 0) return nullptr;
    check(t, ScalarType::Float, count);
    return t.const_data_ptr<float>();
  }

  Norm norm(int64_t channels, double eps, bool is_optional = true) {
    const float* weight = floats(channels, is_optional);
    const float* bias = floats(channels, is_optional);
    STD_TORCH_CHECK((weight == nullptr) == (bias == nullptr), "a norm needs weight and bias");
    return {channels, weight, bias, static_cast<float>(eps)};
  }

  Product<S> product(int64_t inner, int64_t columns) {
    const int64_t padded = (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
    const Tensor& weight = next();
    check(weight, dtype_, padded * inner);
    return {inner, columns, static_cast<const S*>(weight.const_data_ptr()), floats(padded)};
  }

 private:
  const Tensor& next() { return tensors_.at(at_++); }

  static void check(const Tensor& t, ScalarType dtype, int64_t count) {
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous() && t.numel() == count,
                    "a weight of the block does not have the dtype or the size that it must have");
  }

  const std::vector<Tensor>& tensors_;
  const ScalarType dtype_;
  size_t at_ = 0;
};

template <typename S>
Tensor run(const BlockKernels<S>& kernels, const Tensor& x, const std::vector<Tensor>& tensors,
           int64_t groups, Pair kernel, int64_t hidden, double offset_scale, bool remove_center,
           bool has_gate, double eps) {
  const int64_t channels = x.size(3);
  const Pair ones = {1, 1}, padding = {kernel[0] / 2, kernel[0] / 2};
  Block<S> block{};
  block.sampling = make_window(x, groups, {kernel[0], kernel[0]}, ones, padding, ones,
                               offset_scale, remove_center, true);
  block.channels = channels;
  block.has_gate = has_gate;
  Reader<S> reader(tensors, x.scalar_type());
  block.norm1 = reader.norm(channels, eps);
  block.last1 = reader.norm(channels, eps);
  block.norm2 = reader.norm(channels, eps);
  block.last2 = reader.norm(channels, eps);
  block.depthwise = {x.size(1), x.size(2), kernel[1], nullptr,
                     reader.floats(kernel[1] * kernel[1] * channels), reader.floats(channels),
                     {}, nullptr};
  block.depthwise.norm = reader.norm(channels, eps, false);
  block.input_proj = reader.product(channels, channels);
  block.points = reader.product(channels, groups * (3 * block.sampling.points() + has_gate));
  block.output_proj = reader.product(channels, channels);
  block.fc1 = reader.product(channels, hidden);
  block.fc2 = reader.product(hidden, channels);
  Tensor normed = torch::stable::empty_like(x), values = torch::stable::empty_like(x);
  Tensor out = torch::stable::empty_like(x);
  block.input = static_cast<const S*>(x.const_data_ptr());
  block.normed = static_cast<S*>(normed.mutable_data_ptr());
  block.values = static_cast<S*>(values.mutable_data_ptr());
  block.output = static_cast<S*>(out.mutable_data_ptr());
  // Pieces of a multiple of the rows that are multiplied together.
  constexpr int64_t unit = kTileRows;
  const int64_t rows = x.size(0) * x.size(1) * x.size(2), units = (rows + unit - 1) / unit;
  const auto in_units = [&](const auto& kernel_of) {
    torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
      kernel_of(block, begin * unit, std::min(rows, end * unit));
    });
  };
  in_units(kernels.project);
  in_units(kernels.finish);
  return out;
}

Tensor cpu_block(const Tensor x, std::vector<Tensor> tensors, int64_t groups, Pair kernel,
                 int64_t hidden, double offset_scale, bool remove_center, bool has_gate,
                 double eps) {
  STD_TORCH_CHECK(has_kernels(x.scalar_type()), "this processor has no kernel of a block");
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous() && x.size(3) % 16 == 0 && hidden % 16 == 0,
                  "the feature map must be (N, H, W, C), contiguous, with C a multiple of 16");
  STD_TORCH_CHECK(tensors.size() == 22, "a block has 22 tensors");
  check_pair(kernel, 1, "kernel");
  STD_TORCH_CHECK(kernel[0] % 2 == 1 && kernel[1] % 2 == 1, "the kernels must be odd");
  const auto with = [&](const auto& kernels) {
    return run(kernels, x, tensors, groups, kernel, hidden, offset_scale, remove_center, has_gate,
               eps);
  };
  return x.scalar_type() == ScalarType::Float ? with(active_kernels().block_f32)
                                              : with(active_kernels().block_bf16);
}

}  // namespace
}  // namespace internimage::cpu

STABLE_TORCH_LIBRARY_IMPL(internimage, CPU, m) {
  m.impl("cpu_block", TORCH_BOX(&internimage::cpu::cpu_block));
  m.impl("cpu_can_run_block", TORCH_BOX(&internimage::cpu::can_run_block));
}
