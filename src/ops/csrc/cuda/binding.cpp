// internimage::dcnv3 and its backward on CUDA, on the LibTorch stable ABI.
//
// Checks and layouts are those of ../binding.h. Kernels read and write every tensor in its own
// type. If several blocks add to the same feature map, the input gradient of 16-bit tensors is
// accumulated in float32 in memory and rounded once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>
#include <tuple>

#include "../binding.h"
#include "launch.h"

namespace internimage::cuda {
namespace {

using torch::headeronly::ScalarType;

// Makes the device of a tensor current; the stream is PyTorch's current one.
class Device {
 public:
  explicit Device(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<CUstream_st*>(stream);
  }

  CUstream_st* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  CUstream_st* stream_;
};

template <typename Run>
void for_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Double:
      return run(double());
    case ScalarType::Float:
      return run(float());
    case ScalarType::Half:
      return run(__half());
    case ScalarType::BFloat16:
      return run(__nv_bfloat16());
    default:
      STD_TORCH_CHECK(false, "input must be float64, float32, float16 or bfloat16");
  }
}

void check_launch(const char* error) {
  STD_TORCH_CHECK(error == nullptr, "the DCNv3 kernel could not be launched: ", error);
}

// Checks the sizes that the kernels store in 32 bits.
void check_sizes(const Problem& p) {
  constexpr int64_t limit = int64_t{1} << 31;
  STD_TORCH_CHECK(p.out_pixels() < limit / p.groups && p.height + 2 * p.pad_h < limit &&
                      p.width + 2 * p.pad_w < limit,
                  "an image must have fewer than 2^31 output pixels times groups");
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The tensor itself if its rows are evenly spaced, else a dense copy.
Tensor as_rows(const Tensor& t) { return row_distance(t) > 0 ? t : dense(t); }

template <typename T>
Side read_side(const Tensor& rows, const Tensor& input) {
  const int64_t distance = row_distance(rows);
  return make_side<T>(rows.data_ptr(), distance > 0 ? distance : rows.size(3),
                      rows.scalar_type() != input.scalar_type());
}

// Sizes and input tensors; `x` is dense, rows of `o` and `m` are dense and evenly spaced.
template <typename T>
Call<T> read_call(const Problem& p, const Tensor& input, const Tensor& x, const Tensor& o,
                  const Tensor& m) {
  Call<T> call = make_call<T>(p);
  call.input = static_cast<const T*>(x.data_ptr());
  call.offset = read_side<T>(o, input);
  call.mask = read_side<T>(m, input);
  return call;
}

template <typename T>
Side write_side(const Tensor& t, const Tensor& input, bool is_wanted) {
  return make_side<T>(is_wanted ? t.data_ptr() : nullptr, 0,
                      t.scalar_type() != input.scalar_type());
}

Tensor result(const Tensor& like, bool is_wanted) {
  const int64_t none[] = {0};
  return torch::stable::new_empty(
      like, is_wanted ? like.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(none, 1));
}

Tensor dcnv3(const Tensor input, const Tensor offset, const Tensor mask, int64_t groups,
             Pair kernel_size, Pair stride, Pair padding, Pair dilation, double offset_scale,
             bool remove_center, bool mask_softmax) {
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  check_sizes(p);
  const Device device(input);
  const int64_t sizes[] = {p.batch, p.out_height, p.out_width, p.channels};
  Tensor output = torch::stable::new_empty(input, {sizes, 4});
  if (p.batch == 0) return output;
  const Tensor x = dense(input), o = as_rows(offset), m = as_rows(mask);
  for_type(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Call<T> call = read_call<T>(p, input, x, o, m);
    check_launch(launch_forward(call, static_cast<T*>(output.data_ptr()), device.stream()));
  });
  return output;
}

// Whether each block owns a whole feature map: the input gradient is then written once, in its own
// type.
bool are_maps_owned(const Problem& p, const Tensor& input) {
  if (p.batch == 0) return true;
  const Device device(input);
  bool result = false;
  for_type(input.scalar_type(), [&](auto zero) { result = owns_maps(make_call<decltype(zero)>(p)); });
  return result;
}

