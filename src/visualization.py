"""Drawing results on images. Needs only Pillow and NumPy; used by callbacks and notebooks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_MIN_WIDTH = 360  # pixels; smaller images are enlarged so that the text on them fits
_MAX_SIDE = 1024  # pixels; tall narrow images are enlarged up to here, and stand on wider paper
_FONT_SIZES = (13, 40)  # pixels; legible, and small enough for names of classes
_INK, _MUTED, _PAPER, _BAR = (20, 20, 20), (90, 90, 90), (255, 255, 255), (178, 208, 244)


def draw_classes(
    image: Image.Image, names: Sequence[str], probabilities: Sequence[float]
) -> Image.Image:
    """Put the image above a bar chart of its most probable classes.

    Args:
        image: Image of any mode and size.
        names: Class names, most probable first.
        probabilities: Their probabilities in [0, 1].

    Returns:
        RGB sheet at least 360 pixels wide: the image, up to 1024 pixels high and wide, and the
        chart below it.

    Raises:
        ValueError: If the two lists differ in length.
    """
    if len(names) != len(probabilities):
        raise ValueError(f"got {len(names)} names for {len(probabilities)} probabilities")
    canvas = _fit(image.convert("RGB"))
    width = max(canvas.width, _MIN_WIDTH)
    size = max(15, _font_size(width // 28))
    font, row, pad = ImageFont.load_default(size), round(size * 1.7), size // 2
    sheet = Image.new("RGB", (width, canvas.height + row * len(names) + 2 * pad), _PAPER)
    sheet.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for line, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        top = canvas.height + pad + line * row
        full = width - 2 * pad
        draw.rectangle((pad, top + 2, pad + round(full * probability), top + row - 2), fill=_BAR)
        percent = f"{probability:.1%}"
        room = full - draw.textlength(percent, font) - 3 * pad
        middle = top + row // 2
        color = _INK if line == 0 else _MUTED
        draw.text((2 * pad, middle), _shorten(draw, name, font, room), color, font, anchor="lm")
        draw.text((width - 2 * pad, middle), percent, color, font, anchor="rm")
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    """The image with sides up to `_MAX_SIDE` and, where those allow it, `_MIN_WIDTH` wide."""
    scale = min(max(1.0, _MIN_WIDTH / image.width), _MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest keeps the pixels of tiny images recognisable instead of blurring them.
    filter_ = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC
    return image if scale == 1.0 else image.resize(size, filter_)


def _font_size(wanted: int) -> int:
    smallest, largest = _FONT_SIZES
    return min(max(wanted, smallest), largest)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Font, room: float) -> str:
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…"


def draw_label_map(
    image: Image.Image,
    label_map: NDArray[np.integer[Any]],
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    opacity: float = 0.55,
    max_classes: int = 24,
) -> Image.Image:
    """Colour every pixel by its class, with a legend of the classes in the image.

    Args:
        image: Image of any mode.
        label_map: Class of every pixel, shape ``(H, W)`` of the image; classes without a name
            (255: unlabelled) stay uncoloured.
        names: Class names in label order.
        palette: Red, green and blue of each class, 0 to 255.
        opacity: Share of the colour over the image, from 0 to 1.
        max_classes: Rows of the legend, largest area first.

    Returns:
        RGB image, up to 1024 pixels high and wide, with the legend at its right.

    Raises:
        ValueError: If label map and image differ in size.
    """
    if label_map.shape != (image.height, image.width):
        raise ValueError(
            f"the label map is {label_map.shape[1]}x{label_map.shape[0]}, the image "
            f"{image.width}x{image.height} pixels"
        )
    known = label_map < len(names)
    colours = np.asarray(palette, dtype=np.float32)[np.where(known, label_map, 0)]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    weight = np.where(known, opacity, 0.0)[..., None]
    mixed = np.rint(pixels * (1 - weight) + colours * weight).astype(np.uint8)
    counts = np.bincount(label_map[known].ravel(), minlength=len(names))
    largest = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]][:max_classes]
    rows = [(names[i], palette[i], counts[i] / label_map.size) for i in largest]
    return _beside(_fit(Image.fromarray(mixed)), rows)


def _beside(
    image: Image.Image, rows: Sequence[tuple[str, tuple[int, int, int], float]]
) -> Image.Image:
    """Put a legend of name, colour and share at the right of an image."""
    size = _font_size(image.height // 40)
    font, row, pad = ImageFont.load_default(size), round(size * 1.6), size // 2
    width, room = 17 * size, 11.5 * size
    height = max(image.height, row * len(rows) + 2 * pad)
    sheet = Image.new("RGB", (image.width + width, height), _PAPER)
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for line, (name, colour, share) in enumerate(rows):
        left, top = image.width + pad, pad + line * row
        draw.rectangle((left, top + 2, left + size, top + row - 4), fill=colour, outline=_MUTED)
        middle = (left + round(1.6 * size), top + row // 2)
        draw.text(middle, _shorten(draw, name, font, room), _INK, font, anchor="lm")
        draw.text((sheet.width - pad, middle[1]), f"{share:.0%}", _MUTED, font, anchor="rm")
    return sheet


def draw_instances(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    masks: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    scores: Sequence[float],
    classes: Sequence[int],
    opacity: float = 0.45,
) -> Image.Image:
    """Draw objects with mask, box, name and score; the most certain ones lie on top.

    Args:
        image: Image of any mode.
        boxes: ``x, y, width, height`` in pixels of the image.
        masks: Bool, each of shape ``(H, W)`` of the image; empty to draw boxes alone.
        names: Name of each object.
        scores: Probability of each object.
        classes: Class index of each object, which decides its colour.
        opacity: Share of the colour over the image, from 0 to 1.

    Returns:
        RGB image up to 1024 pixels high and wide; small ones are enlarged so that text is
        legible, and narrow ones have white paper at their right, 360 pixels wide in all.
    """
    order = sorted(range(len(boxes)), key=lambda i: scores[i])
    colours = [_instance_colour(classes[i]) for i in range(len(boxes))]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).copy()
    for i in order if masks else ():
        pixels[masks[i]] = (
            pixels[masks[i]] * (1 - opacity) + np.array(colours[i], np.float32) * opacity
        )
    canvas = _fit(Image.fromarray(np.rint(pixels).astype(np.uint8)))
    # Not one scale for both: the short side of a narrow canvas is rounded to few pixels.
    right, down = canvas.width / image.width, canvas.height / image.height
    sheet = Image.new("RGB", (max(canvas.width, _MIN_WIDTH), canvas.height), _PAPER)
    sheet.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(sheet)
    size = _font_size(max(canvas.size) // 55)
    font, line = ImageFont.load_default(size), max(2, size // 7)
    for i in order:
        x, y, width, height = boxes[i]
        corners = (x * right, y * down, (x + width) * right, (y + height) * down)
        draw.rectangle(corners, outline=colours[i], width=line)
    for i in order:  # names last, so that no box crosses them
        corner = (boxes[i][0] * right, boxes[i][1] * down)
        _draw_tag(draw, f"{names[i]} {scores[i]:.0%}", corner, colours[i], font)
    return sheet


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: tuple[int, int, int],
    font: Font,
) -> None:
    """Write on a coloured ground above a box; inside it at the upper border of the image."""
    x, top = corner
    left, up, right, down = draw.textbbox((0, 0), text, font)
    pad = 3
    width, height = right - left + 2 * pad, down - up + 2 * pad
    x = min(max(x, 0), max(draw.im.size[0] - width, 0))
    y = top - height if top >= height else max(top, 0)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text((x + pad - left, y + pad - up), text, _INK if luminance > 128 else _PAPER, font)


def _instance_colour(number: int) -> tuple[int, int, int]:
    """Bright colour of a class; neighbours are a golden angle apart."""
    hue = number * 0.618034 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.6)[number % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
