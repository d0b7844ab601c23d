"""DCNv3 with ``torch.nn.functional.grid_sample``: the baseline of the benchmark.

This is the formulation that most PyTorch ports use: pad the image, build a normalised sampling
grid, sample every group as its own image of shape (N*G, Cg, H, W), and compute the weighted sum
over the points. It needs no compiled code and can be exported wherever ``grid_sample`` can.

It is not exact. Differences from :func:`src.ops.dcnv3`: positions are normalised and denormalised,
so rounding can move integer positions to the other side of the integer (same value, other offset
gradient); NaN offsets sample position -1 of the grid instead of contributing zero; pixels outside
the image are multiplied by zero instead of being skipped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import Pair, Window, check_tensors, make_window, output_size


def dcnv3_grid_sample(
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
    """DCNv3 with ``grid_sample``; arguments as in :func:`src.ops.dcnv3`, all of one dtype."""
    window = make_window(
        groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, mask_softmax
    )
    check_tensors(input, offset, mask, window)
    n, h, w, c = input.shape
    h_out, w_out = output_size(h, w, window)
    pixels, points = h_out * w_out, window.points

    weights = mask.reshape(n, pixels, groups, points)
    if mask_softmax:
        weights = weights.softmax(-1)
    pad_h, pad_w = window.padding
    padded = F.pad(input, [0, 0, pad_w, pad_w, pad_h, pad_h])  # (N, H+, W+, C)
    h_pad, w_pad = padded.shape[1:3]

    size = torch.tensor([w_pad, h_pad], dtype=offset.dtype, device=offset.device)
    centres = _centres(h_out, w_out, window, offset) / size  # (L, 1, 1, 2)
    taps = _taps(window, offset) * window.offset_scale / size  # (P, 2)
    shifts = offset.reshape(n, pixels, groups, points, 2) * (window.offset_scale / size)
    grid = 2 * (centres + taps + shifts) - 1  # (N, L, G, P, 2), -1 and 1 are the outer edges

    images = padded.reshape(n, h_pad * w_pad, groups, c // groups).permute(0, 2, 3, 1)
    images = images.reshape(n * groups, c // groups, h_pad, w_pad)  # (N*G, Cg, H+, W+)
    grid = grid.transpose(1, 2).flatten(0, 1)  # (N*G, L, P, 2)
    samples = F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )

    weights = weights.transpose(1, 2).reshape(n * groups, 1, pixels, points)
    output = (samples * weights).sum(-1).view(n, c, pixels)  # (N, C, L)
    return output.transpose(1, 2).reshape(n, h_out, w_out, c).contiguous()


def _centres(h_out: int, w_out: int, window: Window, like: Tensor) -> Tensor:
    """Window centres in pixels of the padded image; 0.5 is the centre of the first pixel."""
    axes = [
        torch.arange(count, dtype=like.dtype, device=like.device) * window.stride[axis]
        + (window.dilation[axis] * (window.kernel_size[axis] - 1)) // 2
        + 0.5
        for axis, count in ((0, h_out), (1, w_out))
    ]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 1, 1, 2)


def _taps(window: Window, like: Tensor) -> Tensor:
    """Offset of every point from the window centre in pixels: width slow, height fast."""
    axes = [
        torch.arange(count, dtype=like.dtype, device=like.device) * window.dilation[axis]
        - (window.dilation[axis] * (count - 1)) // 2
        for axis, count in enumerate(window.kernel_size)
    ]
    x, y = torch.meshgrid(axes[1], axes[0], indexing="ij")
    taps = torch.stack((x, y), dim=-1).reshape(-1, 2)
    if window.remove_center:
        centre = taps.shape[0] // 2
        taps = torch.cat((taps[:centre], taps[centre + 1 :]))
    return taps
