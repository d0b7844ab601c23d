// The operator `Block`.
#include "../cpu/block_call.h"
#include "kernel.h"
#include "operators.h"

namespace internimage::onnx {
namespace {

using namespace internimage::cpu;

// Rows of a part of a large feature map.
constexpr int64_t kPartRows = 32 * kTileRows;
// Weights [0, kOptional) are those of norms that a block may not have.
constexpr int64_t kOptionalWeights = 8;

class BlockKernel : public Kernel {
 public:
  BlockKernel(const Runtime& runtime, const OrtKernelInfo* info) : Kernel(runtime, info) {
    options_.groups = integer(info, "groups");
    options_.kernel = integer(info, "kernel_size");
    options_.depthwise_kernel = integer(info, "dw_kernel_size");
    options_.hidden = integer(info, "hidden");
    options_.offset_scale = number(info, "offset_scale");
    options_.remove_center = integer(info, "remove_center") != 0;
    options_.has_gate = integer(info, "has_gate") != 0;
    options_.eps = number(info, "eps");
  }

  void run(OrtKernelContext* context) {
    const Tensor x = input(context, 0);
    Block<float> block = make_block<float>(x.shape, options_, Weights{*this, context});
    const bool has_norm = block.norm1.weight != nullptr;
    const auto values = memory(x.count()), normed = memory(has_norm ? x.count() : 0);
    block.input = x.data;
    block.values = values.get();
    block.normed = normed.get();
    block.output = output(context, x.shape);
    const BlockKernels<float>& kernels = active_kernels().block_f32;
    const int64_t rows = x.count() / block.channels;
    for (const auto step : {kernels.project, kernels.finish}) {
      in_parallel(context, rows, kTileRows, kPartRows,
                  [&](int64_t begin, int64_t end) { step(block, begin, end); });
    }
  }

 private:
  struct Weights {
    const BlockKernel& kernel;
    const OrtKernelContext* context;

    template <typename T>
    const float* get(int64_t number, int64_t count, bool is_optional) const {
      const Tensor weight = kernel.input(context, number + 1);
      if (is_optional && weight.data == nullptr) return nullptr;
      check(weight.data != nullptr && weight.count() == count, "input ", number + 1,
            " of a block must have ", count, " values");
      return weight.data;
    }
  };

  BlockOptions options_{};
};

}  // namespace

CustomOp block_operator() {
  CustomOp op{};
  op.name = [](const CustomOp*) { return "Block"; };
  op.inputs = [](const CustomOp*) { return static_cast<size_t>(1 + kBlockWeights); };
  op.input_presence = [](const CustomOp*, size_t number) {
    const bool is_optional = number >= 1 && number < 1 + kOptionalWeights;
    return static_cast<int>(is_optional ? kOptional : kRequired);
  };
  set_kernel<BlockKernel>(op);
  return op;
}

}  // namespace internimage::onnx
