// LayerNorm and GELU with what surrounds them, and internimage::cpu_depthwise_norm_gelu, which has
// no gradients; on the LibTorch stable ABI.
#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../binding.h"
#include "kernels.h"

namespace internimage::cpu {
namespace {

using torch::headeronly::ScalarType;

// Minimum number of values per thread.
constexpr int64_t kNormValues = 1 << 15;
// As in fused.py, which makes empty sums for the compiler.
constexpr int64_t kMaxPrograms = 1024, kRowsOfProgram = 32;

void check_values(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "the values must be float32 or bfloat16");
  STD_TORCH_CHECK(x.dim() > 0 && x.is_contiguous(), "the values must be contiguous");
}

void check_gradient(const Tensor& grad, const Tensor& x) {
  check_values(grad);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.numel() == x.numel(),
                  "a gradient must have the dtype and the shape of the values");
}

// One float32 value per channel.
Tensor channel_values(const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == x.size(x.dim() - 1),
                  "weight and bias must have one value per channel");
  return torch::stable::contiguous(
      t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float));
}

// Weight and bias of a norm, and the tensors that own their memory.
struct OwnedNorm {
  Tensor weight, bias;
  Norm norm;

  OwnedNorm(const Tensor& x, const Tensor& weight_, const Tensor& bias_, double eps)
      : weight(channel_values(weight_, x)),
        bias(channel_values(bias_, x)),
        norm{weight.size(0), weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
             static_cast<float>(eps)} {}
};

template <typename S>
const S* pointer_to(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}

// Calls run(pointer to results, kernels) for float32 or bfloat16; the results are like `x`.
template <typename Run>
Tensor by_storage(const Tensor& x, const Run& run) {
  check_values(x);
  Tensor out = torch::stable::empty_like(x);
  if (x.scalar_type() == ScalarType::Float) {
    run(out.mutable_data_ptr<float>(), active_kernels().norm_f32);
  } else {
    run(static_cast<uint16_t*>(out.mutable_data_ptr()), active_kernels().norm_bf16);
  }
  return out;
}

// Calls run(begin, end) for rows of x.
template <typename Run>
void for_rows(const Tensor& x, const Run& run) {
  const int64_t c = std::max<int64_t>(1, x.size(x.dim() - 1));
  torch::stable::parallel_for(0, x.numel() / c, std::max<int64_t>(1, kNormValues / c), run);
}

// Calls run(begin, end, sums) for rows of x; returns the partial sums, (programs, sums, channels).
// Their number depends only on the shape.
template <typename Run>
void for_programs(const Tensor& x, Tensor& sums, const Run& run) {
  const int64_t rows = x.numel() / std::max<int64_t>(1, x.size(x.dim() - 1));
  const int64_t programs = sums.size(0), size = sums.numel() / std::max<int64_t>(1, programs);
  float* all = sums.mutable_data_ptr<float>();
  const int64_t values = std::max<int64_t>(1, x.numel() / std::max<int64_t>(1, programs));
  torch::stable::parallel_for(
      0, programs, std::max<int64_t>(1, kNormValues / values), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          run(p * rows / programs, (p + 1) * rows / programs, all + p * size);
        }
      });
}

int64_t count_programs(const Tensor& x) {
  const int64_t rows = x.numel() / std::max<int64_t>(1, x.size(x.dim() - 1));
  return std::min(kMaxPrograms, (rows + kRowsOfProgram - 1) / kRowsOfProgram);
}

Tensor layer_norm(const Tensor x, const Tensor weight, const Tensor bias, double eps, bool gelu) {
  const OwnedNorm owned(x, weight, bias, eps);
  return by_storage(x, [&](auto* out, const auto& kernels) {
    const auto* in = pointer_to<std::remove_pointer_t<decltype(out)>>(x);
    const int64_t c = owned.norm.channels;
    for_rows(x, [&](int64_t begin, int64_t end) {
      kernels.norm(owned.norm, in + begin * c, out + begin * c, end - begin, gelu);
    });
  });
}

