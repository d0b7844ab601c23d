// The points of a span, in vectors.
//
// A row is the P points of a group of an output pixel. The tables have first the octets of all
// rows, eight consecutive points each. The rest of each row follows: the first such point of all
// rows, then the second, and so on. So every vector holds whole octets, a part of one, or the same
// point of consecutive rows; 3 x 3 windows fill the vectors of AVX-512, however the values of the
// groups lie in memory.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels.h"
#include "storage.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Padded so that the tables, used side by side, do not fall on the same cache sets.
constexpr int64_t kTableSize = kMaxPoints + 144;

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

// Output pixels [first, first + pixels) of the batch, in one row of an image from (x, y) on, and a
// few groups from `group` on.
struct Span {
  int64_t first, pixels, group, groups;
  int64_t image, x, y;

  int64_t rows() const { return pixels * groups; }
};

// Where the points of at most `rows` rows are in the tables. kPoints is their number per row, or 0.
template <int kPoints>
struct Layout {
  int64_t points, rest_begin, rest_stride;

  Layout(int64_t points, int64_t rows)
      : points(points), rest_begin(whole_vectors(rows * 8 * octets())),
        rest_stride(whole_vectors(rows)) {}

  // Of each row.
  int64_t octets() const { return (kPoints > 0 ? kPoints : points) / 8; }
  int64_t rest() const { return (kPoints > 0 ? kPoints : points) % 8; }

  INTERNIMAGE_INLINE int64_t slot(int64_t row, int64_t point) const {
    const int64_t whole = 8 * octets();
    return point < whole ? whole * row + point : rest_begin + (point - whole) * rest_stride + row;
  }

  // Calls body(in_octets, slot) for the vectors of `rows` rows. The last lanes may be of no row.
  template <int64_t kWidth, typename Body>
  INTERNIMAGE_INLINE void for_each_vector(int64_t rows, const Body& body) const {
    for (int64_t t = 0; t < rows * 8 * octets(); t += kWidth) body(std::true_type{}, t);
    for (int64_t k = 0; k < rest(); ++k) {
      const int64_t first = rest_begin + k * rest_stride;
      for (int64_t row = 0; row < rows; row += kWidth) body(std::false_type{}, first + row);
    }
  }

  // The widest vectors have 16 lanes.
  static int64_t whole_vectors(int64_t count) { return (count + 15) / 16 * 16; }
};

// Reads offsets and weights of a span by vectors of the layout, or writes them (S is not const).
// Weights have a type of their own because those after a softmax are not stored as S.
template <typename S, typename W, int kPoints>
class PointRows {
 public:
  using T = Computing<std::remove_const_t<S>>;
  using V = Vec<T>;

