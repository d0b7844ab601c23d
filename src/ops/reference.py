"""DCNv3 in plain PyTorch: the reference for tests and the fallback without a compiled kernel.

Source: InternImage (CVPR 2023, arXiv 2211.05778) eq. 2 and the arithmetic of its CUDA kernel:
positions are in pixels of the unpadded image (padding is implicit), a point contributes only if
``-1 < position < size`` in both dimensions, each of its four corners contributes only if it is
inside the image, and derivatives are those inside the floor cell. Differentiating
:func:`dcnv3_reference` therefore gives the gradients of the CUDA kernel, also at integer positions
and at exactly -1. Points that do not contribute (including NaN positions) add nothing, for any mask
and any pixel values.

It gathers one sampling point at a time, so memory stays a small multiple of the output. It is slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import Pair, Window, check_tensors, make_window


class Corner(NamedTuple):
    """One of the four pixels around a sampling position."""

    pixel: Tensor  # (N, L, G) int64, pixel number in the flattened image, clamped to it
    is_inside: Tensor  # (N, L, G) bool
    weight: Tensor  # (N, L, G) bilinear weight


class Point(NamedTuple):
    """One sampling point of every group and output pixel."""

    is_valid: Tensor  # (N, L, G) bool, -1 < position < size
    frac_x: Tensor  # (N, L, G) position inside the floor cell, in [0, 1)
    frac_y: Tensor  # (N, L, G)
    corners: tuple[Corner, Corner, Corner, Corner]  # (y0, x0), (y0, x1), (y1, x0), (y1, x1)


def dcnv3_reference(
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
    """DCNv3 in plain PyTorch with the gradients of the CUDA kernel; see :func:`src.ops.dcnv3`.

    Computes in float64 for float64 input and in float32 otherwise.
    """
    window = make_window(
        groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, mask_softmax
    )
    check_tensors(input, offset, mask, window)
    return forward(input, offset, mask, window)


def forward(input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Differentiable forward pass on validated arguments."""
    n, h, w, c = input.shape
    h_out, w_out = offset.shape[1:3]
    values = _split_pixels(input, window)  # (N, H*W, G, Cg)
    weights = _point_weights(mask, window, values.dtype)  # (N, L, G, P)
    output = values.new_zeros(n, h_out * w_out, window.groups, c // window.groups)
    for p, point in enumerate(_points(offset, (h, w), window, values.dtype)):
        weight = torch.where(point.is_valid, weights[..., p], 0)
        for corner in point.corners:
            output = output + (weight * corner.weight).unsqueeze(-1) * gather(values, corner)
    return output.view(n, h_out, w_out, c).to(input.dtype)


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Window,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``offset`` and ``mask`` in closed form (empty if not needed).

    Autograd cannot be used, because this runs below autograd in the dispatcher; tests compare it
    with autograd through :func:`forward`.
    """
    n, h, w, c = input.shape
    values = _split_pixels(input, window)  # (N, H*W, G, Cg)
    weights = _point_weights(mask, window, values.dtype)  # (N, L, G, P)
    grad = grad.to(values.dtype).reshape(*weights.shape[:3], -1)  # (N, L, G, Cg)
    grad_values = torch.zeros_like(values)
    samples, grad_x, grad_y = [], [], []  # each P times (N, L, G)
    for p, point in enumerate(_points(offset, (h, w), window, values.dtype)):
        weight = torch.where(point.is_valid, weights[..., p], 0)
        dots = [(gather(values, corner) * grad).sum(-1) for corner in point.corners]
        parts = [corner.weight * dot for corner, dot in zip(point.corners, dots, strict=True)]
        samples.append(torch.stack(parts).sum(0))
        frac_x, frac_y = point.frac_x, point.frac_y
        slope_x = (1 - frac_y) * (dots[1] - dots[0]) + frac_y * (dots[3] - dots[2])
        slope_y = (1 - frac_x) * (dots[2] - dots[0]) + frac_x * (dots[3] - dots[1])
        grad_x.append(weight * slope_x * window.offset_scale)
        grad_y.append(weight * slope_y * window.offset_scale)
        if output_mask[0]:
            for corner in point.corners:
                _scatter_add(grad_values, corner, (weight * corner.weight).unsqueeze(-1) * grad)
    grad_mask = torch.stack(samples, dim=-1)  # (N, L, G, P)
    if window.mask_softmax:
        grad_mask = weights * (grad_mask - (weights * grad_mask).sum(-1, keepdim=True))
    grad_offset = torch.stack(
        [torch.stack(grad_x, -1), torch.stack(grad_y, -1)], -1
    )  # (N, L, G, P, 2)
    return (
        grad_values.view(n, h, w, c).to(input.dtype) if output_mask[0] else input.new_empty(0),
        grad_offset.view(offset.shape).to(offset.dtype) if output_mask[1] else offset.new_empty(0),
        grad_mask.view(mask.shape).to(mask.dtype) if output_mask[2] else mask.new_empty(0),
    )


def _split_pixels(input: Tensor, window: Window) -> Tensor:
    n, h, w, c = input.shape
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.to(dtype).reshape(n, h * w, window.groups, c // window.groups)


def _point_weights(mask: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
    n, h_out, w_out, _ = mask.shape
    weights = mask.to(dtype).reshape(n, h_out * w_out, window.groups, window.points)
    return weights.softmax(-1) if window.mask_softmax else weights


def _points(offset: Tensor, size: Pair, window: Window, dtype: torch.dtype) -> Iterator[Point]:
    """Yield the sampling points in the order of the checkpoints: width slow, height fast."""
    n, h_out, w_out, _ = offset.shape
    offset = offset.to(dtype).reshape(n, h_out * w_out, window.groups, window.points, 2)
    origin_y = (
        _window_centres(h_out, 0, window, offset)[:, None].expand(h_out, w_out).reshape(-1, 1)
    )
    origin_x = (
        _window_centres(w_out, 1, window, offset)[None, :].expand(h_out, w_out).reshape(-1, 1)
    )
    for p, (i, j) in enumerate(_taps(window)):
        tap_y = j * window.dilation[0] - _half(window, 0)
        tap_x = i * window.dilation[1] - _half(window, 1)
        x = origin_x + (tap_x + offset[..., p, 0]) * window.offset_scale  # (N, L, G)
        y = origin_y + (tap_y + offset[..., p, 1]) * window.offset_scale
        yield make_point(x, y, size)


def _taps(window: Window) -> Iterator[tuple[int, int]]:
    kernel_h, kernel_w = window.kernel_size
    for i in range(kernel_w):
        for j in range(kernel_h):
            if not (window.remove_center and i == kernel_w // 2 and j == kernel_h // 2):
                yield i, j


def _half(window: Window, axis: int) -> int:
    return (window.dilation[axis] * (window.kernel_size[axis] - 1)) // 2


def _window_centres(count: int, axis: int, window: Window, like: Tensor) -> Tensor:
    steps = torch.arange(count, device=like.device, dtype=like.dtype) * window.stride[axis]
    return steps + (_half(window, axis) - window.padding[axis])


def make_point(x: Tensor, y: Tensor, size: Pair) -> Point:
    """The four pixels around a position and their weights, for an image ``size = (H, W)``."""
    height, width = size
    is_valid = (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    x, y = torch.where(is_valid, x, 0), torch.where(is_valid, y, 0)
    x0, y0 = x.detach().floor(), y.detach().floor()
    frac_x, frac_y = x - x0, y - y0
    left, top = x0.long(), y0.long()

    def corner(column: Tensor, row: Tensor, weight: Tensor) -> Corner:
        is_inside = is_valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        return Corner(index, is_inside, weight)

    return Point(
        is_valid,
        frac_x,
        frac_y,
        (
            corner(left, top, (1 - frac_x) * (1 - frac_y)),
            corner(left + 1, top, frac_x * (1 - frac_y)),
            corner(left, top + 1, (1 - frac_x) * frac_y),
            corner(left + 1, top + 1, frac_x * frac_y),
        ),
    )


def gather(values: Tensor, corner: Corner) -> Tensor:
    """Pixels at a corner, zero outside the image (selected, because 0 * inf would be NaN)."""
    index = corner.pixel.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])
    return torch.where(corner.is_inside.unsqueeze(-1), values.gather(1, index), 0)  # (N, L, G, Cg)


def _scatter_add(target: Tensor, corner: Corner, update: Tensor) -> None:
    index = corner.pixel.unsqueeze(-1).expand(-1, -1, -1, target.shape[-1])
    target.scatter_add_(1, index, torch.where(corner.is_inside.unsqueeze(-1), update, 0))
