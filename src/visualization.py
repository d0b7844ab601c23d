"""Draw predictions on images, with Pillow and NumPy only; used by callbacks and notebooks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_MIN_WIDTH = 360  # pixels; smaller images are enlarged so that the text fits
_MAX_SIDE = 1024  # pixels; maximum size of enlarged images, which then get a wider background
_FONT_SIZES = (13, 40)  # minimum and maximum in pixels
_TEXT, _MUTED, _BACKGROUND, _BAR = (20, 20, 20), (90, 90, 90), (255, 255, 255), (178, 208, 244)


def draw_classes(
    image: Image.Image, names: Sequence[str], probabilities: Sequence[float]
) -> Image.Image:
    """Image above a bar chart of its most probable classes.

    Args:
        image: Image of any mode and size.
        names: Class names, most probable first.
        probabilities: Their probabilities in [0, 1].

    Returns:
        RGB image at least 360 pixels wide: the input, up to 1024 pixels high and wide, with the
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
    output = Image.new("RGB", (width, canvas.height + row * len(names) + 2 * pad), _BACKGROUND)
    output.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(output)
    for line, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        top = canvas.height + pad + line * row
        full = width - 2 * pad
        draw.rectangle((pad, top + 2, pad + round(full * probability), top + row - 2), fill=_BAR)
        percent = f"{probability:.1%}"
        space = full - draw.textlength(percent, font) - 3 * pad
        middle = top + row // 2
        color = _TEXT if line == 0 else _MUTED
        draw.text((2 * pad, middle), _shorten(draw, name, font, space), color, font, anchor="lm")
        draw.text((width - 2 * pad, middle), percent, color, font, anchor="rm")
    return output


def _fit(image: Image.Image) -> Image.Image:
    """Resize to sides of at most `_MAX_SIDE` and, if possible, a width of at least `_MIN_WIDTH`."""
    scale = min(max(1.0, _MIN_WIDTH / image.width), _MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest keeps the pixels of tiny images sharp.
    resampling = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC
    return image if scale == 1.0 else image.resize(size, resampling)


def _font_size(size: int) -> int:
    smallest, largest = _FONT_SIZES
    return min(max(size, smallest), largest)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Font, space: float) -> str:
    if draw.textlength(text, font) <= space:
        return text
    while text and draw.textlength(text + "…", font) > space:
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
    """Image with every pixel coloured by its class, and a legend.

    Args:
        image: Image of any mode.
        label_map: Class of every pixel, shape ``(H, W)`` of the image; classes without a name
            (255: unlabelled) are not coloured.
        names: Class names in label order.
        palette: Red, green and blue of each class, 0 to 255.
        opacity: Opacity of the class colours, from 0 to 1.
        max_classes: Maximum number of classes in the legend, which is sorted by area.

    Returns:
        RGB image, up to 1024 pixels high and wide, with the legend on the right.

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
    """Image with a legend of name, colour and share of the area on its right."""
    size = _font_size(image.height // 40)
    font, row, pad = ImageFont.load_default(size), round(size * 1.6), size // 2
    width, space = 17 * size, 11.5 * size
    height = max(image.height, row * len(rows) + 2 * pad)
    output = Image.new("RGB", (image.width + width, height), _BACKGROUND)
    output.paste(image, (0, 0))
    draw = ImageDraw.Draw(output)
    for line, (name, colour, share) in enumerate(rows):
        left, top = image.width + pad, pad + line * row
        draw.rectangle((left, top + 2, left + size, top + row - 4), fill=colour, outline=_MUTED)
        middle = (left + round(1.6 * size), top + row // 2)
        draw.text(middle, _shorten(draw, name, font, space), _TEXT, font, anchor="lm")
        draw.text((output.width - pad, middle[1]), f"{share:.0%}", _MUTED, font, anchor="rm")
    return output


def draw_instances(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    masks: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    scores: Sequence[float],
    classes: Sequence[int],
    opacity: float = 0.45,
) -> Image.Image:
    """Image with masks, boxes, class names and scores; higher scores are drawn on top.

    Args:
        image: Image of any mode.
        boxes: ``x, y, width, height`` in pixels of the image.
        masks: Bool, each of shape ``(H, W)`` of the image; empty to draw only boxes.
        names: Class name of each box.
        scores: Score of each box.
        classes: Class index of each box, which determines its colour.
        opacity: Opacity of the masks, from 0 to 1.

    Returns:
        RGB image up to 1024 pixels high and wide. Small images are enlarged so that text is
        legible, and narrow ones are padded with white on the right to a width of 360 pixels.
    """
    order = sorted(range(len(boxes)), key=lambda i: scores[i])
    colours = [_instance_colour(classes[i]) for i in range(len(boxes))]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).copy()
    for i in order if masks else ():
        pixels[masks[i]] = (
            pixels[masks[i]] * (1 - opacity) + np.array(colours[i], np.float32) * opacity
        )
    canvas = _fit(Image.fromarray(np.rint(pixels).astype(np.uint8)))
    # Separate scales, because the short side of a narrow canvas is rounded to a few pixels.
    scale_x, scale_y = canvas.width / image.width, canvas.height / image.height
    output = Image.new("RGB", (max(canvas.width, _MIN_WIDTH), canvas.height), _BACKGROUND)
    output.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(output)
    size = _font_size(max(canvas.size) // 55)
    font, line = ImageFont.load_default(size), max(2, size // 7)
    for i in order:
        x, y, width, height = boxes[i]
        corners = (x * scale_x, y * scale_y, (x + width) * scale_x, (y + height) * scale_y)
        draw.rectangle(corners, outline=colours[i], width=line)
    for i in order:  # labels last, so that boxes do not cover them
        corner = (boxes[i][0] * scale_x, boxes[i][1] * scale_y)
        _draw_tag(draw, f"{names[i]} {scores[i]:.0%}", corner, colours[i], font)
    return output


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: tuple[int, int, int],
    font: Font,
) -> None:
    """Draw a label above a box, or inside it at the upper border of the image."""
    x, top = corner
    left, up, right, down = draw.textbbox((0, 0), text, font)
    pad = 3
    width, height = right - left + 2 * pad, down - up + 2 * pad
    x = min(max(x, 0), max(draw.im.size[0] - width, 0))
    y = top - height if top >= height else max(top, 0)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text((x + pad - left, y + pad - up), text, _TEXT if luminance > 128 else _BACKGROUND, font)


def _instance_colour(number: int) -> tuple[int, int, int]:
    """Bright colour of a class; hues of consecutive classes differ by the golden angle."""
    hue = number * 0.618034 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.6)[number % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
