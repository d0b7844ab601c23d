"""Compile the Triton kernels without a GPU, with the settings of `launch.py`."""

import torch
from triton import compile as compile_source
from triton.compiler import ASTSource

from src.ops._arguments import make_window
from src.ops.triton import fused, input_gradient, kernels, launch

NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
GROUPS = 4


def compile_kernel(direction, target, dtype, *, wide=False, deterministic=False, **shape):
    """Code of one kernel in every form; `wide` as for more than 2^31 rows."""
    is_product = direction == "backward_input"
    kernel = getattr(input_gradient if is_product else kernels, direction)
    constants = _constants(dtype, is_product, target, **shape)
    if is_product:
        constants |= {"DETERMINISTIC": deterministic} | ({} if deterministic else {"unit": None})
    else:
        constants["WIDE"] = wide
    if direction == "backward":
        constants |= dict.fromkeys(["WANT_OFFSET", "WANT_MASK"], True)
    types = _pointers(dtype, deterministic) | {"count": "i64" if wide else "i32"}
    if constants.get("OWNS"):
        types["grad_input"] = types["grad"]
    warps = launch.product_warps(dtype) if is_product else 4
    return _compile(kernel, target, constants, types, warps)


def compile_fused(name, target, dtype, channels, gelu):
    """Code of one kernel of ``fused.py``; norms have GELU or the gradient of a residual."""
    x = torch.empty(2, channels, dtype=dtype, device="meta")
    is_norm = name.startswith("layer_norm")
    constants = fused.norm_constants(x, 1e-6, gelu) if is_norm else fused.gelu_constants(x)
    kernel, warps = fused.KERNELS[name], constants.pop("num_warps", 4)
    if name == "layer_norm_backward" and gelu:
        constants["residual"] = None
    types = dict.fromkeys(kernel.arg_names, f"*{NAMES[dtype]}")
    types |= {"rows": "i32", "sums": "*fp64" if dtype == torch.float64 else "*fp32"}
    return _compile(kernel, target, constants, types, warps)


def _compile(kernel, target, constants, types, warps):
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return compile_source(source, target=target, options={"num_warps": warps}).asm


def _constants(dtype, is_product, target, channels=16, kernel_size=3, remove_center=False, side=56):
    x = torch.empty(1, side, side, GROUPS * channels, dtype=dtype, device="meta")
    padding = kernel_size // 2
    window = make_window(
        GROUPS, kernel_size, 1, padding, 1, 1.0, remove_center=remove_center, mask_softmax=True
    )
    if not is_product:
        return launch._constants(x, window)
    return launch._product_constants(x, window, is_amd=target.backend == "hip")


def _pointers(dtype, deterministic):
    """Types of the tensors."""
    same = ["input", "offset", "mask", "output", "grad", "grad_offset", "grad_mask"]
    sums = NAMES[torch.float64 if dtype == torch.float64 else torch.float32]
    grad_input = "i64" if deterministic else sums
    others = {"unit": "*fp64", "grad_input": f"*{grad_input}", "scratch": f"*{sums}"}
    return dict.fromkeys(same, f"*{NAMES[dtype]}") | others