std::tuple<Tensor, Tensor> layer_norm_backward(const Tensor grad,
                                               const std::optional<Tensor> residual, const Tensor x,
                                               const Tensor weight, const Tensor bias, double eps,
                                               bool gelu) {
  const OwnedNorm owned(x, weight, bias, eps);
  check_gradient(grad, x);
  if (residual.has_value()) check_gradient(*residual, x);
  Tensor sums = torch::stable::new_zeros(x, {count_programs(x), 2, owned.norm.channels},
                                         ScalarType::Float);
  Tensor grad_x = by_storage(x, [&](auto* out, const auto& kernels) {
    using S = std::remove_pointer_t<decltype(out)>;
    const NormBackward<S> call{owned.norm,
                               gelu,
                               pointer_to<S>(grad),
                               residual.has_value() ? pointer_to<S>(*residual) : nullptr,
                               pointer_to<S>(x),
                               out};
    for_programs(x, sums, [&](int64_t begin, int64_t end, float* some) {
      kernels.norm_backward(call, begin, end, some);
    });
  });
  return std::tuple(std::move(grad_x), std::move(sums));
}

Tensor bias_gelu(const Tensor x, const Tensor bias) {
  const Tensor b = channel_values(bias, x);
  return by_storage(x, [&](auto* out, const auto& kernels) {
    using S = std::remove_pointer_t<decltype(out)>;
    const Gelu<S> call{b.size(0), nullptr, pointer_to<S>(x), b.const_data_ptr<float>(), out};
    for_rows(x, [&](int64_t begin, int64_t end) { kernels.bias_gelu(call, begin, end); });
  });
}

std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor grad, const Tensor x,
                                              const Tensor bias) {
  const Tensor b = channel_values(bias, x);
  check_gradient(grad, x);
  Tensor sums = torch::stable::new_zeros(x, {count_programs(x), b.size(0)}, ScalarType::Float);
  Tensor grad_x = by_storage(x, [&](auto* out, const auto& kernels) {
    using S = std::remove_pointer_t<decltype(out)>;
    const Gelu<S> call{b.size(0), pointer_to<S>(grad), pointer_to<S>(x), b.const_data_ptr<float>(),
                       out};
    for_programs(x, sums, [&](int64_t begin, int64_t end, float* some) {
      kernels.bias_gelu_backward(call, begin, end, some);
    });
  });
  return std::tuple(std::move(grad_x), std::move(sums));
}

Tensor depthwise_norm_gelu(const Tensor x, const Tensor weight, const Tensor bias,
                           const Tensor norm_weight, const Tensor norm_bias, double eps) {
  STD_TORCH_CHECK(x.dim() == 4, "the feature map must have four axes");
  const OwnedNorm owned(x, norm_weight, norm_bias, eps);
  const Tensor b = channel_values(bias, x);
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() == 3 &&
                      weight.is_contiguous() && weight.size(0) == weight.size(1) &&
                      weight.size(0) % 2 == 1 && weight.size(2) == x.size(3),
                  "the weight must be float32, (kernel, kernel, channels), with an odd kernel");
  return by_storage(x, [&](auto* out, const auto& kernels) {
    using S = std::remove_pointer_t<decltype(out)>;
    const Depthwise<S> call{x.size(1),
                            x.size(2),
                            weight.size(0),
                            pointer_to<S>(x),
                            weight.const_data_ptr<float>(),
                            b.const_data_ptr<float>(),
                            owned.norm,
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
  m.impl("layer_norm", TORCH_BOX(&internimage::cpu::layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&internimage::cpu::layer_norm_backward));
  m.impl("bias_gelu", TORCH_BOX(&internimage::cpu::bias_gelu));
  m.impl("bias_gelu_backward", TORCH_BOX(&internimage::cpu::bias_gelu_backward));
  m.impl("cpu_depthwise_norm_gelu", TORCH_BOX(&internimage::cpu::depthwise_norm_gelu));
}
