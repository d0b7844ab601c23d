// internimage::cpu_block, a block of InternImage for inference, on the LibTorch stable ABI.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "../binding.h"
#include "block_call.h"
#ifdef INTERNIMAGE_X86
#include "features.h"
#endif

namespace internimage::cpu {
namespace {

using torch::headeronly::ScalarType;

// Whether this processor has kernels, and the instructions that oneDNN would use are not faster.
bool has_kernels(ScalarType dtype) {
  if (dtype == ScalarType::Float) return active_kernels().linear.pack != nullptr;  // AVX-512
#ifdef INTERNIMAGE_X86
  static const Features features = x86_features();
  return dtype == ScalarType::BFloat16 && active_kernels().block_bf16.finish != nullptr &&
         features.avx512_bf16 && !features.amx_bf16;
#else
  return false;
#endif
}

bool can_run_block(const Tensor x) { return has_kernels(x.scalar_type()); }

// Weights of a block as tensors.
class Weights {
 public:
  explicit Weights(const std::vector<Tensor>& tensors) : tensors_(tensors) {}

  template <typename T>
  const T* get(int64_t number, int64_t count, bool is_optional) const {
    const Tensor& t = tensors_[number];
    if (is_optional && t.numel() == 0) return nullptr;
    constexpr ScalarType dtype =
        std::is_same_v<T, float> ? ScalarType::Float : ScalarType::BFloat16;
    check(t.scalar_type() == dtype && t.is_contiguous() && t.numel() == count,
          "a weight of the block does not have the dtype or the size that it must have");
    return static_cast<const T*>(t.const_data_ptr());
  }

 private:
  const std::vector<Tensor>& tensors_;
};

template <typename S>
Tensor run(const BlockKernels<S>& kernels, const Tensor& x, const std::vector<Tensor>& tensors,
           const BlockOptions& options) {
  Block<S> block = make_block<S>(shape_of(x), options, Weights(tensors));
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
  check(has_kernels(x.scalar_type()), "this processor has no kernel of a block");
  check(x.is_contiguous(), "the feature map must be contiguous");
  check(tensors.size() == kBlockWeights, "a block has ", kBlockWeights, " tensors");
  check_pair(kernel, 1, "kernel");
  const BlockOptions options{groups,       kernel[0],     kernel[1], hidden,
                             offset_scale, remove_center, has_gate,  eps};
  return x.scalar_type() == ScalarType::Float
             ? run(active_kernels().block_f32, x, tensors, options)
             : run(active_kernels().block_bf16, x, tensors, options);
}

}  // namespace
}  // namespace internimage::cpu

STABLE_TORCH_LIBRARY_IMPL(internimage, CPU, m) {
  m.impl("cpu_block", TORCH_BOX(&internimage::cpu::cpu_block));
  m.impl("cpu_can_run_block", TORCH_BOX(&internimage::cpu::can_run_block));
}
