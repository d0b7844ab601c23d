// The CPU kernels of one instruction set. Built once per set with -DCPU_CAPABILITY=<set> and its
// compiler flags. The at::vec headers cannot be used with TORCH_TARGET_VERSION, so the binding with
// the stable ABI is a separate translation unit.
#include "backward.h"
#include "block.h"
#include "forward.h"
#include "mlp.h"
#include "norm_backward.h"

#define INTERNIMAGE_STRING(x) #x
#define INTERNIMAGE_NAME(x) INTERNIMAGE_STRING(x)

namespace internimage::cpu::CPU_CAPABILITY {

const Kernels kernels = {
    INTERNIMAGE_NAME(CPU_CAPABILITY),
    {forward<float>, backward<float>, sampled_rows<float>},
    {forward<double>, backward<double>, sampled_rows<double>},
    forward<uint16_t>,
    {norm_rows<float>, depthwise_norm_gelu<float>, bias_gelu<float>, bias_gelu_backward<float>,
     norm_backward<float>},
    {norm_rows<uint16_t>, depthwise_norm_gelu<uint16_t>, bias_gelu<uint16_t>,
     bias_gelu_backward<uint16_t>, norm_backward<uint16_t>},
    {project_block<float>, finish_block<float>},
#if defined(CPU_CAPABILITY_AVX512)
    {project_block<uint16_t>, finish_block<uint16_t>},
    {pack, transpose, copy_to_tiles, copy_to_panels, add_outer_products, mlp, mlp_backward,
     mlp_weight_gradients},
#else
    {},
    {},
#endif
};

}  // namespace internimage::cpu::CPU_CAPABILITY
