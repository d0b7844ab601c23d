"""Multi-scale deformable attention: public function, schema, autograd and dispatch.

Source: Zhu et al., "Deformable DETR", ICLR 2021 (arXiv 2010.04159), eq. 3, with the sampling rule
of the official operator (pixel centres at half-integers, zeros outside the feature map). It is used
by DINO and Mask2Former. Projections and the softmax are part of the module
(``src.models.layers.deformable_attention``).

Each level is computed with ``torch.nn.functional.grid_sample``. The backward pass is a separate
operator that samples again, so training saves the arguments instead of the samples, which are
``levels * points`` times larger than the output. On a GPU, the kernels of the optional package
``deformops`` are used if it is installed. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import FLOATING_DTYPES, HALF_DTYPES
from ._autograd import cast_by_autocast
from ._deformops import DEFORMOPS

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples of all levels at the locations of each query.

    For query ``q`` and head ``h`` the result is ``sum_(l, p) weights[q, h, l, p] *
    bilinear(value_l[h], locations[q, h, l, p])``. A location ``(x, y)`` of 0 is the outer edge of
    the first pixel and 1 the outer edge of the last one, so pixel ``i`` of ``W`` has its centre at
    ``(i + 0.5) / W``. Pixels outside the feature map are zero.

    Works under autocast (``value`` is cast), ``torch.compile(fullgraph=True)`` and
    ``torch.export``.

    Args:
        value: Feature maps of all levels, flattened row by row and concatenated, shape
            ``(N, S, heads, head_channels)``; float64, float32, float16 or bfloat16.
        spatial_shapes: Height and width of each level, in any order;
            ``sum(height * width) == S``.
        locations: Sampling locations ``(x, y)``, normalised to [0, 1], shape ``(N, Q, heads,
            levels, points, 2)``; dtype of ``value``, or float32 with a 16-bit ``value``. Values
            outside [0, 1] are allowed.
        weights: Attention weights, shape ``(N, Q, heads, levels, points)``; dtype as
            ``locations``.

    Returns:
        Tensor of shape ``(N, Q, heads * head_channels)``, dtype of ``value`` (under autocast: the
        autocast dtype).

    Raises:
        ValueError: If shapes or devices do not match.
        TypeError: If a dtype is not supported.
        OpNotBuiltError: With ``INTERNIMAGE_OPS=compiled`` on a GPU without ``deformops``.
    """
    value = cast_by_autocast(value)
    check_attention(value, spatial_shapes, locations, weights)
    if DEFORMOPS.takes(value):
        return DEFORMOPS.run(value, spatial_shapes, locations, weights)
    sides = [side for shape in spatial_shapes for side in shape]
    out: Tensor = torch.ops.internimage.ms_deform_attn.default(value, sides, locations, weights)
    return out


def check_attention(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> None:
    """Raise ``ValueError`` or ``TypeError`` if shapes, dtypes or devices do not match."""
    if value.dim() != 4:
        raise ValueError(
            f"value must have shape (N, S, heads, head_channels), got {tuple(value.shape)}."
        )
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(f"value must be float64, float32, float16 or bfloat16, got {value.dtype}.")
    batch, tokens, heads, _ = value.shape
    levels = len(spatial_shapes)
    if levels < 1 or any(height < 1 or width < 1 for height, width in spatial_shapes):
        raise ValueError(
            f"spatial_shapes must be at least one (height, width), each at least 1, got "
            f"{list(spatial_shapes)}."
        )
    pixels = sum(height * width for height, width in spatial_shapes)
    if pixels != tokens:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} have {pixels} pixels, value has {tokens}."
        )
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(
            f"locations must have shape (N, Q, heads, levels, points, 2), got "
            f"{tuple(locations.shape)}."
        )
    _, queries, _, _, points, _ = locations.shape
    if locations.shape != (batch, queries, heads, levels, points, 2):
        raise ValueError(
            f"locations must have shape {(batch, queries, heads, levels, points, 2)} = "
            f"(N, Q, heads, levels, points, 2), got {tuple(locations.shape)}."
        )
    if weights.shape != (batch, queries, heads, levels, points):
        raise ValueError(
            f"weights must have shape {(batch, queries, heads, levels, points)} = "
            f"(N, Q, heads, levels, points), got {tuple(weights.shape)}."
        )
    for name, tensor in (("locations", locations), ("weights", weights)):
        is_wider = value.dtype in HALF_DTYPES and tensor.dtype == torch.float32
        if tensor.dtype != value.dtype and not is_wider:
            raise TypeError(
                f"{name} must have the dtype of value, {value.dtype}, got {tensor.dtype}."
            )
        if tensor.device != value.device:
            raise ValueError(
                f"{name} must be on the device of value, {value.device}, got {tensor.device}."
            )


