// A whole block of InternImage for inference: DCNv3 with its projections, then the MLP, a few rows
// of the feature map at a time, so that what is between two layers stays in the cache.
#pragma once

#include <memory>
#include <new>

#include "forward.h"
#include "product.h"

namespace internimage::cpu::CPU_CAPABILITY {

// Rows of the feature map, a multiple of those of a tile.
constexpr int64_t kBlockRows = 8 * kTileRows;
// Elements between the rows of the widest buffer: rows a power of two apart would share few sets of
// the cache.
constexpr int64_t kGap = 32;

// Buffers for the rows that are processed together.
template <typename S>
class Buffers {
 public:
  explicit Buffers(const Block<S>& block)
      : hidden_stride(block.fc1.columns + kGap),
        points_stride((block.points.columns + 16 - 1) / 16 * 16),
        channels_(block.channels),
        memory_(static_cast<S*>(::operator new(bytes(), kAlignment))) {}

  S* channels() const { return memory_.get(); }  // rows of the width of the feature map
  S* sampled() const { return channels() + kBlockRows * channels_; }
  S* hidden() const { return sampled() + kBlockRows * channels_; }
  S* points() const { return hidden(); }  // not used at the same time

  const int64_t hidden_stride, points_stride;

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(S* memory) const { ::operator delete(memory, kAlignment); }
  };

  size_t bytes() const {
    return kBlockRows * (2 * channels_ + std::max(hidden_stride, points_stride)) * sizeof(S);
  }

  const int64_t channels_;
  const std::unique_ptr<S, Delete> memory_;
};

// out = x + norm(rows), row by row.
template <typename S>
void add_norm(const Norm& norm, const S* rows, const S* x, S* out, int64_t count) {
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t some = std::min(kRows, count - first);
    const Rows of(norm, rows + first * norm.channels, some);
    for (int64_t r = 0; r < some; ++r) {
      const int64_t at = (first + r) * norm.channels;
      for_channels(norm.channels, [&](int64_t c, int64_t lanes) INTERNIMAGE_INLINE {
        const Float value =
            (load(rows + at + c, lanes) - Float(of.mean[r])) * Float(of.scale[r]);
        const Float branch =
            at::vec::fmadd(value, load(norm.weight + c, lanes), load(norm.bias + c, lanes));
        store(load(x + at + c, lanes) + branch, out + at + c, lanes);
      });
    }
  }
}

// out = x + product(rows), with the norm of the product if there is one. `buffer` has rows of
// channels.
template <typename S>
void add_product(const Product<S>& product, const Norm& norm, const S* rows, int64_t stride,
                 const S* x, S* buffer, S* out, int64_t count) {
  const int64_t channels = product.columns;
  if (norm.weight == nullptr) {
    multiply(product, rows, stride, count, [&](int64_t row, int64_t column, const Float& value)
                                               INTERNIMAGE_INLINE {
      const int64_t at = row * channels + column;
      store(load(x + at, kLanes<float>) + value, out + at, kLanes<float>);
    });
    return;
  }
  multiply(product, rows, stride, count,
           [&](int64_t row, int64_t column, const Float& value) INTERNIMAGE_INLINE {
             store(value, buffer + row * channels + column, kLanes<float>);
           });
  add_norm(norm, buffer, x, out, count);
}

// Blends the sampled values of each group with the values of the pixel by sigmoid(gate).
template <typename S>
void blend(const Block<S>& block, const S* gates, int64_t stride, const S* values, S* sampled,
           int64_t count) {
  const int64_t size = block.channels / block.sampling.groups;
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t g = 0; g < block.sampling.groups; ++g) {
      const Float gate(1 / (1 + std::exp(-value_of(gates[row * stride + g]))));
      const int64_t first = row * block.channels + g * size;
      for_channels(size, [&](int64_t c, int64_t lanes) INTERNIMAGE_INLINE {
        const Float from = load(sampled + first + c, lanes);
        const Float to = load(values + first + c, lanes);
        store(at::vec::fmadd(gate, to - from, from), sampled + first + c, lanes);
      });
    }
  }
}

// The norm and the values of rows [begin, end), which other rows sample.
template <typename S>
void project_block(const Block<S>& block, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, end - row), at = row * block.channels;
    if (block.norm1.weight != nullptr) {
      norm_all_rows<S, false>(block.norm1, block.input + at, block.normed + at, count);
    }
    const S* rows = (block.norm1.weight != nullptr ? block.normed : block.input) + at;
    S* out = block.values + at;
    multiply(block.input_proj, rows, block.channels, count,
             [&](int64_t r, int64_t column, const Float& value) INTERNIMAGE_INLINE {
               store(value, out + r * block.channels + column, kLanes<float>);
             });
  }
}

// x + DCNv3, for `count` rows from `row` on.
template <typename S>
void mix_rows(const Block<S>& block, const Buffers<S>& buffers, int64_t row, int64_t count) {
  const int64_t channels = block.channels, stride = buffers.points_stride;
  // The kernels count pixels from the first of the batch.
  const auto from_first = [&](S* buffer, int64_t width) { return buffer - row * width; };
  Depthwise<S> depthwise = block.depthwise;
  depthwise.input = block.norm1.weight != nullptr ? block.normed : block.input;
  depthwise.output = from_first(buffers.channels(), channels);
  depthwise_norm_gelu(depthwise, row, row + count);
  S* points = buffers.points();
  multiply(block.points, buffers.channels(), channels, count,
           [&](int64_t r, int64_t column, const Float& value) INTERNIMAGE_INLINE {
             store(value, points + r * stride + column, kLanes<float>);
           });
  Forward<S> call{};
  call.problem = block.sampling;
  call.input = block.values;
  call.output = from_first(buffers.sampled(), channels);
  const int64_t each = block.sampling.points(), total = block.sampling.groups * each;
  const S* first = from_first(points, stride);
  call.points = {{first, stride, 2 * each}, {first + 2 * total, stride, each}};
  forward(call, row, row + count);
  if (block.has_gate) {
    blend(block, points + 3 * total, stride, block.values + row * channels, buffers.sampled(),
          count);
  }
  add_product(block.output_proj, block.last1, buffers.sampled(), channels,
              block.input + row * channels, buffers.channels(), block.output + row * channels,
              count);
}

// x + MLP, in place.
template <typename S>
void mlp_rows(const Block<S>& block, const Buffers<S>& buffers, S* x, int64_t count) {
  const S* rows = x;
  if (block.norm2.weight != nullptr) {
    norm_all_rows<S, false>(block.norm2, x, buffers.channels(), count);
    rows = buffers.channels();
  }
  S* hidden = buffers.hidden();
  const int64_t stride = buffers.hidden_stride;
  multiply(block.fc1, rows, block.channels, count,
           [&](int64_t row, int64_t column, const Float& value) INTERNIMAGE_INLINE {
             store(activate<S>(value), hidden + row * stride + column, kLanes<float>);
           });
  add_product(block.fc2, block.last2, hidden, stride, x, buffers.channels(), x, count);
}

// Rows [begin, end) of the result, after all rows are projected.
template <typename S>
void finish_block(const Block<S>& block, int64_t begin, int64_t end) {
  const Buffers<S> buffers(block);
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, end - row);
    mix_rows(block, buffers, row, count);
    mlp_rows(block, buffers, block.output + row * block.channels, count);
  }
}

}  // namespace internimage::cpu::CPU_CAPABILITY
