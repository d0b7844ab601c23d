"""Input gradient of DCNv3 as a Triton kernel that sums before it adds to global memory.

Every sampling point adds to four pixels, and additions to global memory limit the backward pass.
Triton cannot index shared memory, so a program computes the sums as matrix products. With the
bilinear weights of point ``p`` of row ``r`` as two hat functions, one for each axis,

    sums[y, x, c] = sum over r of (sum over p of hat_y[r, y, p] * hat_x[r, p, x]) * grad[r, c]

for a *span* of up to 16x16 input pixels. Both sums are ``tl.dot``. A program *owns* a feature map
that fits into its span, and stores its gradient without any addition. Otherwise it processes a tile
of output pixels, adds each pixel of the span once, and adds corners outside of the span directly,
so any offset is correct.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import _load_weight, _locate_point, _softmax_statistics, _tile_of_points


@triton.jit
def _span_start(
    first, size, TILE: tl.constexpr, SPAN: tl.constexpr, STRIDE: tl.constexpr, SHIFT: tl.constexpr
):
    """First input pixel of the span around the tile of output pixels from ``first``, one axis."""
    twice = (2 * first + TILE - 1) * STRIDE + 2 * SHIFT - (SPAN - 1)
    return tl.maximum(tl.minimum(twice // 2, size - SPAN), 0)


@triton.jit
def _rows_of_tile(
    start, first_y, first_x, tile_height, tile_width, image, out_height, out_width,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Return validity mask, output line and column, and index of ``ROWS`` output pixels."""
    number = start + tl.arange(0, ROWS)
    is_row = number < tile_height * tile_width
    out_y, out_x = first_y + number // tile_width, first_x + number % tile_width
    return is_row, out_y, out_x, (image * out_height + out_y) * out_width + out_x


@triton.jit
def _is_finite(value):
    return tl.abs(value) < float("inf")  # false for NaN


@triton.jit
def _hat(start, low, SIZE: tl.constexpr):
    """Weights of ``SIZE`` pixels, of which ``start`` and the next one are around a point.

    Returns ``(rows, SIZE, points)`` for ``(rows, points)``.
    """
    at = tl.arange(0, SIZE)[None, :, None]
    start, low = start[:, None, :], low[:, None, :]
    return tl.where(at == start, 1 - low, tl.where(at == start + 1, low, 0))


