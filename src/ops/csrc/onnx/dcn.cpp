// The operators `DCNv3` and `DCNv4`.
#include "../cpu/kernels.h"
#include "kernel.h"
#include "operators.h"

namespace internimage::onnx {
namespace {

using namespace internimage::cpu;

// (pixel, group) rows of a part of a large feature map, and of the smallest part.
constexpr int64_t kPartRows = 4096, kLeastRows = 256;

// The window and the shape of the values.
class Window : public Kernel {
 public:
  Window(const Runtime& runtime, const OrtKernelInfo* info)
      : Kernel(runtime, info),
        groups(integer(info, "groups")),
        kernel_size_(pair(info, "kernel_size")),
        stride_(pair(info, "stride")),
        padding_(pair(info, "padding")),
        dilation_(pair(info, "dilation")),
        offset_scale_(number(info, "offset_scale")),
        remove_center_(integer(info, "remove_center") != 0) {}

 protected:
  Problem problem(const Tensor& values, bool mask_softmax) const {
    return make_window(values.shape, groups, kernel_size_, stride_, padding_, dilation_,
                       offset_scale_, remove_center_, mask_softmax);
  }

  void sample(OrtKernelContext* context, const Problem& p, const Tensor& values,
              const Points<const float>& points) {
    Forward<float> call{};
    call.problem = p;
    call.input = values.data;
    call.points = points;
    call.output = output(context, {p.batch, p.out_height, p.out_width, p.channels});
    const auto pixels = [this](int64_t rows) { return std::max<int64_t>(1, rows / groups); };
    in_parallel(context, p.batch * p.out_pixels(), pixels(kLeastRows), pixels(kPartRows),
                [&](int64_t begin, int64_t end) { active_kernels().f32.forward(call, begin, end); });
  }

  const int64_t groups;

 private:
  const Pair kernel_size_, stride_, padding_, dilation_;
  const double offset_scale_;
  const bool remove_center_;
};

class DCNv3Kernel : public Window {
 public:
  DCNv3Kernel(const Runtime& runtime, const OrtKernelInfo* info)
      : Window(runtime, info), mask_softmax_(integer(info, "mask_softmax") != 0) {}

  void run(OrtKernelContext* context) {
    const Tensor values = input(context, 0), offset = input(context, 1), mask = input(context, 2);
    const Problem p = problem(values, mask_softmax_);
    const int64_t points = p.points();
    check_rows(p, offset.shape, groups * points * 2, "offset");
    check_rows(p, mask.shape, groups * points, "mask");
    sample(context, p, values,
           {{offset.data, groups * points * 2, points * 2}, {mask.data, groups * points, points}});
  }

 private:
  const bool mask_softmax_;
};

class DCNv4Kernel : public Window {
 public:
  using Window::Window;

  void run(OrtKernelContext* context) {
    const Tensor values = input(context, 0), rows = input(context, 1);
    const Problem p = problem(values, false);
    const int64_t width = p.row_width(), points = p.points();
    check_rows(p, rows.shape, width, "offset_mask");
    sample(context, p, values,
           {{rows.data, width, points * 3}, {rows.data + points * 2, width, points * 3}});
  }
};

}  // namespace

CustomOp dcnv3_operator() {
  CustomOp op{};
  op.name = [](const CustomOp*) { return "DCNv3"; };
  op.inputs = [](const CustomOp*) { return size_t{3}; };
  op.input_presence = [](const CustomOp*, size_t) { return static_cast<int>(kRequired); };
  set_kernel<DCNv3Kernel>(op);
  return op;
}

CustomOp dcnv4_operator() {
  CustomOp op{};
  op.name = [](const CustomOp*) { return "DCNv4"; };
  op.inputs = [](const CustomOp*) { return size_t{2}; };
  op.input_presence = [](const CustomOp*, size_t) { return static_cast<int>(kRequired); };
  set_kernel<DCNv4Kernel>(op);
  return op;
}

}  // namespace internimage::onnx
