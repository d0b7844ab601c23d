// Training of linear layers in float32: internimage::cpu_weight_gradient, and internimage::cpu_mlp,
// the MLP of a block; on the LibTorch stable ABI.
#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../binding.h"
#include "kernels.h"

namespace internimage::cpu {
namespace {

using torch::headeronly::ScalarType;

// Rows of which there are tiles and panels at a time.
constexpr int64_t kPartRows = 32 * kTileRows;
// Tiles that a thread multiplies by a panel.
constexpr int64_t kTilesOfThread = 8;

const LinearKernels& kernels() { return active_kernels().linear; }

bool has_linear(const Tensor x) {
  return x.scalar_type() == ScalarType::Float && kernels().mlp != nullptr;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t tiles_of(int64_t channels) { return ceil_div(channels, kTileRows); }
int64_t panels_of(int64_t columns) { return ceil_div(columns, kPanelColumns); }

Tensor floats(const Tensor& like, std::vector<int64_t> shape, bool is_zero = false) {
  return is_zero ? torch::stable::new_zeros(like, shape) : torch::stable::new_empty(like, shape);
}

struct Sizes {
  int64_t rows, channels, hidden;

  Sizes(const Tensor& x, const Tensor& fc1, const Tensor& fc2) {
    STD_TORCH_CHECK(has_linear(x), "this processor has no kernel for linear layers");
    for (const Tensor* t : {&x, &fc1, &fc2}) {
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->is_contiguous(),
                      "the tensors must be float32 and contiguous");
    }
    STD_TORCH_CHECK(x.dim() > 0 && fc1.dim() == 2 && fc2.dim() == 2,
                    "values need an axis of channels, and weights two axes");
    channels = x.size(x.dim() - 1);
    hidden = fc1.size(0);
    STD_TORCH_CHECK(channels > 0 && hidden > 0 && channels % 16 == 0 && hidden % 16 == 0 &&
                        fc1.size(1) == channels && fc2.size(0) == channels &&
                        fc2.size(1) == hidden,
                    "the widths of the layers must fit and be multiples of 16");
    rows = x.numel() / channels;
  }

  void check(const Tensor& t, int64_t count) const {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == count,
                    "a tensor must be float32, contiguous and of the size of the layers");
  }
};

// A packed weight, and the tensors that own its memory.
struct Packed {
  Tensor memory, shift;
  Product<float> product;

  // (inner, columns), or (columns, inner) if it is transposed.
  Packed(const Tensor& weight, bool is_transposed, const std::optional<Tensor>& bias)
      : memory(weight), shift(weight) {
    const int64_t inner = weight.size(is_transposed ? 1 : 0);
    const int64_t columns = weight.size(is_transposed ? 0 : 1);
    const int64_t panels = panels_of(columns);
    memory = floats(weight, {panels * kPanelColumns * inner});
    shift = bias.has_value() ? *bias : floats(weight, {columns}, true);
    const float* from = weight.const_data_ptr<float>();
    float* to = memory.mutable_data_ptr<float>();
    torch::stable::parallel_for(0, panels, 4, [&](int64_t begin, int64_t end) {
      kernels().pack(from, is_transposed, inner, columns, to, begin, end);
    });
    product = {inner, columns, to, shift.const_data_ptr<float>()};
  }
};

// Calls run(begin, end) for rows, pieces of a multiple of those of a tile.
template <typename Run>
void for_rows(int64_t rows, const Run& run) {
  torch::stable::parallel_for(0, ceil_div(rows, kTileRows), 1,
                              [&](int64_t begin, int64_t end) {
                                run(begin * kTileRows, std::min(rows, end * kTileRows));
                              });
}

std::tuple<Tensor, Tensor> mlp(const Tensor x, const Tensor fc1, const Tensor bias1,
                               const Tensor fc2, const std::optional<Tensor> bias2) {
  const Sizes sizes(x, fc1, fc2);
  sizes.check(bias1, sizes.hidden);
  if (bias2.has_value()) sizes.check(*bias2, sizes.channels);
  Tensor out = torch::stable::empty_like(x);
  Tensor hidden = floats(x, {sizes.rows, sizes.hidden});
  const Packed first(fc1, true, bias1), second(fc2, true, bias2);
  const Mlp call{first.product, second.product, x.const_data_ptr<float>(),
                 hidden.mutable_data_ptr<float>(), out.mutable_data_ptr<float>()};
  for_rows(sizes.rows, [&](int64_t begin, int64_t end) {
    kernels().mlp(call, begin, end);
  });
  return std::tuple(std::move(out), std::move(hidden));
}

// Tiles or panels of a part of the rows, and the tensor that owns them.
struct Part {
  Tensor memory;
  float* data;

  Part(const Tensor& like, int64_t size)
      : memory(floats(like, {size})), data(memory.mutable_data_ptr<float>()) {}
};

// (columns, rows) of (rows, columns), both multiples of 16.
Tensor transposed(const Tensor& t) {
  const int64_t rows = t.size(0), columns = t.size(1);
  Tensor out = floats(t, {columns, rows});
  const float* from = t.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, columns / 16, 16, [&](int64_t begin, int64_t end) {
    kernels().transpose(from, to, rows, columns, 16 * begin, 16 * end);
  });
  return out;
}

