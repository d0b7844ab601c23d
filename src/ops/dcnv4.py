"""DCNv4, the operator of FlashInternImage: public function, schema, autograd and dispatch.

Source: "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
Applications" (CVPR 2024, arXiv 2401.06197), section 3. It is DCNv3 without the softmax, and offsets
and weights of an output pixel are one row of memory. This module defines schema, shape inference,
autograd and autocast; compiled libraries and Triton register kernels that read such rows. Without
them, the operators of DCNv3 are used, for which the rows are copied to two tensors.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._arguments import Pair, Window, as_window, check_packed, make_window, output_size, row_width
from ._autograd import (
    WINDOW_SCHEMA,
    cast_by_autocast,
    double_backward,
    fake_gradients,
    gradients,
    is_plain,
    overload_for,
)
from ._load import LIBRARIES
from .fixed_point import fixed_point_unit, from_fixed_point
from .packed import pack, unpack
from .reference import dcnv3_reference

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
_WINDOW = WINDOW_SCHEMA.removesuffix(", bool mask_softmax")


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    *,
    groups: int,
    kernel_size: int | Pair = 3,
    stride: int | Pair = 1,
    padding: int | Pair = 1,
    dilation: int | Pair = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Weighted sum of bilinear samples of ``input`` at learned locations, per group.

    The formula, the order of the points and the treatment of the border are those of
    :func:`src.ops.dcnv3` with ``mask_softmax=False``; the weights are not bounded.

    Args:
        input: Values of shape ``(N, H, W, C)``, channels last, float64, float32, float16 or
            bfloat16; ``N`` may be 0.
        offset_mask: Offsets and weights, shape ``(N, H_out, W_out, dcnv4_columns(...))``. The
            columns ``[3 * P * g, 3 * P * (g + 1))`` belong to group ``g``: ``P`` pairs
            ``(dx, dy)`` in pixels, then ``P`` weights. Columns after the last group are not read,
            and their gradient is zero. Dtype of ``input``, or float32 with a 16-bit ``input``.
        groups: Number of channel groups, a divisor of ``C``.
        kernel_size: Window size ``(height, width)`` or one integer for both, at least 1.
        stride: Step of the window in pixels, at least 1.
        padding: Implicit zero padding in pixels, at least 0.
        dilation: Distance between adjacent points in pixels, at least 1.
        offset_scale: Scale of the offsets and the regular grid.
        remove_center: Omit the centre point; needs an odd square kernel.

    Returns:
        Tensor of shape ``(N, H_out, W_out, C)``, dtype of ``input`` (under autocast: the autocast
        dtype).

    Raises:
        ValueError: If shapes, devices or window arguments are invalid.
        TypeError: If a dtype is not supported.
        OpNotBuiltError: As in :func:`src.ops.dcnv3`.
    """
    mask_softmax = False
    arguments = (
        groups,
        kernel_size,
        stride,
        padding,
        dilation,
        offset_scale,
        remove_center,
        mask_softmax,
    )
    if is_plain(input, offset_mask) and _has_inference:
        return _inference(input, offset_mask, arguments)
    window = make_window(*arguments)
    input = cast_by_autocast(input)
    # Sizes are traced, so they must not be compared.
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return torch.ops.internimage.dcnv4.default(input, offset_mask, *window[:-1])
    check_packed(input, offset_mask, window)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return torch.ops.internimage.dcnv4.default(input, offset_mask, *window[:-1])
    if torch.is_grad_enabled() and (input.requires_grad or offset_mask.requires_grad):
        return _Eager.apply(input, offset_mask, window)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.internimage.dcnv4.default(input, offset_mask, *window[:-1])


