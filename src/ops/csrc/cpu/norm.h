// LayerNorm, and depthwise convolution with LayerNorm and GELU, of channels-last feature maps.
// Values are float32, or bfloat16 stored as uint16_t; everything is computed in float32.
#pragma once

#include "tile.h"

namespace internimage::cpu::CPU_CAPABILITY {

// 2 - 2 cdf(|x|) with the distribution function of the standard normal distribution, by the error
// function of Abramowitz and Stegun, 7.1.26, whose error is below 1.5e-7; and exp(-x * x / 2).
struct Tail {
  Float tail, exponential;

  INTERNIMAGE_INLINE explicit Tail(const Float& x) {
    const Float z = x.abs() * Float(0.70710678f);
    const Float t = Float(1) / at::vec::fmadd(z, Float(0.3275911f), Float(1));
    Float p = at::vec::fmadd(t, Float(1.061405429f), Float(-1.453152027f));
    p = at::vec::fmadd(t, p, Float(1.421413741f));
    p = at::vec::fmadd(t, p, Float(-0.284496736f));
    p = at::vec::fmadd(t, p, Float(0.254829592f));
    const Float exponent = at::vec::minimum(z * z, Float(kExpLimit<float>));  // keeps NaN
    exponential = exp_limited<float>(exponent.neg());
    tail = p * t * exponential;
  }

  INTERNIMAGE_INLINE Float gelu(const Float& x) const {
    const Float half = Float(0.5f) * x;
    // x > 0: half * (2 - tail); otherwise half * tail.
    return half * Float::blendv(Float(2) - tail, tail, x < Float(0));
  }

  // Derivative of GELU: cdf(x) + x * density(x).
  INTERNIMAGE_INLINE Float gelu_slope(const Float& x) const {
    const Float cdf = Float(0.5f) * Float::blendv(Float(2) - tail, tail, x < Float(0));
    // Beyond 8, where the exponential is limited, the density is 0 in float32.
    const Float near = at::vec::maximum(at::vec::minimum(x, Float(8)), Float(-8));
    return at::vec::fmadd(near * exponential, Float(0.39894228f), cdf);
  }
};

INTERNIMAGE_INLINE inline Float gelu(const Float& x) { return Tail(x).gelu(x); }

// GELU whose absolute error is below 1e-4, which bfloat16 does not resolve: x * cdf(x), and the
// distribution function is 0.5 plus an odd polynomial up to 4.2, fitted with the smallest largest
// error of x * cdf(x) among those that end at 0 and 1.
INTERNIMAGE_INLINE inline Float quick_gelu(const Float& x) {
  // minimum() and maximum() keep NaN.
  const Float near = at::vec::maximum(at::vec::minimum(x, Float(4.2f)), Float(-4.2f));
  const Float square = near * near;
  Float p = at::vec::fmadd(square, Float(-9.017534496891244e-10f), Float(7.941341806372293e-08f));
  p = at::vec::fmadd(p, square, Float(-3.0379328563867602e-06f));
  p = at::vec::fmadd(p, square, Float(6.6890730522573e-05f));
  p = at::vec::fmadd(p, square, Float(-0.000950658053625375f));
  p = at::vec::fmadd(p, square, Float(0.009298233315348625f));
  p = at::vec::fmadd(p, square, Float(-0.06552822142839432f));
  p = at::vec::fmadd(p, square, Float(0.3984659016132355f));
  return x * at::vec::fmadd(near, p, Float(0.5f));
}

// GELU of a result that is stored as S.
template <typename S>
INTERNIMAGE_INLINE inline Float activate(const Float& x) {
  return std::is_same_v<S, uint16_t> ? quick_gelu(x) : gelu(x);
}

INTERNIMAGE_INLINE inline Float gelu_slope(const Float& x) { return Tail(x).gelu_slope(x); }

// Calls body(c, count) for each vector of channels.
template <typename Body>
INTERNIMAGE_INLINE inline void for_channels(int64_t channels, const Body& body) {
  constexpr int64_t lanes = kLanes<float>;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) body(c, lanes);
  if (c < channels) body(c, channels - c);
}

// Sum over the channels of a row.
template <typename S>
INTERNIMAGE_INLINE inline float channel_sum(const S* row, int64_t channels) {
  Float sum(0);
  for_channels(channels,
               [&](int64_t c, int64_t count) INTERNIMAGE_INLINE { sum += load(row + c, count); });
  return lane_sum<float>(sum);
}

