// A call of the kernels of a block from its weights and options, for bindings of any framework.
#pragma once

#include "../window.h"
#include "kernels.h"

namespace internimage::cpu {

// Number of weights: `BlockWeights.tensors` in cpu_block.py gives them in this order.
constexpr int64_t kBlockWeights = 22;

struct BlockOptions {
  int64_t groups, kernel, depthwise_kernel, hidden;
  double offset_scale;
  bool remove_center, has_gate;
  double eps;
};

// Reads the weights in their order. `source.get<T>(i, count, is_optional)` gives those of number i,
// which are `count` values of T, or null if an empty tensor stands for none; it throws if they are
// something else.
template <typename S, typename Source>
class BlockReader {
 public:
  explicit BlockReader(const Source& source) : source_(source) {}

  const float* floats(int64_t count, bool is_optional = false) {
    return source_.template get<float>(at_++, count, is_optional);
  }

  Norm norm(int64_t channels, double eps, bool is_optional = true) {
    const float* weight = floats(channels, is_optional);
    const float* bias = floats(channels, is_optional);
    check((weight == nullptr) == (bias == nullptr), "a norm needs weight and bias");
    return {channels, weight, bias, static_cast<float>(eps)};
  }

  Product<S> product(int64_t inner, int64_t columns) {
    const int64_t padded = (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
    const S* weight = source_.template get<S>(at_++, padded * inner, false);
    return {inner, columns, weight, floats(padded)};
  }

 private:
  const Source& source_;
  int64_t at_ = 0;
};

// Everything except the feature maps, whose shape is `shape`.
template <typename S, typename Source>
Block<S> make_block(const std::vector<int64_t>& shape, const BlockOptions& options,
                    const Source& source) {
  constexpr int64_t widest = int64_t{1} << 20;  // products of widths do not overflow
  const int64_t kernel = options.kernel, side = options.depthwise_kernel, hidden = options.hidden;
  check(shape.size() == 4 && shape[3] % 16 == 0 && shape[3] >= 16 && shape[3] <= widest &&
            hidden % 16 == 0 && hidden >= 16 && hidden <= widest,
        "a block takes a feature map (N, H, W, C), where C and the width of the MLP are multiples "
        "of 16");
  check(kernel % 2 == 1 && side % 2 == 1 && kernel > 0 && side > 0 && side <= 1023,
        "the kernels of a block must be odd");
  const int64_t channels = shape[3];
  Block<S> block{};
  block.sampling = make_window(shape, options.groups, {kernel, kernel}, {1, 1},
                               {kernel / 2, kernel / 2}, {1, 1}, options.offset_scale,
                               options.remove_center, true);
  block.channels = channels;
  block.has_gate = options.has_gate;
  BlockReader<S, Source> reader(source);
  block.norm1 = reader.norm(channels, options.eps);
  block.last1 = reader.norm(channels, options.eps);
  block.norm2 = reader.norm(channels, options.eps);
  block.last2 = reader.norm(channels, options.eps);
  block.depthwise = {shape[1], shape[2], side, nullptr, reader.floats(side * side * channels),
                     reader.floats(channels), {}, nullptr};
  block.depthwise.norm = reader.norm(channels, options.eps, false);
  block.input_proj = reader.product(channels, channels);
  block.points = reader.product(
      channels, options.groups * (3 * block.sampling.points() + (options.has_gate ? 1 : 0)));
  block.output_proj = reader.product(channels, channels);
  block.fc1 = reader.product(channels, hidden);
  block.fc2 = reader.product(hidden, channels);
  return block;
}

}  // namespace internimage::cpu
