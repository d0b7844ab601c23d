// internimage::dcnv3, internimage::dcnv4 and their backward on the CPU, on the LibTorch stable ABI.
//
// Converts 16-bit tensors except for the forward pass in bfloat16, and divides the work so that
// results do not depend on the number of threads.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../binding.h"
#include "kernels.h"

namespace internimage::cpu {
namespace {

using torch::headeronly::ScalarType;

// Minimum number of (pixel, group) rows per thread.
constexpr int64_t kForwardRows = 1024, kBackwardRows = 512;

template <typename T>
const KernelsFor<T>& kernels_for() {
  if constexpr (std::is_same_v<T, double>) {
    return active_kernels().f64;
  } else {
    return active_kernels().f32;
  }
}

// A dense tensor of the computing dtype; converted once for 16-bit tensors.
Tensor dense_as(const Tensor& t, ScalarType dtype) {
  Tensor out = t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
  return out.is_contiguous() ? out : torch::stable::contiguous(out);
}

// As above, but rows (last dimension) may be slices of a wider tensor; `stride` is the distance
// between them.
Tensor rows_as(const Tensor& t, ScalarType dtype, int64_t* stride) {
  *stride = t.scalar_type() == dtype ? row_distance(t) : 0;
  if (*stride > 0) return t;
  *stride = t.size(3);
  return dense_as(t, dtype);
}

int32_t shim_dtype(ScalarType dtype) {
  if (dtype == ScalarType::Double) return aoti_torch_dtype_float64();
  return dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
}

// Uses the C shim, which takes less than half the time of new_empty through the dispatcher; this
// matters for small feature maps.
Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  int64_t strides[4];
  int64_t step = 1;
  for (int64_t axis = static_cast<int64_t>(sizes.size()) - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= sizes[axis];
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides,
                               shim_dtype(dtype), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Calls `run` with a zero of the type that computes, and its dtype: double for double, else float.
template <typename Run>
auto by_dtype(const Tensor& input, const Run& run) {
  return input.scalar_type() == ScalarType::Double ? run(double{0}, ScalarType::Double)
                                                   : run(float{0}, ScalarType::Float);
}

// As above, with uint16_t where all tensors are bfloat16, whose forward kernel converts the values
// itself.
template <typename Run>
auto by_storage(const Tensor& input, const Tensor& offset, const Tensor& mask, const Run& run) {
  for (const Tensor* t : {&input, &offset, &mask}) {
    if (t->scalar_type() != ScalarType::BFloat16) return by_dtype(input, run);
  }
  return run(uint16_t{0}, ScalarType::BFloat16);
}

Tensor back_to(Tensor result, ScalarType dtype) {
  return result.scalar_type() == dtype ? std::move(result) : torch::stable::to(result, dtype);
}

// Offsets and masks of a call as values of type S, and the tensors that own their memory.
template <typename S>
struct OwnedPoints {
  Tensor offset, mask;
  Points<const S> points;
};

// Not const_data_ptr<S>(), which has no uint16_t for bfloat16.
template <typename S>
const S* values_of(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}

template <typename S>
OwnedPoints<S> separate(const Problem& p, const Tensor& offset, const Tensor& mask,
                        ScalarType dtype) {
  int64_t offset_stride, mask_stride;
  const Tensor o = rows_as(offset, dtype, &offset_stride);
  const Tensor m = rows_as(mask, dtype, &mask_stride);
  return {o, m, {{values_of<S>(o), offset_stride, 2 * p.points()},
                 {values_of<S>(m), mask_stride, p.points()}}};
}

// The offsets and masks of packed rows.
template <typename S>
Points<S> unpack(const Problem& p, S* rows, int64_t stride) {
  return {{rows, stride, 3 * p.points()}, {rows + 2 * p.points(), stride, 3 * p.points()}};
}

template <typename S>
OwnedPoints<S> packed(const Problem& p, const Tensor& offset_mask, ScalarType dtype) {
  int64_t stride;
  const Tensor rows = rows_as(offset_mask, dtype, &stride);
  return {rows, rows, unpack(p, values_of<S>(rows), stride)};
}

template <typename S>
auto forward_kernel() {
  if constexpr (std::is_same_v<S, uint16_t>) {
    return active_kernels().forward_bf16;
  } else {
    return kernels_for<S>().forward;
  }
}

template <typename S>
Tensor run_forward(const Problem& p, const Tensor& input, const OwnedPoints<S>& owned,
                   ScalarType dtype) {
  Forward<S> call{};
  call.problem = p;
  const Tensor x = dense_as(input, dtype);
  Tensor output = empty({p.batch, p.out_height, p.out_width, p.channels}, dtype);
  call.input = values_of<S>(x);
  call.points = owned.points;
  call.output = static_cast<S*>(output.mutable_data_ptr());
  const auto run = forward_kernel<S>();
  const int64_t grain = std::max<int64_t>(1, kForwardRows / p.groups);
  torch::stable::parallel_for(0, p.batch * p.out_pixels(), grain,
                              [&](int64_t begin, int64_t end) { run(call, begin, end); });
  return back_to(output, input.scalar_type());
}

Tensor dcnv3(const Tensor input, const Tensor offset, const Tensor mask, int64_t groups,
             Pair kernel_size, Pair stride, Pair padding, Pair dilation, double offset_scale,
             bool remove_center, bool mask_softmax) {
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  return by_storage(input, offset, mask, [&](auto zero, ScalarType dtype) {
    using T = decltype(zero);
    return run_forward<T>(p, input, separate<T>(p, offset, mask, dtype), dtype);
  });
}

Tensor dcnv4(const Tensor input, const Tensor offset_mask, int64_t groups, Pair kernel_size,
             Pair stride, Pair padding, Pair dilation, double offset_scale, bool remove_center) {
  const Problem p = make_packed_problem(input, offset_mask, groups, kernel_size, stride, padding,
                                        dilation, offset_scale, remove_center);
  return by_storage(input, offset_mask, offset_mask, [&](auto zero, ScalarType dtype) {
    using T = decltype(zero);
    return run_forward<T>(p, input, packed<T>(p, offset_mask, dtype), dtype);
  });
}

// Whether Python's checks accept offsets and weights of this dtype.
bool goes_with(ScalarType input, ScalarType points) {
  const bool is_half = input == ScalarType::Half || input == ScalarType::BFloat16;
  if (is_half) return points == input || points == ScalarType::Float;
  return (input == ScalarType::Float || input == ScalarType::Double) && points == input;
}

// The same without a gradient, for calls of small feature maps: to convert one list takes half of
// the time of four lists and two numbers, and Python does not check the tensors before. `window` is
// groups, kernel size, stride, padding, dilation and whether the centre is removed.
Tensor dcnv4_inference(const Tensor input, const Tensor offset_mask,
                       const std::vector<int64_t> window, double offset_scale) {
  STD_TORCH_CHECK(window.size() == 10, "window must be ten integers");
  STD_TORCH_CHECK(goes_with(input.scalar_type(), offset_mask.scalar_type()),
                  "offset_mask does not have the dtype that input asks for");
  const auto pair = [&](int64_t first) { return Pair{window[first], window[first + 1]}; };
  return dcnv4(input, offset_mask, window[0], pair(1), pair(3), pair(5), pair(7), offset_scale,
               window[9] != 0);
}

// Sets the gradient of groups [group_begin, group_end) of one image to zero.
template <typename T>
void clear_groups(const Problem& p, T* grad_image, int64_t group_begin, int64_t group_end) {
  const int64_t pixels = p.height * p.width;
  const int64_t first = group_begin * p.group_channels();
  const int64_t count = (group_end - group_begin) * p.group_channels();
  if (count == p.channels) {
    std::fill_n(grad_image, pixels * p.channels, T(0));
    return;
  }
  for (int64_t i = 0; i < pixels; ++i)
    std::fill_n(grad_image + i * p.channels + first, count, T(0));
}

// Each thread owns (image, group) pairs, so no other thread writes its part of the input gradient.
template <typename T>
void backward_by_groups(const Backward<T>& call) {
  const Problem& p = call.problem;
  const auto run = kernels_for<T>().backward;
  const int64_t grain = std::max<int64_t>(1, kBackwardRows / p.out_pixels());
  torch::stable::parallel_for(0, p.batch * p.groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end;) {
      const int64_t image = pair / p.groups, group = pair % p.groups;
      const int64_t group_end = std::min(p.groups, group + end - pair);
      T* grad_image = nullptr;
      if (call.grad_input != nullptr) {
        grad_image = call.grad_input + image * p.height * p.width * p.channels;
        clear_groups(p, grad_image, group, group_end);
      }
      run(call, Region{image, group, group_end, 0, p.out_pixels()}, grad_image);
      pair += group_end - group;
    }
  });
}

// For few images and large feature maps. The number of bands of output rows per image depends only
// on sizes; each band adds to a buffer of the input rows that it samples, and the buffers are
// summed in the order of the bands.
template <typename T>
void backward_by_bands(const Backward<T>& call, int64_t bands) {
  const Problem& p = call.problem;
  const KernelsFor<T>& kernels = kernels_for<T>();
  const int64_t row_size = p.width * p.channels;
  struct Band {
    Region region;
    int64_t first, last;
    std::vector<T> rows;
  };
  std::vector<Band> all(p.batch * bands);
  torch::stable::parallel_for(0, p.batch * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Band& band = all[i];
      const int64_t number = i % bands;
      band.region = Region{i / bands, 0, p.groups, number * p.out_height / bands * p.out_width,
                           (number + 1) * p.out_height / bands * p.out_width};
      T* grad_image = nullptr;
      if (call.grad_input != nullptr) {
        kernels.sampled_rows(call, band.region, &band.first, &band.last);
        band.rows.assign(std::max<int64_t>(0, band.last - band.first + 1) * row_size, T(0));
        grad_image = band.rows.data() - band.first * row_size;
      }
      kernels.backward(call, band.region, grad_image);
    }
  });
  if (call.grad_input == nullptr) return;
  torch::stable::parallel_for(0, p.batch * p.height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / p.height, y = i % p.height;
      T* out = call.grad_input + i * row_size;
      std::fill_n(out, row_size, T(0));
      for (int64_t number = 0; number < bands; ++number) {
        const Band& band = all[image * bands + number];
        if (y < band.first || y > band.last) continue;
        const T* row = band.rows.data() + (y - band.first) * row_size;
        for (int64_t c = 0; c < row_size; ++c) out[c] += row[c];
      }
    }
  });
}

