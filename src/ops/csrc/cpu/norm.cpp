// internimage::cpu_layer_norm and internimage::cpu_depthwise_norm_gelu, on the LibTorch stable
// ABI. They have no gradients.
#include <algorithm>
#include <type_traits>

#include "../binding.h"
#include "kernels.h"

namespace internimage::cpu {
namespace {

using torch::headeronly::ScalarType;

// Minimum number of values per thread.
constexpr int64_t kNormValues = 1 << 15;

void check_norm(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "the values must be float32 or bfloat16");
  STD_TORCH_CHECK(x.dim() > 0 && x.is_contiguous(), "the values must be contiguous");
  for (const Tensor* t : {&weight, &bias}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->dim() == 1 && t->is_contiguous() &&
                        t->size(0) == x.size(x.dim() - 1),
                    "weight and bias must be float32, one value per channel");
  }
}

Norm make_norm(const Tensor& weight, const Tensor& bias, double eps) {
  return {weight.size(0), weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
          static_cast<float>(eps)};
}

// Calls run(pointer to values, pointer to results, kernels) for float32 or bfloat16.
template <typename Run>
Tensor by_storage(const Tensor& x, const Run& run) {
  Tensor out = torch::stable::empty_like(x);
  if (x.scalar_type() == ScalarType::Float) {
    run(x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), active_kernels().norm_f32);
  } else {
    run(static_cast<const uint16_t*>(x.const_data_ptr()),
        static_cast<uint16_t*>(out.mutable_data_ptr()), active_kernels().norm_bf16);
  }
  return out;
}

Tensor layer_norm(const Tensor x, const Tensor weight, const Tensor bias, double eps,
                  bool gelu) {
  check_norm(x, weight, bias);
  const Norm norm = make_norm(weight, bias, eps);
  return by_storage(x, [&](auto* in, auto* out, const auto& kernels) {
    const int64_t c = std::max<int64_t>(1, norm.channels);
    torch::stable::parallel_for(0, x.numel() / c, std::max<int64_t>(1, kNormValues / c),
                                [&](int64_t begin, int64_t end) {
                                  kernels.norm(norm, in + begin * c, out + begin * c, end - begin,
                                               gelu);
                                });
  });
}

Tensor depthwise_norm_gelu(const Tensor x, const Tensor weight, const Tensor bias,
                           const Tensor norm_weight, const Tensor norm_bias, double eps) {
  check_norm(x, norm_weight, norm_bias);
  check_norm(x, bias, bias);
  STD_TORCH_CHECK(x.dim() == 4, "the feature map must have four axes");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() == 3 &&
                      weight.is_contiguous() && weight.size(0) == weight.size(1) &&
                      weight.size(0) % 2 == 1 && weight.size(2) == x.size(3),
                  "the weight must be float32, (kernel, kernel, channels), with an odd kernel");
  return by_storage(x, [&](auto* in, auto* out, const auto& kernels) {
    using S = std::remove_pointer_t<decltype(out)>;
    const Depthwise<S> call{x.size(1),
                            x.size(2),
                            weight.size(0),
                            in,
                            weight.const_data_ptr<float>(),
                            bias.const_data_ptr<float>(),
                            make_norm(norm_weight, norm_bias, eps),
                            out};
    const int64_t pixels = x.size(0) * x.size(1) * x.size(2);
    const int64_t grain = std::max<int64_t>(1, kNormValues / 8 / std::max<int64_t>(1, x.size(3)));
    torch::stable::parallel_for(0, pixels, grain, [&](int64_t begin, int64_t end) {
      kernels.depthwise(call, begin, end);
    });
  });
}

}  // namespace
}  // namespace internimage::cpu

STABLE_TORCH_LIBRARY_IMPL(internimage, CPU, m) {
  m.impl("cpu_layer_norm", TORCH_BOX(&internimage::cpu::layer_norm));
  m.impl("cpu_depthwise_norm_gelu", TORCH_BOX(&internimage::cpu::depthwise_norm_gelu));
}
