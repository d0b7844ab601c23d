// Instruction sets of this processor that the operating system supports, on x86.
//
// __builtin_cpu_supports is not used: it is always false with the runtime library of zig, which
// builds the manylinux wheels.
#pragma once

#include <cstdint>
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace internimage::cpu {

struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx_bf16 = false;
};

inline Features x86_features() {
  // Leaves 1 and 7 of cpuid, the second part of leaf 7, xcr0.
  uint32_t ebx1 = 0, ecx1 = 0, ebx7 = 0, edx7 = 0, eax71 = 0, saved = 0;
#ifdef _MSC_VER
  int registers[4];
  __cpuid(registers, 0);
  if (registers[0] < 7) return {};
  __cpuid(registers, 1);
  ecx1 = registers[2];
  __cpuidex(registers, 7, 0);
  ebx7 = registers[1];
  edx7 = registers[3];
  if (registers[0] > 0) {
    __cpuidex(registers, 7, 1);
    eax71 = registers[0];
  }
  if (ecx1 >> 27 & 1) saved = static_cast<uint32_t>(_xgetbv(0));
#else
  uint32_t eax = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx1, &ecx1, &edx)) return {};
  if (!__get_cpuid_count(7, 0, &eax, &ebx7, &ecx, &edx7)) return {};
  uint32_t ebx = 0;
  if (eax > 0) __get_cpuid_count(7, 1, &eax71, &ebx, &ecx, &edx);
  if (ecx1 >> 27 & 1) __asm__("xgetbv" : "=a"(saved), "=d"(edx) : "c"(0));
#endif
  const auto has = [](uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; };
  Features features;
  // FMA and F16C, AVX2; the 256-bit registers are saved at a context switch.
  features.avx2 = has(ecx1, 1u << 12 | 1u << 29) && has(ebx7, 1u << 5) && has(saved, 0x6);
  // F, DQ, BW and VL; the masks and the 512-bit registers are saved too.
  features.avx512 = features.avx2 && has(ebx7, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) &&
                    has(saved, 0xe6);
  features.avx512_bf16 = features.avx512 && has(eax71, 1u << 5);
  features.amx_bf16 = features.avx512 && has(edx7, 1u << 22);
  return features;
}

}  // namespace internimage::cpu
