// Launches of the kernels for one type, INTERNIMAGE_TYPE. Compiled once per type, so that the types
// can be compiled in parallel.
#include <cstdint>

#include "backward.cuh"
#include "forward.cuh"
#include "launch.h"

namespace internimage::cuda {
namespace {

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Properties of the current device.
int read_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

Limits read_limits() {
  return {std::max(1, read_attribute(cudaDevAttrMultiProcessorCount)),
          read_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          read_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

// More than 48 KiB of shared memory per block must be requested.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Plan& plan, CUstream_st* stream,
            const Arguments&... arguments) {
  if (plan.shared > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(plan.shared));
  }
  const dim3 grid(plan.blocks_per_image, plan.images_y, plan.images_z);
  kernel<<<grid, plan.threads, plan.shared, stream>>>(arguments...);
}

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

template <typename T>
const char* launch_forward(const Call<T>& call, T* output, CUstream_st* stream) {
  choose_kernel(call, is_aligned(call.input), [&](auto vector, auto points) {
    const Plan plan = make_forward_plan(call, vector, read_limits());
    launch(forward_kernel<T, vector, points>, plan, stream, call, plan, output);
  });
  return last_error();
}

template <typename T>
bool owns_maps(const Call<T>& call) {
  return make_backward_plan(call, 1, read_limits()).copy.is_whole_map;
}

template <typename T>
const char* launch_backward(const Call<T>& call, const Gradients<T>& gradients,
                            CUstream_st* stream) {
  const bool has_vectors = is_aligned(call.input) && is_aligned(gradients.output);
  choose_kernel(call, has_vectors, [&](auto vector, auto points) {
    const BackwardPlan plans = make_backward_plan(call, vector, read_limits());
    launch(backward_kernel<T, vector, points>, plans.plan, stream, call, plans, gradients);
  });
  return last_error();
}

template const char* launch_forward(const Call<INTERNIMAGE_TYPE>&, INTERNIMAGE_TYPE*,
                                    CUstream_st*);
template bool owns_maps(const Call<INTERNIMAGE_TYPE>&);
template const char* launch_backward(const Call<INTERNIMAGE_TYPE>&,
                                     const Gradients<INTERNIMAGE_TYPE>&, CUstream_st*);

}  // namespace internimage::cuda