  // For spans of up to `pixels` pixels.
  PointRows(const Values<S>& offset, const Values<W>& weight, int64_t pixels, int64_t groups,
            const Layout<kPoints>& layout)
      : offset_(offset), weight_(weight), layout_(layout) {
    int64_t octet = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t k = 0; k < layout.octets(); ++k, ++octet) {
          offset_of_octet_[octet] = offset.distance(i, g) + 16 * k;
          weight_of_octet_[octet] = weight.distance(i, g) + 8 * k;
        }
      }
    }
  }

  // Moves to a span, whose rows begin at `offset` and `weight`.
  INTERNIMAGE_INLINE void move(S* offset, W* weight, const Span& span) {
    offset_.data = offset;
    weight_.data = weight;
    span_ = span;
    last_ = span.rows() * layout_.octets() - 1;
    if constexpr (std::is_const_v<S>) {
      for_each_rest([](S* from, W* weight, T* x, T* y, T* m) INTERNIMAGE_INLINE {
        *x = value_of(from[0]);
        *y = value_of(from[1]);
        *m = value_of(*weight);
      });
      // The lanes of the last vector that are of no row.
      for (int64_t row = span.rows(); row % 16 != 0; ++row) {
        for (int64_t k = 0; k < layout_.rest(); ++k) {
          const int64_t at = k * layout_.rest_stride + row;
          rest_offset_[2 * at] = rest_offset_[2 * at + 1] = rest_weight_[at] = T(0);
        }
      }
    }
  }

  INTERNIMAGE_INLINE std::pair<V, V> offsets(std::true_type, int64_t slot) const {
    const int64_t octet = slot >> 3;
    const S* first = offset_octet(octet) + 2 * (slot & 7);
    const S* second = kLanes<T> > 8 ? offset_octet(octet + 1) : first + kLanes<T>;
    return at::vec::deinterleave2(load(first, kLanes<T>), load(second, kLanes<T>));
  }

  INTERNIMAGE_INLINE std::pair<V, V> offsets(std::false_type, int64_t slot) const {
    const T* from = rest_offset_ + 2 * (slot - layout_.rest_begin);
    return at::vec::deinterleave2(V::loadu(from), V::loadu(from + kLanes<T>));
  }

  INTERNIMAGE_INLINE V weights(std::true_type, int64_t slot) const {
    const int64_t octet = slot >> 3;
    return load_octets(weight_octet(octet), weight_octet(octet + 1), slot & 7);
  }

  INTERNIMAGE_INLINE V weights(std::false_type, int64_t slot) const {
    return V::loadu(rest_weight_ + slot - layout_.rest_begin);
  }

  INTERNIMAGE_INLINE void set_offsets(std::true_type, int64_t slot, const V& x, const V& y) {
    const auto [first, second] = at::vec::interleave2(x, y);
    const int64_t octet = slot >> 3;
    S* to = offset_octet(octet) + 2 * (slot & 7);
    first.store(to);
    if (kLanes<T> <= 8) {
      second.store(to + kLanes<T>);
    } else if (octet < last_) {
      second.store(offset_octet(octet + 1));
    }
  }

  INTERNIMAGE_INLINE void set_offsets(std::false_type, int64_t slot, const V& x, const V& y) {
    const auto [first, second] = at::vec::interleave2(x, y);
    T* to = rest_offset_ + 2 * (slot - layout_.rest_begin);
    first.store(to);
    second.store(to + kLanes<T>);
  }

  INTERNIMAGE_INLINE void set_weights(std::true_type, int64_t slot, const V& value) {
    const int64_t octet = slot >> 3;
    store_octets(value, weight_octet(octet) + (slot & 7),
                 octet < last_ ? weight_octet(octet + 1) : nullptr);
  }

  INTERNIMAGE_INLINE void set_weights(std::false_type, int64_t slot, const V& value) {
    value.store(rest_weight_ + slot - layout_.rest_begin);
  }

  // After everything is set.
  INTERNIMAGE_INLINE void write_rest() {
    for_each_rest([](S* to, W* weight, T* x, T* y, T* m) INTERNIMAGE_INLINE {
      to[0] = *x;
      to[1] = *y;
      *weight = *m;
    });
  }

 private:
  // Those after the last octet, which fill a vector, are the last one.
  INTERNIMAGE_INLINE S* offset_octet(int64_t octet) const {
    return offset_.data + offset_of_octet_[std::min(octet, last_)];
  }
  INTERNIMAGE_INLINE W* weight_octet(int64_t octet) const {
    return weight_.data + weight_of_octet_[std::min(octet, last_)];
  }

  // Points that are in no octet: in memory, and here.
  template <typename Body>
  INTERNIMAGE_INLINE void for_each_rest(const Body& body) {
    int64_t row = 0;
    for (int64_t i = 0; i < span_.pixels; ++i) {
      for (int64_t g = 0; g < span_.groups; ++g, ++row) {
        S* o = offset_.at(i, g);
        if constexpr (std::is_const_v<S>) {
          prefetch(o + kPrefetchPixels * offset_.pixel_stride, 1);
        }
        for (int64_t k = 0; k < layout_.rest(); ++k) {
          const int64_t point = 8 * layout_.octets() + k, at = k * layout_.rest_stride + row;
          body(o + 2 * point, weight_.at(i, g) + point, rest_offset_ + 2 * at,
               rest_offset_ + 2 * at + 1, rest_weight_ + at);
        }
      }
    }
  }

  Values<S> offset_;
  Values<W> weight_;
  const Layout<kPoints> layout_;
  Span span_{};
  int64_t last_ = -1;  // octet of the span
  int64_t offset_of_octet_[kMaxPoints / 8], weight_of_octet_[kMaxPoints / 8];
  alignas(64) T rest_offset_[2 * kTableSize];
  alignas(64) T rest_weight_[kTableSize];
};

}  // namespace internimage::cpu::CPU_CAPABILITY
