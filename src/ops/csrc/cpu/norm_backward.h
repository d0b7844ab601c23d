// GELU of a sum with a bias, and the gradients of LayerNorm and GELU. Rows are pixels; sums over rows
// are added to.
#pragma once

#include "norm.h"

namespace internimage::cpu::CPU_CAPABILITY {

INTERNIMAGE_INLINE inline void add_to(float* sum, const Float& value, int64_t count) {
  store(load(sum, count) + value, sum, count);
}

template <typename S>
void bias_gelu(const Gelu<S>& call, int64_t begin, int64_t end) {
  for (int64_t i = begin * call.channels; i < end * call.channels; i += call.channels) {
    for_channels(call.channels, [&](int64_t c, int64_t count) INTERNIMAGE_INLINE {
      const Float x = load(call.input + i + c, count) + load(call.bias + c, count);
      store(gelu(x), call.output + i + c, count);
    });
  }
}

template <typename S>
void bias_gelu_backward(const Gelu<S>& call, int64_t begin, int64_t end, float* sums) {
  for (int64_t i = begin * call.channels; i < end * call.channels; i += call.channels) {
    for_channels(call.channels, [&](int64_t c, int64_t count) INTERNIMAGE_INLINE {
      const Float x = load(call.input + i + c, count) + load(call.bias + c, count);
      const Float grad = load(call.grad + i + c, count) * gelu_slope(x);
      store(grad, call.output + i + c, count);
      add_to(sums + c, grad, count);
    });
  }
}

// sums: of the gradients of weight and bias, [2][channel].
template <typename S, bool kGelu>
void norm_backward_rows(const NormBackward<S>& call, int64_t begin, int64_t end, float* sums) {
  const Norm& norm = call.norm;
  const int64_t channels = norm.channels;
  const auto size = static_cast<float>(channels);
  const Array<float> scaled(kRows * channels);  // gradients of the result times the weight
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t count_rows = std::min(kRows, end - first);
    const S* in = call.input + first * channels;
    const S* grads = call.grad + first * channels;
    const Rows of(norm, in, count_rows);
    float mean_grad[kRows], mean_product[kRows];
    for (int64_t r = 0; r < count_rows; ++r) {
      const Float mean(of.mean[r]), scale(of.scale[r]);
      Float sum(0), product(0);
      for_channels(channels, [&](int64_t c, int64_t count) INTERNIMAGE_INLINE {
        const Float x = (load(in + r * channels + c, count) - mean) * scale;
        const Float weight = load(norm.weight + c, count);
        Float grad = load(grads + r * channels + c, count);
        if constexpr (kGelu) {
          grad = grad * gelu_slope(at::vec::fmadd(x, weight, load(norm.bias + c, count)));
        }
        add_to(sums + c, grad * x, count);
        add_to(sums + channels + c, grad, count);
        grad = grad * weight;
        store(grad, scaled.data + r * channels + c, count);
        sum += grad;
        product = at::vec::fmadd(grad, x, product);
      });
      mean_grad[r] = lane_sum<float>(sum) / size;
      mean_product[r] = lane_sum<float>(product) / size;
    }
    for (int64_t r = 0; r < count_rows; ++r) {
      const Float mean(of.mean[r]), scale(of.scale[r]);
      for_channels(channels, [&](int64_t c, int64_t count) INTERNIMAGE_INLINE {
        const int64_t at = r * channels + c;
        const Float x = (load(in + at, count) - mean) * scale;
        Float grad = load(scaled.data + at, count) - Float(mean_grad[r]);
        grad = at::vec::fnmadd(x, Float(mean_product[r]), grad) * scale;
        if (call.residual != nullptr) grad += load(call.residual + first * channels + at, count);
        store(grad, call.output + first * channels + at, count);
      });
    }
  }
}

template <typename S>
void norm_backward(const NormBackward<S>& call, int64_t begin, int64_t end, float* sums) {
  call.gelu ? norm_backward_rows<S, true>(call, begin, end, sums)
            : norm_backward_rows<S, false>(call, begin, end, sums);
}

}  // namespace internimage::cpu::CPU_CAPABILITY
