// Selects the kernels of the best instruction set.
#include <cstdlib>
#include <cstring>

#ifdef INTERNIMAGE_X86
#include "features.h"
#endif
#include "kernels.h"

namespace internimage::cpu {
namespace {

const Kernels& choose_kernels() {
#ifdef INTERNIMAGE_X86
  const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
  const auto allows = [wish](const char* name) {
    return wish == nullptr || std::strcmp(wish, name) == 0;
  };
  const Features features = x86_features();
#ifndef _MSC_VER  // not built there (setup.py)
  if (features.avx512 && allows("avx512")) return AVX512::kernels;
#endif
  if (features.avx2 && (allows("avx2") || allows("avx512"))) return AVX2::kernels;
#endif
  return DEFAULT::kernels;
}

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& kernels = choose_kernels();
  return kernels;
}

}  // namespace internimage::cpu