// Gradients of x, fc1, bias1 and fc2; of no elements where they are not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_backward(const Tensor grad, const Tensor x,
                                                        const Tensor hidden, const Tensor fc1,
                                                        const Tensor fc2, bool needs_x,
                                                        bool needs_weights) {
  const Sizes sizes(x, fc1, fc2);
  sizes.check(grad, x.numel());
  sizes.check(hidden, sizes.rows * sizes.hidden);
  const int64_t channels = sizes.channels, width = needs_weights ? sizes.hidden : 0;
  const int64_t part = needs_weights ? std::min(kPartRows, sizes.rows) : sizes.rows;
  const int64_t kept = needs_weights ? part : 0;
  const int64_t tiles = tiles_of(channels) * kTileRows;
  const int64_t panels = panels_of(sizes.hidden);
  Tensor grad_x = needs_x ? torch::stable::empty_like(x) : floats(x, {0});
  // Both with the columns of the hidden layer.
  const bool is_empty = sizes.rows == 0;
  Tensor grad_fc1 = floats(x, {channels, width}, is_empty);
  Tensor grad_fc2 = floats(x, {channels, width}, is_empty);
  Tensor grad_bias = floats(x, {width}, is_empty);
  const Part input_tiles(x, kept * tiles), grad_tiles(x, kept * tiles);
  const Part grad_hidden(x, kept * panels * kPanelColumns);
  const Part activated(x, kept * panels * kPanelColumns);
  const Packed second(fc2, false, std::nullopt), first(fc1, false, std::nullopt);
  MlpBackward call{};
  call.fc2 = second.product;
  call.fc1 = first.product;
  call.grad = grad.const_data_ptr<float>();
  call.input = x.const_data_ptr<float>();
  call.hidden = hidden.const_data_ptr<float>();
  call.grad_input = needs_x ? grad_x.mutable_data_ptr<float>() : nullptr;
  call.needs_weights = needs_weights;
  call.fc1_sum = {true, 0, part, channels, sizes.hidden, input_tiles.data, grad_hidden.data,
                  grad_fc1.mutable_data_ptr<float>()};
  call.fc2_sum = {true, 0, part, channels, sizes.hidden, grad_tiles.data, activated.data,
                  grad_fc2.mutable_data_ptr<float>()};
  call.input_tiles = input_tiles.data;
  call.grad_hidden = grad_hidden.data;
  call.grad_tiles = grad_tiles.data;
  call.activated = activated.data;
  call.grad_bias = grad_bias.mutable_data_ptr<float>();
  for (; call.first_row < sizes.rows; call.first_row += part) {
    const int64_t rows = std::min(part, sizes.rows - call.first_row);
    call.fc1_sum.rows = call.fc2_sum.rows = rows;
    for_rows(rows, [&](int64_t begin, int64_t end) { kernels().mlp_backward(call, begin, end); });
    if (!needs_weights) continue;
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      kernels().mlp_weight_gradients(call, begin, end);
    });
    call.fc1_sum.is_first = call.fc2_sum.is_first = false;
  }
  return std::tuple(std::move(grad_x), needs_weights ? transposed(grad_fc1) : std::move(grad_fc1),
                    std::move(grad_bias), std::move(grad_fc2));
}

// grad.T @ x of rows of channels and rows of columns, (channels, columns).
Tensor weight_gradient(const Tensor grad, const Tensor x) {
  STD_TORCH_CHECK(has_linear(x), "this processor has no kernel for linear layers");
  for (const Tensor* t : {&grad, &x}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->dim() == 2 && t->is_contiguous(),
                    "both must be rows of float32, contiguous");
  }
  const int64_t rows = x.size(0), channels = grad.size(1), columns = x.size(1);
  STD_TORCH_CHECK(grad.size(0) == rows && columns % 16 == 0,
                  "both must have the same rows, and x a multiple of 16 columns");
  Tensor sums = floats(x, {channels, columns}, rows == 0);
  const int64_t part = std::min(kPartRows, rows), panels = panels_of(columns);
  const int64_t tiles = tiles_of(channels), groups = ceil_div(tiles, kTilesOfThread);
  const Part some_tiles(x, part * tiles * kTileRows), some_panels(x, part * panels * kPanelColumns);
  OuterSum call{true, 0, part, channels, columns, some_tiles.data, some_panels.data,
                sums.mutable_data_ptr<float>()};
  for (int64_t first = 0; first < rows; first += part) {
    call.rows = std::min(part, rows - first);
    const float* grad_rows = grad.const_data_ptr<float>() + first * channels;
    const float* x_rows = x.const_data_ptr<float>() + first * columns;
    for_rows(call.rows, [&](int64_t begin, int64_t end) {
      kernels().copy_to_tiles(grad_rows + begin * channels, channels, end - begin,
                              some_tiles.data + begin * kTileRows, part);
      kernels().copy_to_panels(x_rows + begin * columns, columns, end - begin,
                               some_panels.data + begin * kPanelColumns, part);
    });
    torch::stable::parallel_for(0, panels * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = i % groups * kTilesOfThread;
        kernels().add_outer_products(call, i / groups, tile,
                                     std::min(tiles, tile + kTilesOfThread));
      }
    });
    call.is_first = false;
  }
  return sums;
}

}  // namespace
}  // namespace internimage::cpu

STABLE_TORCH_LIBRARY_IMPL(internimage, CPU, m) {
  m.impl("cpu_mlp", TORCH_BOX(&internimage::cpu::mlp));
  m.impl("cpu_mlp_backward", TORCH_BOX(&internimage::cpu::mlp_backward));
  m.impl("cpu_weight_gradient", TORCH_BOX(&internimage::cpu::weight_gradient));
  m.impl("cpu_has_linear", TORCH_BOX(&internimage::cpu::has_linear));
}
