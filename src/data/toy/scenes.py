"""Toy scenes: textured shapes on cluttered backgrounds, drawn from a seed with numpy and PIL.

With them, every command, test and notebook runs anywhere in minutes, without a download; results on
them mean nothing. A `Scene` has the mask and the box of each object, so the same drawings serve
classification, detection and segmentation.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Outline = NDArray[np.float64]
Region = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, from 0 to 1."""

_SUPERSAMPLING = 4
# Radians. Shapes are nearly upright, so that a small network learns them in minutes on a laptop.
_LARGEST_TURN = 0.35
_HUE_SPREAD = 0.045


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene.

    Attributes:
        name: Its class, one of `SHAPES`.
        mask: Visible pixels, bool, shape ``(H, W)``; later objects hide earlier ones.
        box: Left, top, right, bottom of the mask in pixels, right and bottom exclusive.
    """

    name: str
    mask: Mask
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image, uint8 RGB of shape ``(H, W, 3)``, and its objects from back to front."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def draw_scene(
    names: Sequence[str],
    size: tuple[int, int],
    rng: np.random.Generator,
    radius: tuple[float, float] = (0.27, 0.45),
    hues: Sequence[float] | None = None,
    regions: Sequence[Region] | None = None,
) -> Scene:
    """Draw shapes with random positions, small rotations, typical colours and random textures.

    Args:
        names: Class of each object from back to front, each one of `SHAPES`.
        size: Height and width in pixels, at least 16.
        rng: Source of all randomness; the same state gives the same scene.
        radius: Smallest and largest circumradius of an object, relative to the shorter side.
        hues: Hue of each object, 0 to 1; default is the typical hue of its class.
        regions: Where each object lies; default is the whole image.

    Returns:
        The scene, without objects that others hide completely.
    """
    ground = _ground_colours(rng)
    canvas = _paint(_noise(size, rng, finest=rng.choice([8, 16, 32])), ground)
    canvas = _add_clutter(canvas, ground, rng)
    light = rng.uniform(0, 2 * math.pi)
    coverages = []
    for number, name in enumerate(names):
        region = (0.0, 0.0, 1.0, 1.0) if regions is None else regions[number]
        coverage = _coverage(SHAPES[name], size, rng, radius, region)
        hue = list(SHAPES).index(name) / len(SHAPES) if hues is None else hues[number]
        canvas = _add_object(canvas, coverage, _object_colours(hue, ground, rng), light, rng)
        coverages.append(coverage)
    canvas = canvas * _lighting(size, light) + 0.015 * rng.standard_normal((*size, 3), np.float32)
    image = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Scene(image, _visible(names, coverages))


def _visible(names: Sequence[str], coverages: Sequence[Array]) -> tuple[SceneObject, ...]:
    objects: list[SceneObject] = []
    hidden: Mask | None = None
    for name, coverage in reversed(list(zip(names, coverages, strict=True))):
        whole = coverage > 0.5
        mask = whole if hidden is None else whole & ~hidden
        hidden = whole if hidden is None else whole | hidden
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            objects.append(SceneObject(name, mask, box))
    return tuple(reversed(objects))


# Outlines are in the unit circle, x right, y down. The first is filled, the others are cut out.


def _ellipse(radius: float = 1.0, x: float = 0.0) -> Outline:
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    return np.stack([radius * np.cos(angle) + x, radius * np.sin(angle)], axis=1)


def _star(corners: int, notch: float) -> Outline:
    angle = math.pi * np.arange(2 * corners) / corners
    length = np.where(np.arange(2 * corners) % 2, notch, 1.0)
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)


def _heart() -> Outline:
    t = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17


def _corners(*points: tuple[float, float]) -> Outline:
    return np.array(points, dtype=np.float64)


def _cross(arm: float) -> Outline:
    quarter = np.array([(arm, -arm), (1.0, -arm), (1.0, arm)])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


SHAPES: dict[str, tuple[Outline, ...]] = {
    "arrow": (
        _corners((1, 0), (0.2, 0.8), (0.2, 0.3), (-1, 0.3), (-1, -0.3), (0.2, -0.3), (0.2, -0.8)),
    ),
    "bolt": (
        _corners((0.3, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1), (0.6, -0.2), (0.08, -0.2)),
    ),
    "circle": (_ellipse(0.9),),
    "crescent": (_ellipse(), _ellipse(0.85, x=0.5)),
    "cross": (_cross(0.3),),
    "heart": (_heart(),),
    "ring": (_ellipse(), _ellipse(0.55)),
    "square": (_corners((0.75, 0.75), (-0.75, 0.75), (-0.75, -0.75), (0.75, -0.75)),),
    "star": (_star(5, notch=0.42),),
    "triangle": (_star(3, notch=0.5),),
}


def _coverage(
    outlines: tuple[Outline, ...],
    size: tuple[int, int],
    rng: np.random.Generator,
    radius: tuple[float, float],
    region: Region,
) -> Array:
    """Share of each pixel covered by the shape after a random rotation, stretch, scale, shift."""
    height, width = size
    length = min(size) * rng.uniform(*radius)
    angle = rng.uniform(-_LARGEST_TURN, _LARGEST_TURN)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shape = np.diag([length * stretch, length / stretch]) @ turn
    centre = [
        rng.uniform(low * side + 0.9 * length, high * side - 0.9 * length)
        for side, low, high in ((width, region[0], region[2]), (height, region[1], region[3]))
    ]
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for outline, value in zip(outlines, [255] + [0] * len(outlines), strict=False):
        points = (outline @ shape + centre) * _SUPERSAMPLING
        pen.polygon([(float(x), float(y)) for x, y in points], fill=value)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


# Colours are pairs of RGB tones; textures are arrays in [0, 1] that mix the two.


def _tones(hue: float, saturation: float, value: float, rng: np.random.Generator) -> Array:
    other = (hue + rng.uniform(-0.08, 0.08), saturation * 0.8, value + rng.uniform(-0.18, 0.18))
    pair = ((hue, saturation, value), other)
    rgb = [colorsys.hsv_to_rgb(h % 1, s, min(max(v, 0.08), 1)) for h, s, v in pair]
    return np.array(rgb, dtype=np.float32)


def _ground_colours(rng: np.random.Generator) -> Array:
    return _tones(rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.85), rng)


def _object_colours(hue: float, ground: Array, rng: np.random.Generator) -> Array:
    """Two tones around a hue, brighter or darker than the ground.

    A typical colour of each class lets a small network learn in minutes. Neighbouring hues overlap,
    so colour alone does not determine the class.
    """
    hue = hue + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    value = float(ground.max(axis=1).mean())  # of HSV
    away = value - rng.uniform(0.35, 0.5) if value > 0.6 else value + rng.uniform(0.35, 0.5)
    return _tones(hue, rng.uniform(0.55, 0.95), away, rng)


def _paint(texture: Array, tones: Array) -> Array:
    return tones[0] + texture[..., None] * (tones[1] - tones[0])  # (H, W, 3)


def _noise(size: tuple[int, int], rng: np.random.Generator, finest: int) -> Array:
    """Smooth noise in [0, 1]: random grids of 2, 4, ... ``finest`` cells, upsampled and summed."""
    total = np.zeros(size, dtype=np.float32)
    cells = 2
    while cells <= finest:
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        enlarged = grid.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        total += np.asarray(enlarged, dtype=np.float32) * (2.0 / cells)
        cells *= 2
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low + 1e-6)


def _pattern(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """One of five surfaces: plain, stripes, checks, dots, marble."""
    y, x = np.indices(size, dtype=np.float32)
    angle, period = rng.uniform(0, math.pi), min(size) * rng.uniform(0.07, 0.14)
    u = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    v = (y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period)
    kind = rng.integers(5)
    if kind == 0:
        return np.full(size, 0.5, dtype=np.float32)
    if kind == 1:
        return 0.5 + 0.5 * np.tanh(3 * np.sin(u))
    if kind == 2:
        return 0.5 + 0.5 * np.tanh(4 * np.sin(u / 1.4) * np.sin(v / 1.4))
    if kind == 3:
        return 0.5 + 0.5 * np.tanh(3 * (np.cos(u) + np.cos(v) - 0.7))
    return 0.5 + 0.5 * np.sin(u / 2 + 7 * _noise(size, rng, finest=8))


def _add_clutter(canvas: Array, ground: Array, rng: np.random.Generator) -> Array:
    """Specks, blobs and hairlines in tones near the ground's, none with a shape's outline."""
    height, width = canvas.shape[:2]
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(6, 18)):
        tone = np.clip(ground[rng.integers(2)] + rng.uniform(-0.18, 0.18, 3), 0, 1) * 255
        colour = tuple(int(channel) for channel in tone)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.uniform() < 0.5:
            r = min(height, width) * rng.uniform(0.01, 0.05)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            angle, length = rng.uniform(0, 2 * math.pi), min(height, width) * rng.uniform(0.1, 0.5)
            end = (x + length * math.cos(angle), y + length * math.sin(angle))
            pen.line((x, y, *end), fill=colour, width=max(1, min(height, width) // 72))
    softened = image.filter(ImageFilter.GaussianBlur(min(height, width) / 150))
    return np.asarray(softened, dtype=np.float32) / 255


def _add_object(
    canvas: Array, coverage: Array, tones: Array, light: float, rng: np.random.Generator
) -> Array:
    """Draw a shape with its shadow, surface and lit rim on the canvas."""
    reach = min(coverage.shape) / 24
    soft = _blur(coverage, reach / 2)
    shadow = _shift(soft, -reach * math.cos(light), -reach * math.sin(light))[..., None]
    # The slope of the blurred mask towards the light makes the rim look rounded.
    slope = np.gradient(soft)
    rim = (slope[0] * math.sin(light) + slope[1] * math.cos(light))[..., None] * reach
    surface = _paint(_pattern((coverage.shape[0], coverage.shape[1]), rng), tones) - 0.8 * rim
    alpha = coverage[..., None]
    return canvas * (1 - 0.45 * shadow) * (1 - alpha) + surface * alpha


def _blur(values: Array, radius: float) -> Array:
    image = Image.fromarray((values * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _shift(values: Array, right: float, down: float) -> Array:
    image = Image.fromarray(values.astype(np.float32))
    moved = image.transform(
        image.size, Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down), Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _lighting(size: tuple[int, int], light: float) -> Array:
    """Brightness from 1.1 on the lit side to 0.8 on the other."""
    y, x = np.indices(size, dtype=np.float32)
    across = (x / size[1] - 0.5) * math.cos(light) + (y / size[0] - 0.5) * math.sin(light)
    return (0.95 + 0.2 * across)[..., None]