torch.library.define(
    "internimage::ms_deform_attn",
    "(Tensor value, SymInt[] sides, Tensor locations, Tensor weights) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "internimage::ms_deform_attn_backward",
    "(Tensor grad, Tensor value, SymInt[] sides, Tensor locations, Tensor weights) "
    "-> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


@torch.library.register_kernel("internimage::ms_deform_attn", None)
def _forward(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    DEFORMOPS.on_fallback(value.device.type)
    batch, queries, heads = locations.shape[:3]
    total = None
    for image, grid, weight in _levels(value, sides, locations, weights):
        part = (_sample(image, grid) * weight).sum(-1)  # (N * heads, channels, Q)
        total = part if total is None else total.add_(part)
    assert total is not None
    out = total.view(batch, heads * value.shape[3], queries)
    return out.transpose(1, 2).to(value.dtype).contiguous()


@torch.library.register_kernel("internimage::ms_deform_attn_backward", None)
def _backward_kernel(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, heads = locations.shape[:3]
    channels = value.shape[3]
    grad = grad.to(_wide(value)).view(batch, queries, heads, channels).permute(0, 2, 3, 1)
    grad = grad.reshape(batch * heads, channels, queries, 1)
    grads: list[list[Tensor]] = [[], [], []]
    for image, grid, weight in _levels(value, sides, locations, weights):
        grad_weight = (_sample(image, grid) * grad).sum(1)  # (N * heads, Q, P)
        grad_image, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weight, image, grid, 0, 0, False, [True, True]
        )
        grad_pixels = grad_image.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
        grads[0].append(grad_pixels)
        grads[1].append(2 * grad_grid.unflatten(0, (batch, heads)).transpose(1, 2))
        grads[2].append(grad_weight.unflatten(0, (batch, heads)).transpose(1, 2))
    return (
        torch.cat(grads[0], dim=1).to(value.dtype).contiguous(),
        torch.stack(grads[1], dim=3).to(locations.dtype).contiguous(),
        torch.stack(grads[2], dim=3).to(weights.dtype).contiguous(),
    )


def _levels(
    value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each level: image (N * heads, C, H, W), grid (N * heads, Q, P, 2), weights for both."""
    dtype = _wide(value)
    batch, queries, heads, _, points, _ = locations.shape
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    pixels = value.split([height * width for height, width in shapes], dim=1)
    grids = locations.to(dtype).transpose(1, 2) * 2 - 1  # (N, heads, Q, levels, P, 2)
    factors = weights.to(dtype).transpose(1, 2)  # (N, heads, Q, levels, P)
    return [
        (
            level.to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, value.shape[3], *shape),
            grids[:, :, :, i].reshape(batch * heads, queries, points, 2),
            factors[:, :, :, i].reshape(batch * heads, 1, queries, points),
        )
        for i, (level, shape) in enumerate(zip(pixels, shapes, strict=True))
    ]


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


@torch.library.register_fake("internimage::ms_deform_attn")
def _fake(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("internimage::ms_deform_attn_backward")
def _fake_backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)
    ctx.sides = sides


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grads = torch.ops.internimage.ms_deform_attn_backward.default(
        grad, value, ctx.sides, locations, weights
    )
    return grads[0], None, grads[1], grads[2]


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "ms_deform_attn has no second derivative; differentiate it without create_graph=True, or "
        f"use {__package__}.ms_deform_attn_reference, which can be differentiated twice."
    )


torch.library.register_autograd(
    "internimage::ms_deform_attn", _backward, setup_context=_setup_context
)
torch.library.register_autograd("internimage::ms_deform_attn_backward", _double_backward)
