// Readers of the offsets and weights of a span: `offsets` and `weights` return those of the points
// [q, q + count) of an output pixel, counted over all groups of the span, in the first `count`
// lanes.
#pragma once

#include <algorithm>
#include <utility>

#include "kernels.h"
#include "storage.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Output pixels [first, first + pixels) of the batch, a few groups from `group` on.
struct Span {
  int64_t first, pixels, group, groups;
};

// Because of the offsets, the hardware cannot predict the first access to an input pixel, but the
// window moves down row by row. So each output pixel prefetches the input pixel this many rows
// further down, and the offsets and logits of a later output pixel. A prefetch beyond the end of
// the memory has no effect.
constexpr int64_t kPrefetchRows = 4, kPrefetchPixels = 4;

template <typename T>
INTERNIMAGE_INLINE inline void prefetch(const T* from, int64_t count) {
#ifndef _MSC_VER
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(from + i, 0, 3);
#endif
}

// Vectors of x and of y from (x, y) pairs, which `load(first, count)` reads.
template <typename T, typename Load>
INTERNIMAGE_INLINE inline std::pair<Vec<T>, Vec<T>> load_pairs(int64_t q, int64_t count,
                                                               const Load& load) {
  constexpr int64_t lanes = kLanes<T>;
  if (count == lanes) return at::vec::deinterleave2(load(2 * q, lanes), load(2 * q + lanes, lanes));
  const int64_t rest = 2 * count - lanes;
  return at::vec::deinterleave2(load(2 * q, std::min(lanes, 2 * count)),
                                rest > 0 ? load(2 * q + lanes, rest) : Vec<T>(0));
}

// DCNv3: two tensors. `table`, if not null, has the weights instead, those of a pixel after those of
// the previous one.
template <typename S>
struct SeparateRows {
  using T = Computing<S>;
  const S* offset;
  const S* mask;
  int64_t offset_stride, mask_stride, points;  // points of all groups of the span
  const T* table = nullptr;

  SeparateRows(const Points<S>& from, const Span& span, int64_t group_points)
      : offset(from.offset + span.first * from.offset_stride + span.group * group_points * 2),
        mask(from.mask + span.first * from.mask_stride + span.group * group_points),
        offset_stride(from.offset_stride),
        mask_stride(from.mask_stride),
        points(span.groups * group_points) {}

  INTERNIMAGE_INLINE std::pair<Vec<T>, Vec<T>> offsets(int64_t pixel, int64_t q,
                                                       int64_t count) const {
    const S* row = offset + pixel * offset_stride;
    return load_pairs<T>(q, count, [row](int64_t first, int64_t n) INTERNIMAGE_INLINE {
      return load(row + first, n);
    });
  }

  INTERNIMAGE_INLINE Vec<T> weights(int64_t pixel, int64_t q, int64_t count) const {
    if (table != nullptr) return load(table + pixel * points + q, count);
    return load(mask + pixel * mask_stride + q, count);
  }

  INTERNIMAGE_INLINE void prefetch_pixel(int64_t pixel) const {
    prefetch(offset + pixel * offset_stride, 2 * points);
  }
};

// DCNv4: of each group, the offsets and then the weights. kPoints is their number, or 0.
template <typename S, int kPoints>
struct PackedRows {
  using T = Computing<S>;
  const S* row;
  int64_t stride, groups, group_points;

  PackedRows(const Points<S>& from, const Span& span, int64_t points)
      : row(from.offset + span.first * from.offset_stride + span.group * points * 3),
        stride(from.offset_stride),
        groups(span.groups),
        group_points(points) {}

  INTERNIMAGE_INLINE std::pair<Vec<T>, Vec<T>> offsets(int64_t pixel, int64_t q,
                                                       int64_t count) const {
    const int64_t points = kPoints > 0 ? kPoints : group_points;
    const S* from = row + pixel * stride;
    return load_pairs<T>(q, count, [=, this](int64_t first, int64_t n) INTERNIMAGE_INLINE {
      return gather<2 * kPoints>(from, first, n, 2 * points, points);
    });
  }

  INTERNIMAGE_INLINE Vec<T> weights(int64_t pixel, int64_t q, int64_t count) const {
    const int64_t points = kPoints > 0 ? kPoints : group_points;
    return gather<kPoints>(row + pixel * stride + 2 * points, q, count, points, 2 * points);
  }

  INTERNIMAGE_INLINE void prefetch_pixel(int64_t pixel) const {
    prefetch(row + pixel * stride, 3 * groups * group_points);
  }

 private:
  // Elements [first, first + count) of the values of all groups, each group `length` of them
  // (kLength, if it is known) and a gap. The values of each group that a vector holds are one load;
  // a load starts at most at the last group's values, so that it ends with them.
  template <int kLength>
  INTERNIMAGE_INLINE Vec<T> gather(const S* from, int64_t first, int64_t count, int64_t length,
                                   int64_t gap) const {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t group = first / length, last = groups - 1;
    Vec<T> values = load(from + first + group * gap, count);
    const auto add = [&](int64_t g) INTERNIMAGE_INLINE {
      const Vec<T> other = load(from + first + std::min(g, last) * gap, count);
      values = merge<T>(values, other, std::min(lanes, g * length - first));
    };
    if constexpr (kLength > 0) {
#pragma GCC unroll 8
      for (int64_t i = 1; i < (lanes + kLength - 2) / kLength + 1; ++i) add(group + i);
    } else {
      for (int64_t g = group + 1; g * length < first + count; ++g) add(g);
    }
    return values;
  }
};

}  // namespace internimage::cpu::CPU_CAPABILITY