// Bands per image; 1 if it is not divided. Must not depend on the number of threads.
int64_t choose_bands(const Problem& p) {
  constexpr int64_t kMinPixels = 8192, kMinRows = 16, kTasks = 16;
  if (p.batch == 0 || p.out_pixels() < kMinPixels) return 1;
  return std::max<int64_t>(1, std::min(kTasks / p.batch, p.out_height / kMinRows));
}

// An empty gradient of a tensor, of no elements if it is not wanted.
Tensor gradient_of(const Tensor& like, bool is_wanted, ScalarType dtype) {
  const int64_t none[] = {0};
  return empty(is_wanted ? like.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(none, 1),
               dtype);
}

template <typename T>
T* pointer_to(Tensor& gradient, bool is_wanted) {
  return is_wanted ? gradient.mutable_data_ptr<T>() : nullptr;
}

template <typename T>
void run_backward(const Backward<T>& call) {
  const int64_t bands = choose_bands(call.problem);
  if (bands > 1) {
    backward_by_bands<T>(call, bands);
  } else if (call.problem.batch > 0) {
    backward_by_groups<T>(call);
  }
}

void check_grad(const Problem& p, const Tensor& grad) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == p.batch && grad.size(1) == p.out_height &&
                      grad.size(2) == p.out_width && grad.size(3) == p.channels,
                  "grad does not have the shape of the output");
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(const Tensor grad, const Tensor input,
                                                  const Tensor offset, const Tensor mask,
                                                  int64_t groups, Pair kernel_size, Pair stride,
                                                  Pair padding, Pair dilation, double offset_scale,
                                                  bool remove_center, bool mask_softmax,
                                                  std::vector<bool> output_mask) {
  const Problem p = make_problem(input, offset, mask, groups, kernel_size, stride, padding,
                                 dilation, offset_scale, remove_center, mask_softmax);
  check_grad(p, grad);
  STD_TORCH_CHECK(output_mask.size() == 3, "output_mask must have three entries");
  return by_dtype(input, [&](auto zero, ScalarType dtype) {
    using T = decltype(zero);
    const Tensor g = dense_as(grad, dtype), x = dense_as(input, dtype);
    const OwnedPoints<T> owned = separate<T>(p, offset, mask, dtype);
    Tensor grad_input = gradient_of(input, output_mask[0], dtype);
    // The kernels compute both or neither.
    const bool wants_points = output_mask[1] || output_mask[2];
    Tensor grad_offset = gradient_of(offset, wants_points, dtype);
    Tensor grad_mask = gradient_of(mask, wants_points, dtype);
    Backward<T> call{};
    call.problem = p;
    call.grad = g.template const_data_ptr<T>();
    call.input = x.template const_data_ptr<T>();
    call.points = owned.points;
    call.grad_input = pointer_to<T>(grad_input, output_mask[0]);
    const int64_t points = p.points();
    call.grad_points = {
        {pointer_to<T>(grad_offset, wants_points), 2 * p.groups * points, 2 * points},
        {pointer_to<T>(grad_mask, wants_points), p.groups * points, points}};
    run_backward<T>(call);
    if (!output_mask[1]) grad_offset = gradient_of(offset, false, dtype);
    if (!output_mask[2]) grad_mask = gradient_of(mask, false, dtype);
    return std::tuple(back_to(grad_input, input.scalar_type()),
                      back_to(grad_offset, offset.scalar_type()),
                      back_to(grad_mask, mask.scalar_type()));
  });
}

