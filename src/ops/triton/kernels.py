"""DCNv3 as Triton kernels: forward and backward for any window, number of channels and dtype.

Source: InternImage (CVPR 2023, arXiv 2211.05778), eq. 2, with the arithmetic rules of
:mod:`src.ops.reference`. A *row* is one group of one output pixel. A program works on ``ROWS`` rows
times ``BLOCK`` channels and loops over the sampling points, so geometry and softmax are computed
once per row and point, and channels are only loaded, multiplied and added. ``ACC``, the type of
positions and sums, is float32, or float64 for float64.

Kernels take raw pointers; ``launch.py`` passes the tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _locate_rows(
    count,
    height,
    width,
    out_height,
    out_width,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return for each row: index, validity mask, output pixel, group, out_y, out_x, input element.

    The input element is the first one of the group in the image. ``WIDE`` is set for more than 2^31
    rows; it is a constant because 64-bit divisions take as long as a sampling point.
    """
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    is_row = row < count
    pixel = row // GROUPS
    group = row % GROUPS
    line = pixel // out_width
    image = (line // out_height).to(tl.int64)
    element = image * height * width * (GROUPS * CHANNELS) + group * CHANNELS
    out_y, out_x = line % out_height, pixel % out_width
    return row.to(tl.int64), is_row, pixel.to(tl.int64), group, out_y, out_x, element


@triton.jit
def _tile_of_points(start, is_row, POINTS: tl.constexpr, BLOCK: tl.constexpr):
    """Points ``start`` to ``start + BLOCK``, and the validity mask of these points for each row.

    The tile has the shape and therefore the layout of a tile of channels, so per-row values need no
    layout conversion through shared memory, and register use does not grow with the number of
    points.
    """
    point = start + tl.arange(0, BLOCK)[None, :]
    return point, is_row[:, None] & (point < POINTS)


@triton.jit
def _load_logits(mask, point, wanted, ACC: tl.constexpr):
    return tl.load(mask[:, None] + point, mask=wanted, other=-float("inf")).to(ACC)


@triton.jit
def _softmax_statistics(
    mask, is_row, POINTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """Largest logit of each row, and the inverse of the sum of exp(logit - largest)."""
    peak = tl.full((ROWS,), -float("inf"), ACC)
    for start in range(0, POINTS, BLOCK):
        point, wanted = _tile_of_points(start, is_row, POINTS, BLOCK)
        peak = tl.maximum(peak, tl.max(_load_logits(mask, point, wanted, ACC), axis=1))
    peak = tl.where(is_row, peak, 0)
    total = tl.zeros((ROWS,), ACC)
    for start in range(0, POINTS, BLOCK):
        point, wanted = _tile_of_points(start, is_row, POINTS, BLOCK)
        logit = _load_logits(mask, point, wanted, ACC)
        total += tl.sum(tl.exp(logit - peak[:, None]), axis=1)
    return peak, 1 / tl.where(is_row, total, 1)


@triton.jit
def _load_weight(mask, p, is_row, peak, inverse, SOFTMAX: tl.constexpr, ACC: tl.constexpr):
    """Weight of point ``p`` for each row."""
    weight = tl.load(mask + p, mask=is_row, other=0).to(ACC)
    if SOFTMAX:
        weight = tl.exp(weight - peak) * inverse
    return weight


@triton.jit
def _locate_point(
    offset,
    p,
    is_row,
    out_y,
    out_x,
    height,
    width,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    SCALE: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
    ACC: tl.constexpr,
):
    """Cell of four pixels around point ``p`` for each row.

    Returns:
        Whether the point contributes; row and column of the top left pixel; bilinear weights of the
        lower and of the right side; whether top, bottom, left and right are inside the image.
    """
    tap = p
    if REMOVE_CENTER:
        tap = p + tl.where(p >= KERNEL[0] * KERNEL[1] // 2, 1, 0)
    half_h: tl.constexpr = DILATION[0] * (KERNEL[0] - 1) // 2
    half_w: tl.constexpr = DILATION[1] * (KERNEL[1] - 1) // 2
    dx = tl.load(offset + 2 * p, mask=is_row, other=0).to(ACC)
    dy = tl.load(offset + 2 * p + 1, mask=is_row, other=0).to(ACC)
    y = (out_y * STRIDE[0] - PAD[0] + half_h).to(ACC)
    x = (out_x * STRIDE[1] - PAD[1] + half_w).to(ACC)
    y += ((tap % KERNEL[0]) * DILATION[0] - half_h + dy) * SCALE
    x += ((tap // KERNEL[0]) * DILATION[1] - half_w + dx) * SCALE
    counts = is_row & (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    y = tl.where(counts, y, 0)
    x = tl.where(counts, x, 0)
    floor_y = tl.floor(y)
    floor_x = tl.floor(x)
    top, left = floor_y.to(tl.int32), floor_x.to(tl.int32)
    return (
        counts,
        top,
        left,
        y - floor_y,
        x - floor_x,
        counts & (top >= 0),
        counts & (top < height - 1),
        left >= 0,
        left < width - 1,
    )


@triton.jit
def forward(
    input,
    offset,
    mask,
    output,
    count,
    height,
    width,
    out_height,
    out_width,
    offset_stride,
    mask_stride,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    SCALE: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr,
    POINTS: tl.constexpr,
    OFFSET_GROUP: tl.constexpr,
    MASK_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write ``output``; the second axis of the grid runs over blocks of channels."""
    PIXEL: tl.constexpr = GROUPS * CHANNELS
    row, is_row, pixel, group, out_y, out_x, element = _locate_rows(
        count, height, width, out_height, out_width, GROUPS, CHANNELS, ROWS, WIDE
    )
    offset += pixel * offset_stride + group * OFFSET_GROUP
    mask += pixel * mask_stride + group * MASK_GROUP
    peak, inverse = 0.0, 1.0
    if SOFTMAX:
        peak, inverse = _softmax_statistics(mask, is_row, POINTS, ROWS, BLOCK, ACC)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = (channel < CHANNELS)[None, :]
    values = input + element[:, None] + channel[None, :]
    result = tl.zeros((ROWS, BLOCK), ACC)
    for p in range(POINTS):
        counts, top, left, low, right, in_top, in_bottom, in_left, in_right = _locate_point(
            offset, p, is_row, out_y, out_x, height, width,
            KERNEL, STRIDE, PAD, DILATION, SCALE, REMOVE_CENTER, ACC,
        )  # fmt: skip
        corner = (top * width + left) * PIXEL
        weight = _load_weight(mask, p, is_row, peak, inverse, SOFTMAX, ACC)
        weight = tl.where(counts, weight, 0)
        for side in tl.static_range(4):
            at = corner + (side // 2 * width + side % 2) * PIXEL
            is_inside = (in_bottom if side // 2 else in_top) & (in_right if side % 2 else in_left)
            share = (low if side // 2 else 1 - low) * (right if side % 2 else 1 - right)
            value = tl.load(values + at[:, None], mask=is_inside[:, None] & is_channel, other=0)
            result += (weight * share)[:, None] * value.to(ACC)
    to = output + (row * CHANNELS)[:, None] + channel[None, :]
    tl.store(to, result, mask=is_row[:, None] & is_channel)


@triton.jit
def backward(
    grad,
    input,
    offset,
    mask,
    grad_offset,
    grad_mask,
    scratch,
    count,
    height,
    width,
    out_height,
    out_width,
    offset_stride,
    mask_stride,
    grad_offset_stride,
    grad_mask_stride,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    SCALE: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
    SOFTMAX: tl.constexpr,
    POINTS: tl.constexpr,
    OFFSET_GROUP: tl.constexpr,
    MASK_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    WANT_OFFSET: tl.constexpr,
    WANT_MASK: tl.constexpr,
):
    """Write the gradients of offset and mask.

    ``scratch`` stores d(weight) of each point until the sum over the points is known, which the
    derivative of the softmax needs; it may be ``grad_mask`` itself.
    """
    PIXEL: tl.constexpr = GROUPS * CHANNELS
    row, is_row, pixel, group, out_y, out_x, element = _locate_rows(
        count, height, width, out_height, out_width, GROUPS, CHANNELS, ROWS, WIDE
    )
    offset += pixel * offset_stride + group * OFFSET_GROUP
    mask += pixel * mask_stride + group * MASK_GROUP
    grad_offset += pixel * grad_offset_stride + group * OFFSET_GROUP
    grad_mask += pixel * grad_mask_stride + group * MASK_GROUP
    scratch += pixel * grad_mask_stride + group * MASK_GROUP
    peak, inverse = 0.0, 1.0
    if SOFTMAX:
        peak, inverse = _softmax_statistics(mask, is_row, POINTS, ROWS, BLOCK, ACC)
    upstream = grad + row * CHANNELS
    mean = tl.zeros((ROWS,), ACC)  # weighted mean of d(weight)
    for p in range(POINTS):
        counts, top, left, low, right, in_top, in_bottom, in_left, in_right = _locate_point(
            offset, p, is_row, out_y, out_x, height, width,
            KERNEL, STRIDE, PAD, DILATION, SCALE, REMOVE_CENTER, ACC,
        )  # fmt: skip
        corner = (top * width + left) * PIXEL
        weight = _load_weight(mask, p, is_row, peak, inverse, SOFTMAX, ACC)
        valid_weight = tl.where(counts, weight, 0)
        value = tl.zeros((ROWS,), ACC)
        slope_y = tl.zeros((ROWS,), ACC)
        slope_x = tl.zeros((ROWS,), ACC)
        for start in tl.static_range(0, CHANNELS, BLOCK):
            channel = start + tl.arange(0, BLOCK)
            is_channel = (channel < CHANNELS)[None, :]
            g = tl.load(
                upstream[:, None] + channel[None, :], mask=is_row[:, None] & is_channel, other=0
            ).to(ACC)
            at_channel = element[:, None] + channel[None, :]
            for side in tl.static_range(4):
                at = at_channel + (corner + (side // 2 * width + side % 2) * PIXEL)[:, None]
                is_inside = (in_bottom if side // 2 else in_top) & (
                    in_right if side % 2 else in_left
                )
                is_inside = is_inside[:, None] & is_channel
                share_y = low if side // 2 else 1 - low
                share_x = right if side % 2 else 1 - right
                v = tl.load(input + at, mask=is_inside, other=0).to(ACC)
                dot = tl.sum(v * g, axis=1)
                value += share_y * share_x * dot
                slope_y += share_x * (dot if side // 2 else -dot)
                slope_x += share_y * (dot if side % 2 else -dot)
        if WANT_OFFSET:
            slope = tl.join(slope_x, slope_y) * (valid_weight * SCALE)[:, None]
            pair = grad_offset[:, None] + 2 * p + tl.arange(0, 2)[None, :]
            tl.store(pair, slope, mask=is_row[:, None])
        if WANT_MASK:
            tl.store(scratch + p, value, mask=is_row)
            mean += weight * value
    if WANT_MASK and SOFTMAX:
        tl.debug_barrier()  # other threads of the program have written part of scratch
        for start in range(0, POINTS, BLOCK):
            column, wanted = _tile_of_points(start, is_row, POINTS, BLOCK)
            logit = _load_logits(mask, column, wanted, ACC)
            weight = tl.exp(logit - peak[:, None]) * inverse[:, None]
            value = tl.load(scratch[:, None] + column, mask=wanted, other=0)
            to = grad_mask[:, None] + column
            tl.store(to, weight * (value - mean[:, None]), mask=wanted)