def _inference(input: Tensor, offset_mask: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """Call the kernel, which checks the tensors; only after an error, write a message for users."""
    try:
        integers, offset_scale = _flat_window(*arguments)
    except TypeError:  # a list cannot be looked up
        integers, offset_scale = _flat_window.__wrapped__(*arguments)
    try:
        output: Tensor = _call_inference(input, offset_mask, integers, offset_scale)
    except RuntimeError as error:
        failure = error
    else:
        return output
    check_packed(input, offset_mask, make_window(*arguments))
    raise failure


@lru_cache(maxsize=1024, typed=True)
def _flat_window(*arguments: Any) -> tuple[tuple[int, ...], float]:
    groups, *pairs, offset_scale, remove_center, _ = make_window(*arguments)
    sizes = (size for pair in pairs for size in pair)
    return (groups, *sizes, int(remove_center)), offset_scale


def dcnv4_columns(groups: int, kernel_size: int | Pair = 3, remove_center: bool = False) -> int:
    """Columns of ``offset_mask`` in :func:`dcnv4`: three per point, rounded up to a multiple of 8.

    Args:
        groups: Number of channel groups.
        kernel_size: Window size.
        remove_center: Whether the centre point is omitted.

    Raises:
        ValueError: If an argument is invalid.
    """
    return row_width(make_window(groups, kernel_size, 1, 0, 1, 1.0, remove_center, False))


def dcnv4_reference(
    input: Tensor,
    offset_mask: Tensor,
    *,
    groups: int,
    kernel_size: int | Pair = 3,
    stride: int | Pair = 1,
    padding: int | Pair = 1,
    dilation: int | Pair = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """DCNv4 in plain PyTorch, differentiable any number of times; see :func:`dcnv4`."""
    window = make_window(
        groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, False
    )
    check_packed(input, offset_mask, window)
    return dcnv3_reference(input, *unpack(offset_mask, window), **window._asdict())


_FORWARD = f"(Tensor input, Tensor offset_mask, {_WINDOW}) -> Tensor"
_BACKWARD = (
    f"(Tensor grad, Tensor input, Tensor offset_mask, {_WINDOW}, bool[2] output_mask)"
    " -> (Tensor, Tensor)"
)
# See dcnv3.py for the overload and for the operators of the compiled GPU library.
_BACKWARDS = ("internimage::dcnv4_backward", "internimage::dcnv4_backward.deterministic")
torch.library.define("internimage::dcnv4", _FORWARD, tags=_TAGS)
for _name in _BACKWARDS:
    torch.library.define(_name, _BACKWARD, tags=_TAGS)
torch.library.define(
    "internimage::dcnv4_backward_fixed_point", _BACKWARD.replace("(", "(Tensor? unit, ", 1)
)
# Without autograd, autocast or tracing, on the CPU: the arguments as one list. An overload, so that
# profilers show it by the same name.
torch.library.define(
    "internimage::dcnv4.inference",
    "(Tensor input, Tensor offset_mask, int[] window, float offset_scale) -> Tensor",
)
_call_inference = torch.ops.internimage.dcnv4.inference
torch.library.define("internimage::dcnv4_owns_maps", _FORWARD.split("->")[0] + "-> bool")


def has_kernel(device_type: str, name: str = "dcnv4") -> bool:
    """Whether a compiled library or Triton has kernels of this operator for a device type."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(
        f"internimage::{name}", device_type.upper()
    )
    return found


_has_inference = has_kernel("cpu", "dcnv4.inference")


@torch.library.register_kernel("internimage::dcnv4", None)
def _by_dcnv3(input: Tensor, offset_mask: Tensor, *args: Any) -> Tensor:
    LIBRARIES.on_older_library(input.device.type)
    window = as_window((*args, False))
    return torch.ops.internimage.dcnv3.default(input, *unpack(offset_mask, window), *window)


def _backward_by_dcnv3(
    operator: Any, grad: Tensor, input: Tensor, offset_mask: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    window = as_window((*args[:-1], False))
    is_input_wanted, are_rows_wanted = args[-1]
    wanted = [is_input_wanted, are_rows_wanted, are_rows_wanted]
    grad_input, grad_offset, grad_mask = operator(
        grad, input, *unpack(offset_mask, window), *window, wanted
    )
    if not are_rows_wanted:
        return grad_input, grad_offset
    return grad_input, pack(grad_offset, grad_mask, window)


@torch.library.register_kernel("internimage::dcnv4_backward", None)
def _by_dcnv3_backward(*args: Any) -> tuple[Tensor, Tensor]:
    return _backward_by_dcnv3(torch.ops.internimage.dcnv3_backward.default, *args)


@torch.library.register_kernel("internimage::dcnv4_backward.deterministic", None)
def _by_dcnv3_backward_deterministic(*args: Any) -> tuple[Tensor, Tensor]:
    return _backward_by_dcnv3(torch.ops.internimage.dcnv3_backward.deterministic, *args)


def _compiled_deterministic(*args: Any) -> tuple[Tensor, Tensor]:
    operators = torch.ops.internimage
    if operators.dcnv4_owns_maps.default(*args[1:-1]):
        return operators.dcnv4_backward_fixed_point.default(None, *args)
    grad, input, offset_mask = args[:3]
    window = as_window((*args[3:-1], False))
    unit = fixed_point_unit(grad, unpack(offset_mask, window)[1], window)
    sums, grad_rows = operators.dcnv4_backward_fixed_point.default(unit, *args)
    return from_fixed_point(sums, unit, input.dtype), grad_rows


# Triton is imported by the first call on a GPU, see dcnv3.py.
def _triton(input: Tensor, offset_mask: Tensor, *args: Any) -> Tensor:
    from .triton import launch

    return launch.forward_packed(input, offset_mask, as_window((*args, False)))


def _triton_backward(*args: Any, deterministic: bool = False) -> tuple[Tensor, Tensor]:
    from .triton import launch

    grad, input, offset_mask, *rest, wanted = args
    window = as_window((*rest, False))
    return launch.backward_packed(
        grad, input, offset_mask, window, tuple(wanted), deterministic=deterministic
    )


if has_kernel("cuda"):  # the library has registered the rest itself
    torch.library.register_kernel(_BACKWARDS[1], "cuda", _compiled_deterministic)
elif LIBRARIES.kernel("cuda") == "triton":
    torch.library.register_kernel("internimage::dcnv4", "cuda", _triton)
    torch.library.register_kernel(_BACKWARDS[0], "cuda", _triton_backward)
    torch.library.register_kernel(
        _BACKWARDS[1], "cuda", partial(_triton_backward, deterministic=True)
    )


@torch.library.register_fake("internimage::dcnv4")
def _fake(input: Tensor, offset_mask: Tensor, *args: Any) -> Tensor:
    window = as_window((*args, False))
    n, h, w, c = input.shape
    h_out, w_out = output_size(h, w, window)
    expected = (n, h_out, w_out, row_width(window))
    for have, want in zip(offset_mask.shape, expected, strict=True):
        torch._check(have == want)
    return input.new_empty(n, h_out, w_out, c)


for _name in _BACKWARDS:
    torch.library.register_fake(_name, fake_gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.window = inputs[2:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    operator = overload_for(torch.ops.internimage.dcnv4_backward, grad)
    return gradients(operator, ctx, grad)


torch.library.register_autograd("internimage::dcnv4", _gradients, setup_context=_setup_context)
for _name in _BACKWARDS:
    torch.library.register_autograd(_name, double_backward)


class _Eager(Function):
    """The same operators and gradients as registered above; see ``dcnv3.py`` for the reason."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset_mask: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(input, offset_mask)
        ctx.window = window[:-1]
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.internimage.dcnv4.default(input, offset_mask, *ctx.window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the registered operator raises
            return *_gradients(ctx, grad)[:2], None
        with torch._C._AutoDispatchBelowAutograd():
            return *_gradients(ctx, grad)[:2], None