// Inverse of the standard deviation of a row.
template <typename S>
INTERNIMAGE_INLINE inline float row_scale(const Norm& norm, const S* row, float mean) {
  Float squares(0);
  for_channels(norm.channels, [&](int64_t c, int64_t count) INTERNIMAGE_INLINE {
    const Float centred = Float::set(Float(0), load(row + c, count) - Float(mean), count);
    squares = at::vec::fmadd(centred, centred, squares);
  });
  const float variance = lane_sum<float>(squares) / static_cast<float>(norm.channels);
  return 1 / std::sqrt(variance + norm.eps);
}

// Writes the norm of a row; kGelu: and activates the result.
template <typename S, bool kGelu, typename Row>
INTERNIMAGE_INLINE inline void normalise_row(const Norm& norm, const Row* row, float mean,
                                             float scale, S* out) {
  for_channels(norm.channels, [&](int64_t c, int64_t count) INTERNIMAGE_INLINE {
    const Float value = (load(row + c, count) - Float(mean)) * Float(scale);
    const Float result =
        at::vec::fmadd(value, load(norm.weight + c, count), load(norm.bias + c, count));
    store(kGelu ? activate<S>(result) : result, out + c, count);
  });
}

// Rows whose sums are computed one after the other before any is used, since each has a latency.
constexpr int64_t kRows = 8;

struct Rows {
  float mean[kRows], scale[kRows];

  template <typename S>
  INTERNIMAGE_INLINE Rows(const Norm& norm, const S* in, int64_t count) {
    const auto size = static_cast<float>(norm.channels);
    for (int64_t r = 0; r < count; ++r) {
      mean[r] = channel_sum(in + r * norm.channels, norm.channels) / size;
    }
    for (int64_t r = 0; r < count; ++r) {
      scale[r] = row_scale(norm, in + r * norm.channels, mean[r]);
    }
  }
};

template <typename S, bool kGelu>
void norm_all_rows(const Norm& norm, const S* in, S* out, int64_t rows) {
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first), begin = first * norm.channels;
    const Rows of(norm, in + begin, count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = begin + r * norm.channels;
      normalise_row<S, kGelu>(norm, in + at, of.mean[r], of.scale[r], out + at);
    }
  }
}

template <typename S>
void norm_rows(const Norm& norm, const S* in, S* out, int64_t rows, bool gelu) {
  gelu ? norm_all_rows<S, true>(norm, in, out, rows) : norm_all_rows<S, false>(norm, in, out, rows);
}

// kVecs vectors of channels of one output pixel; the last may have fewer lanes.
template <int kVecs, typename S>
INTERNIMAGE_INLINE inline Float convolve(const Depthwise<S>& call, const S* centre, int64_t c,
                                         int64_t count, const int64_t* y, const int64_t* x,
                                         float* row) {
  constexpr int64_t lanes = kLanes<float>;
  const int64_t channels = call.norm.channels, half = call.kernel / 2;
  Float sum[kVecs];
  for (int v = 0; v < kVecs; ++v) sum[v] = load(call.bias + c + v * lanes, count);
  for (int64_t i = y[0]; i <= y[1]; ++i) {
    for (int64_t j = x[0]; j <= x[1]; ++j) {
      const S* from = centre + (i * call.width + j) * channels + c;
      const float* weight =
          call.weight + ((i + half) * call.kernel + j + half) * channels + c;
      for (int v = 0; v < kVecs; ++v) {
        sum[v] = at::vec::fmadd(load(from + v * lanes, count), load(weight + v * lanes, count),
                                sum[v]);
      }
    }
  }
  Float total(0);
  for (int v = 0; v < kVecs; ++v) {
    sum[v].store(row + c + v * lanes, count);
    total += Float::set(Float(0), sum[v], count);
  }
  return total;
}

template <typename S>
void depthwise_norm_gelu(const Depthwise<S>& call, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<float>;
  const int64_t channels = call.norm.channels, half = call.kernel / 2;
  const Array<float> row(channels);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t px = pixel % call.width, py = pixel / call.width % call.height;
    const int64_t x[2] = {-std::min(half, px), std::min(half, call.width - 1 - px)};
    const int64_t y[2] = {-std::min(half, py), std::min(half, call.height - 1 - py)};
    const S* centre = call.input + pixel * channels;
    Float sums(0);
    int64_t c = 0;
    for (; c + 4 * lanes <= channels; c += 4 * lanes) {
      sums += convolve<4>(call, centre, c, lanes, y, x, row.data);
    }
    for (; c < channels; c += lanes) {
      sums += convolve<1>(call, centre, c, std::min(lanes, channels - c), y, x, row.data);
    }
    const float mean = lane_sum<float>(sums) / static_cast<float>(channels);
    normalise_row<S, true>(call.norm, row.data, mean, row_scale(call.norm, row.data, mean),
                           call.output + pixel * channels);
  }
}

}  // namespace internimage::cpu::CPU_CAPABILITY
