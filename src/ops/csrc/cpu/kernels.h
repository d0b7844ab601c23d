// Interface between the CPU kernels (compiled once per instruction set, no torch types) and the
// binding that calls them.
#pragma once

#include "../dcnv3.h"

namespace internimage::cpu {

// Offset and mask may be slices of wider rows: the last dimension is dense, consecutive pixels are
// `*_stride` elements apart.
template <typename T>
struct Forward {
  Problem problem;
  const T* input;
  const T* offset;
  const T* mask;
  int64_t offset_stride, mask_stride;
  T* output;
};

template <typename T>
struct Backward {
  Problem problem;
  const T* grad;
  const T* input;
  const T* offset;
  const T* mask;
  int64_t offset_stride, mask_stride;
  // Null where the gradient is not wanted.
  T* grad_input;
  T* grad_offset;
  T* grad_mask;
};

// Output pixels [pixel_begin, pixel_end) of one image, groups [group_begin, group_end).
struct Region {
  int64_t image, group_begin, group_end, pixel_begin, pixel_end;
};

template <typename T>
struct KernelsFor {
  // Output pixels [begin, end), counted over the whole batch.
  void (*forward)(const Forward<T>&, int64_t begin, int64_t end);
  // Writes grad_offset and grad_mask of the region. Adds to `grad_image`, the gradient of input
  // pixel (0, 0) of the region's image (null: not wanted), which must hold every input row that the
  // region samples.
  void (*backward)(const Backward<T>&, const Region&, T* grad_image);
  // Input rows [first, last] that the region's points can touch; first > last if there is none.
  void (*sampled_rows)(const Backward<T>&, const Region&, int64_t* first, int64_t* last);
};

struct Kernels {
  const char* name;
  KernelsFor<float> f32;
  KernelsFor<double> f64;
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

}  // namespace internimage::cpu
