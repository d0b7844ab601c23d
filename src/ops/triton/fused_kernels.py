"""LayerNorm and GELU as Triton kernels that include what surrounds them.

Each kernel reads every feature map once and writes its result once. Rows are pixels; a program
works on a tile of ``ROWS`` rows times ``BLOCK`` channels. Values are read and written in their own
dtype and computed in ``ACC``: float32, or float64 for float64. Sums over rows are partial sums, one
for each program, whose number depends only on the shape; so results are bitwise reproducible.

Kernels take raw pointers; ``fused.py`` passes the tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cdf(x):
    """Distribution function of the standard normal distribution; GELU is ``x * cdf(x)``."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    """Derivative of GELU."""
    return _cdf(x) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _normalize(x, wanted, CHANNELS: tl.constexpr, EPS: tl.constexpr):
    """Rows of mean 0 and variance 1, and the inverse of their standard deviation."""
    centered = tl.where(wanted, x - (tl.sum(x, axis=1) / CHANNELS)[:, None], 0)
    variance = tl.sum(centered * centered, axis=1) / CHANNELS
    inverse = 1 / tl.sqrt(variance + EPS)
    return centered * inverse[:, None], inverse


@triton.jit
def layer_norm_forward(
    x,
    weight,
    bias,
    out,
    rows,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the LayerNorm of each row; with ``GELU``, the GELU of that."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    wanted = (row < rows)[:, None] & is_channel[None, :]
    at = row[:, None] * CHANNELS + channel[None, :]
    w = tl.load(weight + channel, mask=is_channel, other=0).to(ACC)
    b = tl.load(bias + channel, mask=is_channel, other=0).to(ACC)
    value = tl.load(x + at, mask=wanted, other=0).to(ACC)
    normal, _ = _normalize(value, wanted, CHANNELS, EPS)
    y = normal * w[None, :] + b[None, :]
    if GELU:
        y = y * _cdf(y)
    tl.store(out + at, y, mask=wanted)


@triton.jit
def layer_norm_backward(
    grad,
    residual,
    x,
    weight,
    bias,
    grad_x,
    sums,
    rows,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the gradient of ``x``, plus ``residual`` if that is not ``None``.

    ``sums`` of shape ``(programs, 2, CHANNELS)`` gets partial sums of the gradients of weight and
    bias. Mean and variance are computed again from ``x``, which is read anyway.
    """
    program = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    w = tl.load(weight + channel, mask=is_channel, other=0).to(ACC)
    b = tl.load(bias + channel, mask=is_channel, other=0).to(ACC)
    sum_weight = tl.zeros((ROWS, BLOCK), ACC)
    sum_bias = tl.zeros((ROWS, BLOCK), ACC)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        wanted = (row < rows)[:, None] & is_channel[None, :]
        at = row[:, None] * CHANNELS + channel[None, :]
        value = tl.load(x + at, mask=wanted, other=0).to(ACC)
        g = tl.load(grad + at, mask=wanted, other=0).to(ACC)
        normal, inverse = _normalize(value, wanted, CHANNELS, EPS)
        if GELU:
            g *= _gelu_slope(normal * w[None, :] + b[None, :])
        sum_weight += g * normal
        sum_bias += g
        g *= w[None, :]
        mean = tl.sum(g, axis=1) / CHANNELS
        slope = tl.sum(g * normal, axis=1) / CHANNELS
        result = (g - mean[:, None] - normal * slope[:, None]) * inverse[:, None]
        if residual is not None:
            result += tl.load(residual + at, mask=wanted, other=0).to(ACC)
        tl.store(grad_x + at, result, mask=wanted)
    to = sums + program * 2 * CHANNELS + channel
    tl.store(to, tl.sum(sum_weight, axis=0), mask=is_channel)
    tl.store(to + CHANNELS, tl.sum(sum_bias, axis=0), mask=is_channel)


@triton.jit
def bias_gelu_forward(
    x,
    bias,
    out,
    rows,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write ``gelu(x + bias)``; the second axis of the grid runs over blocks of channels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    wanted = (row < rows)[:, None] & is_channel[None, :]
    at = row[:, None] * CHANNELS + channel[None, :]
    b = tl.load(bias + channel, mask=is_channel, other=0).to(ACC)
    y = tl.load(x + at, mask=wanted, other=0).to(ACC) + b[None, :]
    tl.store(out + at, y * _cdf(y), mask=wanted)


@triton.jit
def bias_gelu_backward(
    grad,
    x,
    bias,
    grad_x,
    sums,
    rows,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the gradient of ``x``, and its partial sums: ``sums`` is ``(programs, CHANNELS)``."""
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    b = tl.load(bias + channel, mask=is_channel, other=0).to(ACC)
    total = tl.zeros((ROWS, BLOCK), ACC)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        wanted = (row < rows)[:, None] & is_channel[None, :]
        at = row[:, None] * CHANNELS + channel[None, :]
        y = tl.load(x + at, mask=wanted, other=0).to(ACC) + b[None, :]
        g = tl.load(grad + at, mask=wanted, other=0).to(ACC) * _gelu_slope(y)
        total += g
        tl.store(grad_x + at, g, mask=wanted)
    tl.store(sums + program * CHANNELS + channel, tl.sum(total, axis=0), mask=is_channel)
