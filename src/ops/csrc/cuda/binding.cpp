// internimage::dcnv3, internimage::dcnv4 and their backward on CUDA, on the LibTorch stable ABI.
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

// Offsets and masks of a call: two tensors of DCNv3, or the packed rows of DCNv4.
struct SideTensors {
  const Tensor& offset;
  const Tensor& mask;
  bool is_packed;
};

int64_t pixel_stride(const Tensor& rows) {
  const int64_t distance = row_distance(rows);
  return distance > 0 ? distance : rows.size(3);
}

// Rows of the tensors are dense and evenly spaced; `input` has the type of the call.
template <typename T>
Sides make_sides(const Problem& p, const SideTensors& tensors, const Tensor& input) {
  const auto is_wide = [&](const Tensor& t) { return t.scalar_type() != input.scalar_type(); };
  const auto data = [](const Tensor& t) { return t.numel() > 0 ? t.data_ptr() : nullptr; };
  const Tensor& offset = tensors.offset;
  const Tensor& mask = tensors.mask;
  if (tensors.is_packed) {
    return make_packed_sides<T>(data(offset), offset.dim() == 4 ? pixel_stride(offset) : 0,
                                p.points(), is_wide(offset));
  }
  return {make_side<T>(data(offset), offset.dim() == 4 ? pixel_stride(offset) : 0, 2 * p.points(),
                       is_wide(offset)),
          make_side<T>(data(mask), mask.dim() == 4 ? pixel_stride(mask) : 0, p.points(),
                       is_wide(mask))};
}

// Sizes and input tensors; `x` is dense.
template <typename T>
Call<T> read_call(const Problem& p, const Tensor& input, const Tensor& x,
                  const SideTensors& tensors) {
  Call<T> call = make_call<T>(p);
  call.input = static_cast<const T*>(x.data_ptr());
  const Sides sides = make_sides<T>(p, tensors, input);
  call.offset = sides.offset;
  call.mask = sides.mask;
  return call;
}

Tensor result(const Tensor& like, bool is_wanted) {
  const int64_t none[] = {0};
  return torch::stable::new_empty(
      like, is_wanted ? like.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(none, 1));
}

Tensor forward(const Problem& p, const Tensor& input, const Tensor& offset, const Tensor& mask,
               bool is_packed) {
  check_sizes(p);
  const Device device(input);
  const int64_t sizes[] = {p.batch, p.out_height, p.out_width, p.channels};
  Tensor output = torch::stable::new_empty(input, {sizes, 4});
  if (p.batch == 0) return output;
  const Tensor x = dense(input), o = as_rows(offset), m = is_packed ? o : as_rows(mask);
  for_type(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Call<T> call = read_call<T>(p, input, x, {o, m, is_packed});
    check_launch(launch_forward(call, static_cast<T*>(output.data_ptr()), device.stream()));
  });
  return output;
}

Tensor dcnv3(const Tensor input, const Tensor offset, const Tensor mask, int64_t groups,
             Pair kernel_size, Pair stride, Pair padding, Pair dilation, double offset_scale,
             bool remove_center, bool mask_softmax) {
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  return forward(p, input, offset, mask, false);
}

