"""DCNv3, the operator of InternImage: public function, schema, autograd and dispatch.

Source: InternImage (CVPR 2023, arXiv 2211.05778), eq. 2. This module defines schema, shape
inference, autograd, autocast and the fallback. Compiled libraries only register kernels for
``internimage::dcnv3`` and ``internimage::dcnv3_backward`` with their dispatch key, which take
precedence over the fallback; so does Triton if it is selected. There is no second derivative.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import reference
from ._arguments import Pair, Window, as_window, check_tensors, make_window, output_size
from ._autograd import (
    BACKWARD_SCHEMA,
    FORWARD_SCHEMA,
    cast_by_autocast,
    double_backward,
    fake_gradients,
    gradients,
    overload_for,
    setup_context,
)
from ._load import LIBRARIES
from .fixed_point import fixed_point_unit, from_fixed_point

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    groups: int,
    kernel_size: int | Pair = 3,
    stride: int | Pair = 1,
    padding: int | Pair = 1,
    dilation: int | Pair = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    mask_softmax: bool = False,
) -> Tensor:
    """Weighted sum of bilinear samples of ``input`` at learned locations, per group.

    For group ``g`` and output pixel ``(oy, ox)`` the result is
    ``sum_p mask[g, p] * bilinear(input_g, position_p)``; ``x`` of a position (``y`` likewise) is
    ``ox * stride_w - pad_w + half_w + (i * dilation_w - half_w + dx) * offset_scale`` with
    ``half_w = dilation_w * (kernel_w - 1) // 2``. Points run over the kernel with the width index
    ``i`` slow and the height index fast. Pixels outside the image are zero; a point contributes
    only if ``-1 < x < W`` and ``-1 < y < H``, so NaN offsets contribute nothing. There is no weight
    and no bias.

    Works under autocast (``input`` is cast, see ``offset``), ``torch.compile(fullgraph=True)``,
    ``torch.export`` and ``torch.jit.trace``. Results on the CPU are bitwise identical for any
    number of threads.

    Args:
        input: Values of shape ``(N, H, W, C)``, channels last, float64, float32, float16 or
            bfloat16; ``N`` may be 0.
        offset: Displacements in pixels, shape ``(N, H_out, W_out, groups * P * 2)``, pairs
            ``(dx, dy)``, with ``P = kernel_h * kernel_w - remove_center``. Dtype of ``input``, or
            float32 with a 16-bit ``input``. May be a slice of a larger tensor along the last
            dimension; it is not copied.
        mask: Weights of the points, shape ``(N, H_out, W_out, groups * P)``; dtype and slices as
            ``offset``.
        groups: Number of channel groups, a divisor of ``C``.
        kernel_size: Window size ``(height, width)`` or one integer for both, at least 1.
        stride: Step of the window in pixels, at least 1.
        padding: Implicit zero padding in pixels, at least 0.
        dilation: Distance between adjacent points in pixels, at least 1.
        offset_scale: Scale of the offsets and the regular grid.
        remove_center: Omit the centre point; needs an odd square kernel.
        mask_softmax: ``mask`` contains logits, and the operator applies a softmax over the ``P``
            points of each group.

    Returns:
        Tensor of shape ``(N, H_out, W_out, C)``, dtype of ``input`` (under autocast: the autocast
        dtype).

    Raises:
        ValueError: If shapes, devices or window arguments are invalid.
        TypeError: If a dtype is not supported.
        OpNotBuiltError: With ``INTERNIMAGE_OPS=compiled`` (or ``triton``, on a GPU) if there is no
            such kernel.
    """
    window = make_window(
        groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, mask_softmax
    )
    device_type = input.device.type
    input = cast_by_autocast(input)
    # Sizes are traced, so they must not be compared.
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return torch.ops.internimage.dcnv3.default(input, offset, mask, *window)
    check_tensors(input, offset, mask, window)
    is_traced = torch.compiler.is_compiling()
    if is_traced and not torch.compiler.is_exporting() and uses_triton_op(device_type):
        return torch.ops.internimage.dcnv3_triton.default(input, offset, mask, *window)
    if is_traced or torch._C._are_functorch_transforms_active():
        return torch.ops.internimage.dcnv3.default(input, offset, mask, *window)
    if torch.is_grad_enabled() and (
        input.requires_grad or offset.requires_grad or mask.requires_grad
    ):
        return _Eager.apply(input, offset, mask, window)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.internimage.dcnv3.default(input, offset, mask, *window)


# The overload is called on a GPU under torch.use_deterministic_algorithms; the CPU kernel always is
# deterministic.
_BACKWARDS = ("internimage::dcnv3_backward", "internimage::dcnv3_backward.deterministic")
torch.library.define("internimage::dcnv3", FORWARD_SCHEMA, tags=_TAGS)
for _name in _BACKWARDS:
    torch.library.define(_name, BACKWARD_SCHEMA, tags=_TAGS)
# The compiled GPU kernel of that overload. Where its blocks own whole maps it needs no `unit`;
# elsewhere `unit` is that of fixed_point.py, and the input gradient is int64.
torch.library.define(
    "internimage::dcnv3_backward_fixed_point", BACKWARD_SCHEMA.replace("(", "(Tensor? unit, ", 1)
)
torch.library.define("internimage::dcnv3_owns_maps", FORWARD_SCHEMA.split("->")[0] + "-> bool")
# What the loaded libraries are compiled for.
torch.library.define("internimage::cpu_capability", "() -> str")
torch.library.define("internimage::cuda_architectures", "() -> str")


@torch.library.register_kernel("internimage::dcnv3", None)
def _fallback(input: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    LIBRARIES.on_fallback(input.device.type)
    return reference.forward(input, offset, mask, as_window(window))


@torch.library.register_kernel("internimage::dcnv3_backward", None)
def _fallback_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    LIBRARIES.on_fallback(input.device.type)
    return reference.backward(grad, input, offset, mask, as_window(args[:-1]), tuple(args[-1]))


@torch.library.register_kernel("internimage::dcnv3_backward.deterministic", None)
def _fallback_backward_deterministic(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.internimage.dcnv3_backward.default(*args)


@torch.library.register_fake("internimage::dcnv3")
def _fake(input: Tensor, offset: Tensor, mask: Tensor, *args: Any) -> Tensor:
    window = as_window(args)
    n, h, w, c = input.shape
    h_out, w_out = output_size(h, w, window)
    for tensor, values in ((offset, 2), (mask, 1)):
        expected = (n, h_out, w_out, window.groups * window.points * values)
        for have, want in zip(tensor.shape, expected, strict=True):
            torch._check(have == want)
    return input.new_empty(n, h_out, w_out, c)


for _name in _BACKWARDS:
    torch.library.register_fake(_name, fake_gradients)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    operator = overload_for(torch.ops.internimage.dcnv3_backward, grad)
    return gradients(operator, ctx, grad)


torch.library.register_autograd("internimage::dcnv3", _gradients, setup_context=setup_context)
for _name in _BACKWARDS:
    torch.library.register_autograd(_name, double_backward)


class _Eager(Function):
    """The same operators and gradients as registered above, for eager training.

    It has a third of the overhead of the generic autograd wrapper of ``torch.library``, which takes
    longer than the kernels for small feature maps.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(input, offset, mask)
        ctx.window = window
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.internimage.dcnv3.default(input, offset, mask, *window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the registered operator raises
            return *_gradients(ctx, grad)[:3], None
        with torch._C._AutoDispatchBelowAutograd():
            return *_gradients(ctx, grad)[:3], None


def _compiled_deterministic(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    operators = torch.ops.internimage
    if operators.dcnv3_owns_maps.default(*args[1:-1]):
        return operators.dcnv3_backward_fixed_point.default(None, *args)
    grad, input, _, mask = args[:4]
    unit = fixed_point_unit(grad, mask, as_window(args[4:-1]))
    sums, *rest = operators.dcnv3_backward_fixed_point.default(unit, *args)
    return from_fixed_point(sums, unit, input.dtype), *rest


# Triton is imported by the first call on a GPU, not by everyone who imports this package.
def _triton(input: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    from .triton import launch

    return launch.forward(input, offset, mask, as_window(window))


def _triton_backward(*args: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    from .triton import launch

    grad, input, offset, mask, *rest, wanted = args
    window = as_window(tuple(rest))
    return launch.backward(
        grad, input, offset, mask, window, tuple(wanted), deterministic=deterministic
    )


def _register_on_gpu(kernels: dict[str, Any]) -> None:
    for name, kernel in kernels.items():
        torch.library.register_kernel(f"internimage::{name}", "cuda", kernel)


if LIBRARIES.kernel("cuda") == "compiled":  # the library has registered the rest itself
    _register_on_gpu({"dcnv3_backward.deterministic": _compiled_deterministic})
elif LIBRARIES.kernel("cuda") == "triton":
    _register_on_gpu(
        {
            "dcnv3": _triton,
            "dcnv3_backward": _triton_backward,
            "dcnv3_backward.deterministic": partial(_triton_backward, deterministic=True),
        }
    )


def uses_triton_op(device_type: str) -> bool:
    """Whether ``torch.compile`` uses the ``torch.library.triton_op`` on this device type."""
    if device_type != "cuda" or LIBRARIES.kernel("cuda") != "triton":
        return False
    from .triton import operators  # noqa: F401  defines them

    return True


# As torch.compiler.assume_constant_result, which would import the compiler: a second for everyone
# who imports this package.
uses_triton_op._dynamo_marked_constant = True  # type: ignore[attr-defined]