std::tuple<Tensor, Tensor> dcnv4_backward(const Tensor grad, const Tensor input,
                                          const Tensor offset_mask, int64_t groups,
                                          Pair kernel_size, Pair stride, Pair padding,
                                          Pair dilation, double offset_scale, bool remove_center,
                                          std::vector<bool> output_mask) {
  const Problem p = make_packed_problem(input, offset_mask, groups, kernel_size, stride, padding,
                                        dilation, offset_scale, remove_center);
  check_grad(p, grad);
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask must have two entries");
  return by_dtype(input, [&](auto zero, ScalarType dtype) {
    using T = decltype(zero);
    const Tensor g = dense_as(grad, dtype), x = dense_as(input, dtype);
    const OwnedPoints<T> owned = packed<T>(p, offset_mask, dtype);
    Tensor grad_input = gradient_of(input, output_mask[0], dtype);
    Tensor grad_rows = gradient_of(offset_mask, output_mask[1], dtype);
    Backward<T> call{};
    call.problem = p;
    call.grad = g.template const_data_ptr<T>();
    call.input = x.template const_data_ptr<T>();
    call.points = owned.points;
    call.grad_input = pointer_to<T>(grad_input, output_mask[0]);
    if (output_mask[1]) {
      call.grad_points = unpack(p, grad_rows.mutable_data_ptr<T>(), p.row_width());
      call.padding = p.row_width() - 3 * p.groups * p.points();
    }
    run_backward<T>(call);
    return std::tuple(back_to(grad_input, input.scalar_type()),
                      back_to(grad_rows, offset_mask.scalar_type()));
  });
}

std::string cpu_capability() { return active_kernels().name; }

}  // namespace
}  // namespace internimage::cpu

STABLE_TORCH_LIBRARY_IMPL(internimage, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&internimage::cpu::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&internimage::cpu::dcnv3_backward));
  m.impl("dcnv4", TORCH_BOX(&internimage::cpu::dcnv4));
  m.impl("dcnv4_backward", TORCH_BOX(&internimage::cpu::dcnv4_backward));
  m.impl("dcnv4.inference", TORCH_BOX(&internimage::cpu::dcnv4_inference));
}

STABLE_TORCH_LIBRARY_IMPL(internimage, AutogradCPU, m) {
  m.impl("dcnv4.inference", TORCH_BOX(&internimage::cpu::dcnv4_inference));
}

STABLE_TORCH_LIBRARY_IMPL(internimage, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&internimage::cpu::cpu_capability));
}
