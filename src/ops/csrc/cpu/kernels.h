// Interface between the CPU kernels (compiled once per instruction set, no torch types) and the
// binding that calls them.
#pragma once

#include "../dcnv3.h"

namespace internimage::cpu {

// Values of each group of each output pixel: those of group 0 of the first output pixel, and the
// elements between those of consecutive pixels and groups. Those of one group are dense.
template <typename S>
struct Values {
  S* data;
  int64_t pixel_stride, group_stride;

  int64_t distance(int64_t pixel, int64_t group) const {
    return pixel * pixel_stride + group * group_stride;
  }
  S* at(int64_t pixel, int64_t group) const { return data + distance(pixel, group); }
};

// Offsets and masks: of DCNv3 two tensors, which may be slices of wider rows; of DCNv4 packed rows
// with the 2P offsets and P weights of a group, then those of the next group.
template <typename S>
struct Points {
  Values<S> offset, mask;
};

// S: float, double, or uint16_t for bfloat16, which is computed in float32.
template <typename S>
struct Forward {
  Problem problem;
  const S* input;
  Points<const S> points;
  S* output;
};

template <typename T>
struct Backward {
  Problem problem;
  const T* grad;
  const T* input;
  Points<const T> points;
  // Null where the gradient is not wanted.
  T* grad_input;
  Points<T> grad_points;
  int64_t padding;  // elements after the last group of a pixel's offsets and masks, set to zero
};

// Output pixels [pixel_begin, pixel_end) of one image, groups [group_begin, group_end).
struct Region {
  int64_t image, group_begin, group_end, pixel_begin, pixel_end;
};

template <typename T>
struct KernelsFor {
  // Output pixels [begin, end), counted over the whole batch.
  void (*forward)(const Forward<T>&, int64_t begin, int64_t end);
  // Writes grad_points of the region. Adds to `grad_image`, the gradient of input
  // pixel (0, 0) of the region's image (null: not wanted), which must hold every input row that the
  // region samples.
  void (*backward)(const Backward<T>&, const Region&, T* grad_image);
  // Input rows [first, last] that the region's points can touch; first > last if there is none.
  void (*sampled_rows)(const Backward<T>&, const Region&, int64_t* first, int64_t* last);
};

// LayerNorm over the channels.
struct Norm {
  int64_t channels;
  const float* weight;
  const float* bias;
  float eps;
};

// Depthwise convolution of stride 1 that keeps the size, LayerNorm and GELU.
template <typename S>
struct Depthwise {
  int64_t height, width, kernel;
  const S* input;
  const float* weight;  // [kernel row][kernel column][channel]
  const float* bias;
  Norm norm;
  S* output;
};

// GELU of `input` plus a bias.
template <typename S>
struct Gelu {
  int64_t channels;
  const S* grad;  // of the result; null in the forward pass
  const S* input;
  const float* bias;
  S* output;  // the result, or the gradient of `input`
};

// Gradients of LayerNorm, and of a GELU that follows.
template <typename S>
struct NormBackward {
  Norm norm;
  bool gelu;
  const S* grad;
  const S* residual;  // another gradient of `input` that is added, or null
  const S* input;
  S* output;  // the gradient of `input`
};

// S: float, or uint16_t for bfloat16. Kernels with `begin` and `end` process these rows; those with
// `sums` add gradients of the parameters to it.
template <typename S>
struct NormKernels {
  void (*norm)(const Norm&, const S* in, S* out, int64_t rows, bool gelu);
  // Pixels [begin, end), counted over the whole batch.
  void (*depthwise)(const Depthwise<S>&, int64_t begin, int64_t end);
  void (*bias_gelu)(const Gelu<S>&, int64_t begin, int64_t end);
  void (*bias_gelu_backward)(const Gelu<S>&, int64_t begin, int64_t end, float* sums);
  void (*norm_backward)(const NormBackward<S>&, int64_t begin, int64_t end, float* sums);
};

// Columns that packed weights have together, and rows of a tile (product.h).
constexpr int64_t kPanelColumns = 32;
constexpr int kTileRows = 14;

// rows x weight + bias. `inner` is even for bfloat16. Weight and bias have zeros up to a multiple of
// kPanelColumns. Those columns are not stored, except up to a multiple of 16.
template <typename S>
struct Product {
  int64_t inner, columns;
  const S* weight;
  const float* bias;
};

// A block of InternImage for inference. The weight of a norm that it does not have is null.
template <typename S>
struct Block {
  int64_t channels;
  bool has_gate;
  Norm norm1, last1, norm2, last2;  // before and after each branch
  Depthwise<S> depthwise;           // without input and output
  Problem sampling;
  Product<S> input_proj, points, output_proj, fc1, fc2;  // points: offsets, masks, gates
  const S* input;
  S* normed;  // not used without norm1
  S* values;
  S* output;
};

// Both process rows [begin, end) of the feature map; `finish` needs all rows of `project`. Null for
// bfloat16 if the processor does not have the instructions.
template <typename S>
struct BlockKernels {
  void (*project)(const Block<S>&, int64_t begin, int64_t end);
  void (*finish)(const Block<S>&, int64_t begin, int64_t end);
};

// Two linear layers with GELU between them, for training. Both widths are multiples of 16.
struct Mlp {
  Product<float> fc1, fc2;
  const float* input;
  float* hidden;  // before GELU
  float* output;
};

// sums (channels, columns) += outer products of `rows` rows, in tiles of channels and panels of
// columns (outer.h) that have `part_rows` rows each. `columns` is a multiple of 16.
struct OuterSum {
  bool is_first;  // = instead of +=
  int64_t rows, part_rows;
  int64_t channels, columns;
  const float* tiles;
  const float* panels;
  float* sums;
};

// Gradients of an MLP for a part of the rows. The products are those with the transposed weights:
// fc2 from the gradient of the output to the hidden layer, fc1 from there to the input.
struct MlpBackward {
  Product<float> fc2, fc1;
  int64_t first_row;  // of the part
  const float* grad;
  const float* input;
  const float* hidden;
  float* grad_input;  // null if not wanted
  bool needs_weights;
  // Gradients of the weights, (channels, hidden), and the values of the part that they are sums of.
  OuterSum fc1_sum, fc2_sum;
  float* input_tiles;
  float* grad_hidden;  // panels
  float* grad_tiles;
  float* activated;  // panels
  float* grad_bias;  // of the hidden layer
};

// Null if the processor does not have the instructions.
struct LinearKernels {
  // Panels [begin, end) of a weight (inner, columns), or (columns, inner) if it is transposed.
  void (*pack)(const float* weight, bool is_transposed, int64_t inner, int64_t columns,
               float* packed, int64_t begin, int64_t end);
  // Columns [begin, end) of (rows, columns) -> (columns, rows), all multiples of 16.
  void (*transpose)(const float* from, float* to, int64_t rows, int64_t columns, int64_t begin,
                    int64_t end);
  void (*copy_to_tiles)(const float* rows, int64_t channels, int64_t count, float* tiles,
                        int64_t part_rows);
  void (*copy_to_panels)(const float* rows, int64_t columns, int64_t count, float* panels,
                         int64_t part_rows);
  // Products of tiles [tile_begin, tile_end) and a panel.
  void (*add_outer_products)(const OuterSum&, int64_t panel, int64_t tile_begin, int64_t tile_end);
  // Rows [begin, end).
  void (*mlp)(const Mlp&, int64_t begin, int64_t end);
  // Rows [begin, end) of the part; mlp_weight_gradients() needs all of them.
  void (*mlp_backward)(const MlpBackward&, int64_t begin, int64_t end);
  // Panels [begin, end) of the hidden layer.
  void (*mlp_weight_gradients)(const MlpBackward&, int64_t begin, int64_t end);
};

struct Kernels {
  const char* name;
  KernelsFor<float> f32;
  KernelsFor<double> f64;
  void (*forward_bf16)(const Forward<uint16_t>&, int64_t begin, int64_t end);
  NormKernels<float> norm_f32;
  NormKernels<uint16_t> norm_bf16;
  BlockKernels<float> block_f32;
  BlockKernels<uint16_t> block_bf16;
  LinearKernels linear;
};

namespace DEFAULT {
extern const Kernels kernels;
}
#ifdef INTERNIMAGE_X86
namespace AVX2 {
extern const Kernels kernels;
}
namespace AVX512 {
extern const Kernels kernels;
}
#endif

// Those of the best instruction set of this processor.
const Kernels& active_kernels();

}  // namespace internimage::cpu
