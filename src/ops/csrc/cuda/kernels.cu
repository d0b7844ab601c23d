// Launches of the kernels for one type, INTERNIMAGE_TYPE. Compiled once per type, so that compilers
// can run side by side.
#include <cstdint>

#include "backward.cuh"
#include "forward.cuh"
#include "launch.h"

namespace internimage::cuda {
namespace {

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Of the current device.
int read_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

template <typename T>
Plan make_plan_here(const Call<T>& call, int channels_per_thread) {
  const int multiprocessors = read_attribute(cudaDevAttrMultiProcessorCount);
  return make_plan(call, channels_per_thread, std::max(1, multiprocessors));
}

// Blocks may have 48 KiB of shared memory without asking.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Plan& plan, size_t shared, CUstream_st* stream,
            const Arguments&... arguments) {
  if (shared > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared));
  }
  const dim3 grid(plan.blocks_per_image, plan.images_y, plan.images_z);
  kernel<<<grid, kThreads, shared, stream>>>(arguments...);
}

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

template <typename T>
const char* launch_forward(const Call<T>& call, T* output, CUstream_st* stream) {
  choose_kernel(call, is_aligned(call.input), [&](auto vector, auto points) {
    const Plan plan = make_plan_here(call, vector);
    launch(forward_kernel<T, vector, points>, plan, forward_shared_size<T>(plan, call.points),
           stream, call, plan, output);
  });
  return last_error();
}

template <typename T>
const char* launch_backward(const Call<T>& call, const Gradients<T>& gradients,
                            CUstream_st* stream) {
  const auto run = [&](auto kernel, int vector) {
    const Plan plan = make_plan_here(call, vector);
    launch(kernel, plan, backward_shared_size<T>(plan, call.points), stream, call, plan, gradients);
  };
  // Where additions to memory go one by one (fixed point, and before sm_90), neighbouring threads
  // had better add to neighbouring channels.
  const bool adds_vectors =
      gradients.unit == nullptr && read_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  const bool is_vector = adds_vectors && is_aligned(call.input) && is_aligned(gradients.output);
  choose_kernel(call, is_vector, [&](auto vector, auto points) {
    if (gradients.unit == nullptr) {
      run(backward_kernel<T, vector, points, false>, vector);
    } else if constexpr (vector == 1) {
      run(backward_kernel<T, 1, 0, true>, 1);
    }
  });
  return last_error();
}

template const char* launch_forward(const Call<INTERNIMAGE_TYPE>&, INTERNIMAGE_TYPE*,
                                    CUstream_st*);
template const char* launch_backward(const Call<INTERNIMAGE_TYPE>&,
                                     const Gradients<INTERNIMAGE_TYPE>&, CUstream_st*);

}  // namespace internimage::cuda
