// Sums of the input gradient in shared memory: a copy of the part of a feature map (of one group)
// that receives most additions of a block.
//
// The sums are integers in a unit chosen per block. Shared memory adds integers in one instruction,
// floats only in a compare-and-swap loop, and integer sums do not depend on the order of the
// additions. Blocks with non-finite gradients use the same memory for float sums.
#pragma once

#include "sampling.cuh"

namespace internimage::cuda {

// The type of the integers, and how floats become integers.
template <typename S>
struct Integer {
  using Type = int;
  using Unsigned = unsigned;
  static constexpr int kSumBits = 30;   // of the largest sum
  static constexpr int kTermBits = 22;  // of the largest addend
  static constexpr int kMostExponent = 120;

  // The sum with 1.5 * 2^23 has the rounded integer in its lowest bits.
  __device__ static __forceinline__ int round_product(float a, float b) {
    constexpr float magic = 12582912;
    return __float_as_int(fmaf(a, b, magic)) - 0x4B400000;
  }
};

template <>
struct Integer<double> {
  using Type = long long;
  using Unsigned = unsigned long long;
  static constexpr int kSumBits = 61;
  static constexpr int kTermBits = 61;
  static constexpr int kMostExponent = 900;

  __device__ static __forceinline__ long long round_product(double a, double b) {
    return llrint(a * b);
  }
};

__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }
__device__ __forceinline__ unsigned long long magnitude(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x)) & ~(1ull << 63);
}
__device__ __forceinline__ float from_magnitude(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double from_magnitude(unsigned long long bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// Bounds of the terms of a block. Magnitudes are compared as integers, so that NaN is the largest.
template <typename S>
struct Bounds {
  typename Integer<S>::Unsigned gradient, weight;  // largest ones
  S total_weight;                                  // of all points

  __device__ __forceinline__ void join(const Bounds& other) {
    gradient = max(gradient, other.gradient);
    weight = max(weight, other.weight);
    total_weight += other.total_weight;
  }
};

template <typename S>
__device__ __forceinline__ Bounds<S> join_warp(Bounds<S> bounds) {
#pragma unroll 1
  for (int i = 1; i < 32; i *= 2) {
    bounds.join({__shfl_xor_sync(kWarp, bounds.gradient, i),
                 __shfl_xor_sync(kWarp, bounds.weight, i),
                 __shfl_xor_sync(kWarp, bounds.total_weight, i)});
  }
  return bounds;
}

// Of all rows of a block; all threads get the same. `scratch` has space for one value per warp.
template <int kVector, typename T>
__device__ Bounds<Sum<T>> measure(const Call<T>& call, const Plan& plan, const Block& block,
                                  const T* gradient, Table<Bounds<Sum<T>>> scratch) {
  using S = Sum<T>;
  // Calls run(output pixel) for row `number`.
  const auto with_row = [&](int number, const auto& run) {
    const int line = quotient(number, plan.tile_columns);
    const int out_x = block.out_x + number - line * static_cast<int>(plan.tile_columns.value);
    if (out_x >= call.out_width) return;
    run(block.image * call.out_pixels + (block.out_y + line) * call.out_width + out_x);
  };
  Bounds<S> bounds{};
  for (int q = threadIdx.x; q < block.rows << plan.log_lanes; q += plan.threads) {
    with_row(q >> plan.log_lanes, [&](int64_t pixel) {
      const T* const values = gradient + pixel * call.channels + block.group * call.group_channels;
      const int lane = q & ((1 << plan.log_lanes) - 1);
      for (int c = lane * kVector; c < call.group_channels; c += kVector << plan.log_lanes) {
        const auto raw = load_raw<kVector>(values + c);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          bounds.gradient = max(bounds.gradient, magnitude(widen<T, kVector>(raw, k)));
        }
      }
    });
  }
  if (call.mask_softmax) {
    // The weights of a row sum to one. Non-finite weights are detected when they are used.
    bounds.weight = magnitude(S(1)) - 1;  // has the exponent of a half
    if (threadIdx.x == 0) bounds.total_weight = static_cast<S>(block.rows);
  } else {
    for (int number = threadIdx.x; number < block.rows; number += plan.threads) {
      with_row(number, [&](int64_t pixel) {
        const int64_t begin = pixel * call.mask.stride + block.group * call.mask.group;
        with_type<T>(call.mask, [&](const auto* values) {
          for (int p = 0; p < call.points; ++p) {
            const S weight = widen(values[begin + p]);
            bounds.weight = max(bounds.weight, magnitude(weight));
            bounds.total_weight += abs(weight);
          }
        });
      });
    }
  }
  bounds = join_warp(bounds);
  if (threadIdx.x % 32 == 0) scratch.put(threadIdx.x / 32, bounds);
  __syncthreads();
  bounds = scratch.get(0);
  for (int warp = 1; warp < plan.warps; ++warp) bounds.join(scratch.get(warp));
  return bounds;
}

// Conversion of floats to integers: gradients are multiplied by one power of two, weights by
// another. The unit is their product, which may be outside the range of floats.
template <typename S>
struct Unit {
  S gradient, weight;
};

// The largest unit with which the sums of a block cannot overflow, even if all its points are in
// one pixel. Weight 0 if the bounds are not finite.
template <typename S>
__device__ __forceinline__ Unit<S> choose_unit(const Bounds<S>& bounds) {
  using I = Integer<S>;
  const S weight = from_magnitude(bounds.weight), total = bounds.total_weight;
  if (!(from_magnitude(bounds.gradient) < INFINITY && total < INFINITY)) return {1, 0};
  int gradient_exponent, weight_exponent, total_exponent;
  frexp(from_magnitude(bounds.gradient), &gradient_exponent);
  frexp(weight, &weight_exponent);
  frexp(total, &total_exponent);
  gradient_exponent = min(max(gradient_exponent, -I::kMostExponent), I::kMostExponent);
  // Gradients are below one after that.
  const int exponent = min(I::kSumBits - total_exponent, I::kTermBits - weight_exponent);
  return {ldexp(S(1), -gradient_exponent),
          ldexp(S(1), min(max(exponent, -I::kMostExponent), I::kMostExponent))};
}

// Places of the corners of a point in a copy.
using Places = Pack<uint16_t, 4>;

template <typename S>
struct SharedCopy {
  using I = typename Integer<S>::Type;

  Table<I> sums;
  int first_y, first_x, height, width;  // part of the image that the copy covers
  int pitch, plane;                     // pixels, with the spare ones
  Unit<S> unit;                         // weight 0: the sums are floats

  // Does not set the sums to zero.
  template <typename T>
  __device__ __forceinline__ SharedCopy(const Call<T>& call, const Copy& copy, const Block& block,
                                        Arena& arena)
      : sums(arena.take<I>(copy.height > 0 ? (copy.pixels + kSpare) * copy.planes * kPlaneChannels : 0)),
        pitch(copy.pitch),
        plane(copy.pixels + kSpare),
        unit{1, 1} {
    const auto clip = [](int first, int size, int limit, int* begin, int* count) {
      *begin = min(max(first, 0), limit);
      *count = max(min(first + size, limit), *begin) - *begin;
    };
    clip(block.out_y * call.stride_h + copy.first_y, copy.reach_y, call.height, &first_y, &height);
    clip(block.out_x * call.stride_w + copy.first_x, copy.reach_x, call.width, &first_x, &width);
  }

  __device__ __forceinline__ bool are_floats() const { return unit.weight == 0; }

  // An empty copy: all additions go to global memory.
  __device__ __forceinline__ void forgo() {
    unit = {1, 1};
    height = 0;
  }

  __device__ __forceinline__ void clear(const Plan& plan, const Copy& copy) const {
    // Sixteen bytes at a time: planes come in pairs.
    using Four = Pack<unsigned, 4>;
    const Table<Four> words{reinterpret_cast<Four*>(sums.data)};
    const int count = plane * copy.planes * kPlaneChannels * sizeof(I) / sizeof(Four);
    for (int i = threadIdx.x; i < count; i += plan.threads) words.put(i, {});
  }

  // Corners in the copy, of a cell with its top left pixel at (y, x): bits as in Cell::is_inside.
  __device__ __forceinline__ int corners(int y, int x) const {
    const auto is_here = [](int i, int size) {
      return static_cast<unsigned>(i) < static_cast<unsigned>(size);
    };
    y -= first_y;
    x -= first_x;
    const int columns = (is_here(x, width) ? 5 : 0) | (is_here(x + 1, width) ? 10 : 0);
    const int lines = (is_here(y, height) ? 3 : 0) | (is_here(y + 1, height) ? 12 : 0);
    return columns & lines;
  }

  // Places of these corners, and spare places in the same banks for the others.
  __device__ __forceinline__ Places find(int y, int x, int wanted) const {
    const int first = (y - first_y) * pitch + x - first_x, spare = plane - kSpare;
    Places places;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int place = first + (c & 1) + (c & 2 ? pitch : 0);
      // The pitch is two modulo four.
      const int other = spare + ((first - spare + c) & (kSpare - 1));
      places.value[c] = static_cast<uint16_t>(wanted >> c & 1 ? place : other);
    }
    return places;
  }

  __device__ __forceinline__ bool has(int place) const { return place < plane - kSpare; }

  // Sums of a channel: those of channel % kPlaneChannels in the plane that contains `first`.
  __device__ __forceinline__ I* address(int first, int channel) const {
    return sums.data + first * plane + channel;
  }

  // Adds products with a factor to the sums of a pixel in the planes from an address; both are in
  // units.
  template <bool kIsInteger>
  __device__ __forceinline__ void add(I* from, int place, const S (&values)[kPlanesAtOnce],
                                      S factor) const {
#pragma unroll
    for (int i = 0; i < kPlanesAtOnce; ++i) {
      I* const to = from + i * plane * kPlaneChannels + place * kPlaneChannels;
      note_shared(to, sizeof(I), 'a');
      if constexpr (kIsInteger) {
        using Unsigned = typename Integer<S>::Unsigned;
        atomicAdd(reinterpret_cast<Unsigned*>(to),
                  static_cast<Unsigned>(Integer<S>::round_product(values[i], factor)));
      } else {
        atomicAdd(reinterpret_cast<S*>(to), values[i] * factor);
      }
    }
  }

  // Calls run(pixel in the image, channel, values of kCount channels) for all sums.
  template <int kCount, typename T, typename Run>
  __device__ __forceinline__ void for_each(const Call<T>& call, const Plan& plan, const Copy& copy,
                                           const Run& run) const {
    constexpr int kParts = kPlaneChannels / kCount;
    using Values = Pack<I, kCount>;
    const S by_weight = are_floats() ? S(1) : 1 / unit.weight, by_gradient = 1 / unit.gradient;
    for (int first = 0; first < call.group_channels; first += kPlaneChannels) {
      const Table<Values> values{reinterpret_cast<Values*>(sums.data + first * plane)};
      for (int i = threadIdx.x; i < (plane - kSpare) * kParts; i += plan.threads) {
        const int y = quotient(i / kParts, copy.pitch_pixels), x = i / kParts - y * pitch;
        const int channel = first + i % kParts * kCount;
        if (y >= height || x >= width || channel >= call.group_channels) continue;
        const Values integers = values.get(i);
        S floats[kCount];
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          floats[k] = are_floats()
                          ? reinterpret_as_float(integers.value[k])
                          : static_cast<S>(integers.value[k]) * by_weight * by_gradient;
        }
        run((first_y + y) * call.width + first_x + x, channel, floats);
      }
    }
  }

 private:
  __device__ static __forceinline__ float reinterpret_as_float(int bits) {
    return __int_as_float(bits);
  }
  __device__ static __forceinline__ double reinterpret_as_float(long long bits) {
    return __longlong_as_double(bits);
  }
};

}  // namespace internimage::cuda