// Input gradient that the kernels write or add to.
Tensor new_input_gradient(const Tensor& input, bool is_wanted, bool is_owned, bool has_unit) {
  if (is_owned || !is_wanted) return result(input, is_wanted);
  const ScalarType type = input.scalar_type();
  const ScalarType sum_type = has_unit                     ? ScalarType::Long
                              : type == ScalarType::Double ? type
                                                           : ScalarType::Float;
  return torch::stable::new_zeros(input, input.sizes(), sum_type);
}

// With a unit, the input gradient is int64 in units of 1 / unit if blocks do not own feature maps.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor* unit, bool is_deterministic,
                                            const Tensor& grad, const Tensor& input,
                                            const Tensor& offset, const Tensor& mask,
                                            const Problem& p,
                                            const std::vector<bool>& output_mask) {
  check_sizes(p);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == p.batch && grad.size(1) == p.out_height &&
                      grad.size(2) == p.out_width && grad.size(3) == p.channels &&
                      grad.scalar_type() == input.scalar_type() && output_mask.size() == 3,
                  "grad does not have the shape and type of the output");
  const Device device(input);
  const bool is_owned = are_maps_owned(p, input);
  STD_TORCH_CHECK(is_owned || !is_deterministic || unit != nullptr,
                  "sums of several blocks need a unit to be deterministic");
  Tensor grad_input = new_input_gradient(input, output_mask[0], is_owned, unit != nullptr);
  Tensor grad_offset = result(offset, output_mask[1]);
  Tensor grad_mask = result(mask, output_mask[2]);
  if (p.batch > 0) {
    const Tensor g = dense(grad), x = dense(input), o = as_rows(offset), m = as_rows(mask);
    for_type(input.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const Call<T> call = read_call<T>(p, input, x, o, m);
      const Gradients<T> gradients{
          static_cast<const T*>(g.data_ptr()),
          output_mask[0] ? grad_input.data_ptr() : nullptr,
          unit != nullptr ? static_cast<const double*>(unit->data_ptr()) : nullptr,
          is_deterministic,
          write_side<T>(grad_offset, input, output_mask[1]),
          write_side<T>(grad_mask, input, output_mask[2])};
      check_launch(launch_backward(call, gradients, device.stream()));
    });
  }
  if (unit == nullptr && output_mask[0] && grad_input.scalar_type() != input.scalar_type()) {
    grad_input = torch::stable::to(grad_input, input.scalar_type());
  }
  return {grad_input, grad_offset, grad_mask};
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(const Tensor grad, const Tensor input,
                                                  const Tensor offset, const Tensor mask,
                                                  int64_t groups, Pair kernel_size, Pair stride,
                                                  Pair padding, Pair dilation, double offset_scale,
                                                  bool remove_center, bool mask_softmax,
                                                  std::vector<bool> output_mask) {
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  return backward(nullptr, false, grad, input, offset, mask, p, output_mask);
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_fixed_point(
    const std::optional<Tensor> unit, const Tensor grad, const Tensor input, const Tensor offset,
    const Tensor mask, int64_t groups, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
    double offset_scale, bool remove_center, bool mask_softmax, std::vector<bool> output_mask) {
  STD_TORCH_CHECK(
      !unit || (unit->numel() == 1 && unit->scalar_type() == ScalarType::Double),
      "unit must be one float64");
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  return backward(unit ? &*unit : nullptr, true, grad, input, offset, mask, p, output_mask);
}

bool dcnv3_owns_maps(const Tensor input, const Tensor offset, const Tensor mask, int64_t groups,
                     Pair kernel_size, Pair stride, Pair padding, Pair dilation,
                     double offset_scale, bool remove_center, bool mask_softmax) {
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  check_sizes(p);
  return are_maps_owned(p, input);
}

std::string cuda_architectures() { return INTERNIMAGE_CUDA_ARCHITECTURES; }

}  // namespace
}  // namespace internimage::cuda

STABLE_TORCH_LIBRARY_IMPL(internimage, CUDA, m) {
  m.impl("dcnv3", TORCH_BOX(&internimage::cuda::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&internimage::cuda::dcnv3_backward));
  m.impl("dcnv3_backward_fixed_point", TORCH_BOX(&internimage::cuda::dcnv3_backward_fixed_point));
  m.impl("dcnv3_owns_maps", TORCH_BOX(&internimage::cuda::dcnv3_owns_maps));
}

STABLE_TORCH_LIBRARY_IMPL(internimage, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&internimage::cuda::cuda_architectures));
}
