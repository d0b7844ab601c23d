// Interface between the CUDA kernels (compiled by nvcc, once per type, no torch types) and the
// binding.
#pragma once

#include "call.h"

// cudaStream_t, without the toolkit's headers.
struct CUstream_st;

namespace internimage::cuda {

// Whether blocks of the backward pass own whole feature maps on the current device
// (Gradients::input).
template <typename T>
bool owns_maps(const Call<T>& call);

// Both return nullptr, or the CUDA error message.
template <typename T>
const char* launch_forward(const Call<T>& call, T* output, CUstream_st* stream);
template <typename T>
const char* launch_backward(const Call<T>& call, const Gradients<T>& gradients,
                            CUstream_st* stream);

}  // namespace internimage::cuda