@triton.jit
def _add_directly(
    grad_input, grad, weight, is_far, is_inside, at, one, channel, is_channel,
    OWNS: tl.constexpr, DETERMINISTIC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add what is not in the products to one corner of each point: far ones, infinite terms.

    ``weight``, ``is_far``, ``is_inside`` and ``at`` have shape ``(rows, points)``.
    """
    wanted = is_inside[:, :, None] & is_channel[None, None, :]
    g = tl.load(grad[:, None, None] + channel[None, None, :], mask=wanted, other=0).to(ACC)
    is_left_out = (_is_finite(g) == 0) | ((_is_finite(weight) == 0) | is_far)[:, :, None]
    to = grad_input + at[:, :, None] + channel[None, None, :]
    if OWNS:
        tl.store(to, float("nan"), mask=is_left_out & wanted)
    else:
        # One condition for all channels, so that one instruction adds four of them.
        is_added = tl.max((is_left_out & wanted).to(tl.int32), axis=2) > 0
        part = tl.where(is_left_out, weight[:, :, None] * g, 0)
        if DETERMINISTIC:
            part = tl.floor(part.to(tl.float64) * one + 0.5).to(tl.int64)
        is_added = is_added[:, :, None] & is_channel[None, None, :]
        tl.atomic_add(to, part, mask=is_added, sem="relaxed")


@triton.jit
def backward_input(
    grad,
    offset,
    mask,
    unit,
    grad_input,
    height,
    width,
    out_height,
    out_width,
    tiles_y,
    tiles_x,
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
    POINT_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    OWNS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):
    """Write ``grad_input`` if the program owns a feature map, otherwise add to it.

    The axes of the grid run over groups of tiles, and blocks of channels. If ``OWNS``, the tile is
    the whole output and the span the whole input. Otherwise ``grad_input`` contains floats, or
    integers in units of 1 / ``unit`` if ``DETERMINISTIC``. Terms that are not finite would spread
    over the span in a product, so they are added directly; if ``OWNS``, their elements become NaN.
    """
    PIXEL: tl.constexpr = GROUPS * CHANNELS
    group = tl.program_id(0) % GROUPS
    tile = tl.program_id(0) // GROUPS
    image = (tile // (tiles_x * tiles_y)).to(tl.int64)
    first_y, first_x = tile // tiles_x % tiles_y * TILE[0], tile % tiles_x * TILE[1]
    tile_height, tile_width = out_height, out_width
    span_y, span_x = 0, 0
    if not OWNS:
        tile_height = tl.minimum(TILE[0], out_height - first_y)
        tile_width = tl.minimum(TILE[1], out_width - first_x)
        shift_y: tl.constexpr = DILATION[0] * (KERNEL[0] - 1) // 2 - PAD[0]
        shift_x: tl.constexpr = DILATION[1] * (KERNEL[1] - 1) // 2 - PAD[1]
        span_y = _span_start(first_y, height, TILE[0], SPAN[0], STRIDE[0], shift_y)
        span_x = _span_start(first_x, width, TILE[1], SPAN[1], STRIDE[1], shift_x)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    grad += group * CHANNELS
    offset += group * OFFSET_GROUP
    mask += group * MASK_GROUP
    grad_input += image * height * width * PIXEL + group * CHANNELS
    one = 0.0
    if DETERMINISTIC:
        one = tl.load(unit)

    sums = tl.zeros((SPAN[0] * SPAN[1], BLOCK), ACC)
    is_incomplete = 0
    for start in range(0, tile_height * tile_width, ROWS):
        is_row, out_y, out_x, row = _rows_of_tile(
            start, first_y, first_x, tile_height, tile_width, image, out_height, out_width, ROWS
        )
        masks = mask + row * mask_stride
        peak, inverse = 0.0, 1.0
        if SOFTMAX:
            peak, inverse = _softmax_statistics(masks, is_row, POINTS, ROWS, POINT_BLOCK, ACC)
            peak, inverse = peak[:, None], inverse[:, None]
        wanted = is_row[:, None] & is_channel[None, :]
        at = grad + row[:, None] * PIXEL + channel[None, :]
        g = tl.load(at, mask=wanted, other=0).to(ACC)
        is_left_out = tl.max((_is_finite(g) == 0).to(tl.int32), axis=1) > 0
        shares = tl.zeros((ROWS, SPAN[0], SPAN[1]), ACC)
        for p in range(0, POINTS, POINT_BLOCK):
            point, is_point = _tile_of_points(p, is_row, POINTS, POINT_BLOCK)
            counts, top, left, low, right, _, _, _, _ = _locate_point(
                offset + (row * offset_stride)[:, None], point, is_point, out_y[:, None],
                out_x[:, None], height, width,
                KERNEL, STRIDE, PAD, DILATION, SCALE, REMOVE_CENTER, ACC,
            )  # fmt: skip
            weight = _load_weight(masks[:, None], point, is_point, peak, inverse, SOFTMAX, ACC)
            is_known = counts & _is_finite(weight)
            hat_y = _hat(top - span_y, low, SPAN[0]) * tl.where(is_known, weight, 0)[:, None, :]
            hat_x = tl.trans(_hat(left - span_x, right, SPAN[1]), 0, 2, 1)
            shares = tl.dot(hat_y, hat_x, shares, input_precision=PRECISION, out_dtype=ACC)
            is_missing = counts & ((is_known == 0) | is_left_out[:, None])
            if not OWNS:
                is_missing |= counts & (tl.maximum(top, 0) < span_y)
                is_missing |= counts & (tl.maximum(left, 0) < span_x)
                is_missing |= counts & (tl.minimum(top + 1, height - 1) >= span_y + SPAN[0])
                is_missing |= counts & (tl.minimum(left + 1, width - 1) >= span_x + SPAN[1])
            is_incomplete |= tl.max(tl.max(is_missing.to(tl.int32), axis=1), axis=0)
        shares = tl.trans(tl.reshape(shares, (ROWS, SPAN[0] * SPAN[1])))
        g = tl.where(_is_finite(g), g, 0)
        sums = tl.dot(shares, g, sums, input_precision=PRECISION, out_dtype=ACC)

    pixel = tl.arange(0, SPAN[0] * SPAN[1])
    pixel_y, pixel_x = span_y + pixel // SPAN[1], span_x + pixel % SPAN[1]
    is_pixel = (pixel_y < height) & (pixel_x < width)
    to = grad_input + ((pixel_y * width + pixel_x) * PIXEL)[:, None] + channel[None, :]
    if OWNS:
        tl.store(to, sums, mask=is_pixel[:, None] & is_channel[None, :])
    else:
        is_pixel &= tl.max((sums != 0).to(tl.int32), axis=1) > 0
        if DETERMINISTIC:
            sums = tl.floor(sums.to(tl.float64) * one + 0.5).to(tl.int64)
        tl.atomic_add(to, sums, mask=is_pixel[:, None] & is_channel[None, :], sem="relaxed")

    if is_incomplete != 0:
        tl.debug_barrier()  # what other threads have stored
        for start in range(0, tile_height * tile_width, ROWS):
            is_row, out_y, out_x, row = _rows_of_tile(
                start, first_y, first_x, tile_height, tile_width, image, out_height, out_width, ROWS
            )
            masks = mask + row * mask_stride
            peak, inverse = 0.0, 1.0
            if SOFTMAX:
                peak, inverse = _softmax_statistics(masks, is_row, POINTS, ROWS, POINT_BLOCK, ACC)
                peak, inverse = peak[:, None], inverse[:, None]
            for p in range(0, POINTS, POINT_BLOCK):
                point, is_point = _tile_of_points(p, is_row, POINTS, POINT_BLOCK)
                counts, top, left, low, right, in_top, in_bottom, in_left, in_right = _locate_point(
                    offset + (row * offset_stride)[:, None], point, is_point, out_y[:, None],
                    out_x[:, None], height, width,
                    KERNEL, STRIDE, PAD, DILATION, SCALE, REMOVE_CENTER, ACC,
                )  # fmt: skip
                weight = _load_weight(masks[:, None], point, is_point, peak, inverse, SOFTMAX, ACC)
                weight = tl.where(counts, weight, 0)
                for side in tl.static_range(4):
                    y, x = top + side // 2, left + side % 2
                    is_inside = (in_bottom if side // 2 else in_top) & (
                        in_right if side % 2 else in_left
                    )
                    share = (low if side // 2 else 1 - low) * (right if side % 2 else 1 - right)
                    is_far = (y < span_y) | (y >= span_y + SPAN[0])
                    is_far |= (x < span_x) | (x >= span_x + SPAN[1])
                    _add_directly(
                        grad_input, grad + row * PIXEL, weight * share, is_far, is_inside,
                        (y * width + x) * PIXEL, one, channel, is_channel,
                        OWNS, DETERMINISTIC, ACC,
                    )  # fmt: skip