Tensor dcnv4(const Tensor input, const Tensor offset_mask, int64_t groups, Pair kernel_size,
             Pair stride, Pair padding, Pair dilation, double offset_scale, bool remove_center) {
  const Problem p = make_packed_problem(input, offset_mask, groups, kernel_size, stride, padding,
                                        dilation, offset_scale, remove_center);
  return forward(p, input, offset_mask, offset_mask, true);
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
// Packed rows are given as `offset` and as `mask`, and their gradient is returned as both.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor* unit, bool is_deterministic,
                                            const Tensor& grad, const Tensor& input,
                                            const Tensor& offset, const Tensor& mask,
                                            bool is_packed, const Problem& p,
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
  Tensor grad_mask = is_packed ? grad_offset : result(mask, output_mask[2]);
  if (p.batch > 0) {
    const Tensor g = dense(grad), x = dense(input), o = as_rows(offset);
    const Tensor m = is_packed ? o : as_rows(mask);
    for_type(input.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const Call<T> call = read_call<T>(p, input, x, {o, m, is_packed});
      const Sides sides = make_sides<T>(p, {grad_offset, grad_mask, is_packed}, input);
      const int64_t used = 3 * p.groups * p.points();
      const Gradients<T> gradients{
          static_cast<const T*>(g.data_ptr()),
          output_mask[0] ? grad_input.data_ptr() : nullptr,
          unit != nullptr ? static_cast<const double*>(unit->data_ptr()) : nullptr,
          is_deterministic,
          sides.offset,
          sides.mask,
          is_packed ? static_cast<int>(p.row_width() - used) : 0};
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
  return backward(nullptr, false, grad, input, offset, mask, false, p, output_mask);
}

void check_unit(const std::optional<Tensor>& unit) {
  STD_TORCH_CHECK(!unit || (unit->numel() == 1 && unit->scalar_type() == ScalarType::Double),
                  "unit must be one float64");
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_fixed_point(
    const std::optional<Tensor> unit, const Tensor grad, const Tensor input, const Tensor offset,
    const Tensor mask, int64_t groups, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
    double offset_scale, bool remove_center, bool mask_softmax, std::vector<bool> output_mask) {
  check_unit(unit);
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  return backward(unit ? &*unit : nullptr, true, grad, input, offset, mask, false, p, output_mask);
}

// The packed rows of a call of the backward, and whether their gradient is needed twice: as that of
// the offsets and as that of the weights.
std::vector<bool> both(const std::vector<bool>& output_mask) {
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask must have two entries");
  return {output_mask[0], output_mask[1], output_mask[1]};
}

std::tuple<Tensor, Tensor> dcnv4_backward(const Tensor grad, const Tensor input,
                                          const Tensor offset_mask, int64_t groups,
                                          Pair kernel_size, Pair stride, Pair padding,
                                          Pair dilation, double offset_scale, bool remove_center,
                                          std::vector<bool> output_mask) {
  const Problem p = make_packed_problem(input, offset_mask, groups, kernel_size, stride, padding,
                                        dilation, offset_scale, remove_center);
  const auto [grad_input, grad_rows, same] = backward(nullptr, false, grad, input, offset_mask,
                                                      offset_mask, true, p, both(output_mask));
  return {grad_input, grad_rows};
}

std::tuple<Tensor, Tensor> dcnv4_backward_fixed_point(
    const std::optional<Tensor> unit, const Tensor grad, const Tensor input,
    const Tensor offset_mask, int64_t groups, Pair kernel_size, Pair stride, Pair padding,
    Pair dilation, double offset_scale, bool remove_center, std::vector<bool> output_mask) {
  check_unit(unit);
  const Problem p = make_packed_problem(input, offset_mask, groups, kernel_size, stride, padding,
                                        dilation, offset_scale, remove_center);
  const auto [grad_input, grad_rows, same] =
      backward(unit ? &*unit : nullptr, true, grad, input, offset_mask, offset_mask, true, p,
               both(output_mask));
  return {grad_input, grad_rows};
}

bool dcnv4_owns_maps(const Tensor input, const Tensor offset_mask, int64_t groups,
                     Pair kernel_size, Pair stride, Pair padding, Pair dilation,
                     double offset_scale, bool remove_center) {
  const Problem p = make_packed_problem(input, offset_mask, groups, kernel_size, stride, padding,
                                        dilation, offset_scale, remove_center);
  check_sizes(p);
  return are_maps_owned(p, input);
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
  m.impl("dcnv4", TORCH_BOX(&internimage::cuda::dcnv4));
  m.impl("dcnv4_backward", TORCH_BOX(&internimage::cuda::dcnv4_backward));
  m.impl("dcnv4_backward_fixed_point", TORCH_BOX(&internimage::cuda::dcnv4_backward_fixed_point));
  m.impl("dcnv4_owns_maps", TORCH_BOX(&internimage::cuda::dcnv4_owns_maps));
}

STABLE_TORCH_LIBRARY_IMPL(internimage, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&internimage::cuda::cuda_architectures));
}
