"""Preprocessing of images inside of an ONNX graph, as the data modules do it.

The input is uint8 ``(N, H, W, 3)``, as ``numpy.asarray`` of an RGB image of Pillow gives it.
Resizes of detectors and segmentors are bilinear without antialiasing (OpenCV), those of classifiers
are Pillow's. Results are rounded to whole grey values, as 8-bit images are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from src.errors import UserError
from src.export.results.builder import DOUBLE, FLOAT, INT64, Builder

_FILTERS = {"bilinear": "linear", "bicubic": "cubic"}


@dataclass(frozen=True)
class Prepared:
    """Values of a graph after preprocessing.

    Attributes:
        image: Normalised image, float32 ``(N, 3, h, w)``.
        size: Height and width of the image without padding, int64 ``(2,)``.
        original: Height and width of the input, int64 ``(2,)``.
        factor: Scale of ``x, y, x, y`` from the input to the resized image, float32 ``(4,)``.
    """

    image: ir.Value
    size: ir.Value
    original: ir.Value
    factor: ir.Value


def prepare(op: Builder, pixels: ir.Value, settings: Mapping[str, Any], divisor: int) -> Prepared:
    """Resize, normalise and pad.

    Args:
        op: Builder of the graph.
        pixels: Images of one size, uint8 ``(N, H, W, 3)``.
        settings: Arguments of the data module, see `src.hub.preprocessing_of`.
        divisor: Images are padded with zeros to a multiple of this many pixels.
    """
    original = op.Shape(pixels, start=1, end=3)
    planes = op.Transpose(pixels, perm=[0, 3, 1, 2])
    if "image_size" in settings:
        resized, size = _short_side_and_crop(op, planes, original, settings)
    elif "eval_scale" in settings:
        size = _fit(op, original, settings["eval_scale"])
        resized = _resize(op, op.Cast(planes, to=FLOAT), size)
    elif "image_scale" in settings:
        fitted = _fit(op, original, settings["image_scale"])
        size = _round_up(op, fitted, int(settings.get("size_divisor", 32)))
        # Two resizes, because 8-bit images are rounded in between.
        resized = _resize(op, _resize(op, op.Cast(planes, to=FLOAT), fitted), size)
    else:
        raise UserError(
            "The preprocessing of this recipe is not known (no image_size, image_scale or "
            "eval_scale); use --preprocessing outside."
        )
    image = _normalise(op, resized, settings["mean"], settings["std"])
    if divisor > 1:
        missing = op.Sub(_round_up(op, size, divisor), size)
        image = op.Pad(image, op.Concat([0, 0, 0, 0, 0, 0], missing, axis=0))
    # The factor is the double quotient rounded to float32, as in `resize_factor`.
    quotient = op.Div(op.Cast(size, to=DOUBLE), op.Cast(original, to=DOUBLE))
    factor = op.Gather(op.Cast(quotient, to=FLOAT), [1, 0, 1, 0], axis=0)
    return Prepared(image, size, original, factor)


def _normalise(op: Builder, image: ir.Value, mean: list[float], std: list[float]) -> ir.Value:
    centre, deviation = (np.asarray(x, np.float64).reshape(3, 1, 1) * 255 for x in (mean, std))
    centred = op.Sub(image, op.constant(centre))
    normalised: ir.Value = op.Mul(centred, op.constant(1 / deviation))
    return normalised


def _fit(op: Builder, size: ir.Value, scale: list[int]) -> ir.Value:
    """Largest size within a long and a short side, see ``fit_size``; computed in double."""
    long, short = (op.constant([float(side)], np.float64) for side in (max(scale), min(scale)))
    sides = op.Cast(size, to=DOUBLE)
    factor = op.Min(
        op.Div(long, op.ReduceMax(sides, [0], keepdims=1)),
        op.Div(short, op.ReduceMin(sides, [0], keepdims=1)),
    )
    rounded = op.Floor(op.Add(op.Mul(sides, factor), op.constant([0.5], np.float64)))
    fitted: ir.Value = op.Max(op.Cast(rounded, to=INT64), [1])
    return fitted


def _round_up(op: Builder, size: ir.Value, divisor: int) -> ir.Value:
    rounded: ir.Value = op.Mul(op.Div(op.Add(size, [divisor - 1]), [divisor]), [divisor])
    return rounded


def _resize(op: Builder, image: ir.Value, size: ir.Value) -> ir.Value:
    """Bilinear, pixel centres, without antialiasing, rounded."""
    sizes = op.Concat(op.Shape(image, start=0, end=2), size, axis=0)
    resized = op.Resize(
        image, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel"
    )
    rounded: ir.Value = op.Floor(op.Add(resized, 0.5))
    return rounded


def _short_side_and_crop(
    op: Builder, image: ir.Value, size: ir.Value, settings: Mapping[str, Any]
) -> tuple[ir.Value, ir.Value]:
    """Short side to ``image_size / crop_pct``, then the centre."""
    side = int(settings["image_size"])
    short = int(side / float(settings.get("crop_pct", 1.0)))
    name = settings.get("interpolation", "bicubic")
    if name not in _FILTERS:
        raise UserError(
            f"The interpolation {name} of this recipe cannot be part of an ONNX file (only "
            f"{' and '.join(_FILTERS)} can); use --preprocessing outside."
        )
    fitted = op.Div(op.Mul(size, [short]), op.ReduceMin(size, [0], keepdims=1))
    sizes = op.Concat(op.Shape(image, start=0, end=2), fitted, axis=0)
    resized = op.Resize(
        image,
        None,
        None,
        sizes,
        mode=_FILTERS[name],
        antialias=1,
        cubic_coeff_a=-0.5,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    margin = op.Div(op.Cast(op.Sub(fitted, [side]), to=FLOAT), 2.0)
    start = op.Cast(op.Round(margin), to=INT64)
    cropped = op.Slice(resized, start, op.Add(start, [side]), [2, 3])
    return op.Cast(cropped, to=FLOAT), op.constant([side, side])
