"""Draw predictions on images, with Pillow and NumPy only; used by callbacks and notebooks."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MIN_WIDTH = 360
"""Width in pixels; smaller images are enlarged so that the text fits."""
MAX_SIDE = 1024
"""Maximum side in pixels of enlarged images, which then get a wider background."""
FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
"""Font of all drawings; Pillow's own has ASCII letters only."""
_FONT_SIZES = (13, 40)  # minimum and maximum in pixels
_TEXT, _MUTED, _BACKGROUND = (20, 20, 20), (90, 90, 90), (255, 255, 255)
BAR = (178, 208, 244)
"""Colour of the bars of probabilities."""
_BLACK = (0, 0, 0)
HUE_STEP = 0.618034  # turns; the golden angle
"""Difference of the hues of consecutive classes."""
SHADES = ((0.9, 1.0), (0.4, 1.0), (1.0, 0.55), (0.5, 0.75))
"""Saturation and value of the instances of one class: few, so that they are easy to tell apart."""
LABEL_MAP_OPACITY, INSTANCE_OPACITY = 0.55, 0.45
LABELS = 0.15
"""Share of the image that labels of detections may cover; there are no further ones beyond it."""
_LEGEND = 1 / 3  # of the width of the image; a narrow one has a wider legend, to be legible
_MAX_LINES = 6  # how far a label may be from its place, in labels


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
    width = max(canvas.width, MIN_WIDTH)
    size = max(15, _font_size(width // 28))
    font, row, pad = _font(size), round(size * 1.7), size // 2
    output = Image.new("RGB", (width, canvas.height + row * len(names) + 2 * pad), _BACKGROUND)
    output.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(output)
    full = width - 4 * pad - draw.textlength("100.0%", font)  # bars end before the numbers
    for line, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        top = canvas.height + pad + line * row
        draw.rectangle((pad, top + 2, pad + round(full * probability), top + row - 2), fill=BAR)
        percent, space = f"{probability:.1%}", full - 2 * pad
        middle = top + row // 2
        color = _TEXT if line == 0 else _MUTED
        draw.text((2 * pad, middle), _shorten(draw, name, font, space), color, font, anchor="lm")
        draw.text((width - 2 * pad, middle), percent, color, font, anchor="rm")
    return output


def _check_opacity(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")


def _fit(image: Image.Image) -> Image.Image:
    """Resize to sides of at most `MAX_SIDE` and, if possible, a width of at least `MIN_WIDTH`."""
    scale = min(max(1.0, MIN_WIDTH / image.width), MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest keeps the pixels of tiny images sharp.
    resampling = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC
    return image if scale == 1.0 else image.resize(size, resampling)


def _font(size: int) -> Font:
    return ImageFont.truetype(FONT, size)


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
    opacity: float = LABEL_MAP_OPACITY,
    max_classes: int = 24,
) -> Image.Image:
    """Image with every pixel coloured by its class, and a legend of classes of at least 0.5 %.

    Coloured pixels are grey beneath, so that colours are those of the legend.

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
        ValueError: If label map and image differ in size, or the opacity is out of range.
    """
    _check_opacity(opacity)
    if label_map.shape != (image.height, image.width):
        raise ValueError(
            f"the label map is {label_map.shape[1]}x{label_map.shape[0]}, the image "
            f"{image.width}x{image.height} pixels"
        )
    known = label_map < len(names)
    colours = np.asarray(palette, dtype=np.float32)[np.where(known, label_map, 0)]
    colour, grey = (
        np.asarray(image.convert(mode).convert("RGB"), np.float32) for mode in ("RGB", "L")
    )
    pixels = np.where(known[..., None], grey, colour)
    weight = np.where(known, opacity, 0.0)[..., None]
    mixed = np.rint(pixels * (1 - weight) + colours * weight).astype(np.uint8)
    counts = np.bincount(label_map[known].ravel(), minlength=len(names))
    largest = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]][:max_classes]
    shares = [(i, counts[i] / label_map.size) for i in largest]
    rows = [(names[i], palette[i], share) for i, share in shares if f"{share:.0%}" != "0%"]
    return _beside(_fit(Image.fromarray(mixed)), rows)


def _beside(
    image: Image.Image, rows: Sequence[tuple[str, tuple[int, int, int], float]]
) -> Image.Image:
    """Image with a legend of name, colour and share of the area on its right."""
    smallest = _font_size(min(image.size) // 40)
    largest = _font_size(image.height // 60 + 10)
    limit = max(round(_LEGEND * image.width), 12 * smallest)

    def fits(size: int) -> bool:
        font, space = _font(size), _legend(size, limit)[1]
        is_wide_enough = all(font.getlength(name) <= space for name, _, _ in rows)
        return is_wide_enough and round(size * 1.6) * len(rows) + size <= image.height

    # As large as names and rows allow, so that it is legible beside a small photo, too.
    size = next((size for size in range(largest, smallest, -1) if fits(size)), smallest)
    width, space = _legend(size, limit)
    font, row, pad = _font(size), round(size * 1.6), size // 2
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


def _legend(size: int, limit: int) -> tuple[int, float]:
    """Width of a legend, and that of the names, which are between their colours and shares.

    Args:
        size: Size of the font.
        limit: Maximum width.
    """
    width = min(17 * size, limit)
    return width, width - 5.5 * size


def draw_instances(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    masks: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    scores: Sequence[float],
    classes: Sequence[int],
    opacity: float = INSTANCE_OPACITY,
) -> Image.Image:
    """Image with masks, boxes, class names and scores; higher scores are drawn on top.

    A class has a hue, and its instances have different shades of it. Labels do not cover each
    other: each takes the nearest free place at its box, the highest score first. A label is left
    out if there is no free place within the height of a few lines, or if those of higher scores
    cover 15 % of the image, so that many labels do not hide it.

    Args:
        image: Image of any mode.
        boxes: ``x, y, width, height`` in pixels of the image.
        masks: Bool, each of shape ``(H, W)`` of the image; empty to draw only boxes.
        names: Class name of each box.
        scores: Score of each box.
        classes: Class index of each box, which determines its hue.
        opacity: Opacity of the masks, from 0 to 1.

    Returns:
        RGB image up to 1024 pixels high and wide. Small images are enlarged so that text is
        legible, and narrow ones are padded with white on the right to a width of 360 pixels.

    Raises:
        ValueError: If the opacity is out of range.
    """
    _check_opacity(opacity)
    best_first = sorted(range(len(boxes)), key=lambda i: -scores[i])  # equal ones as given
    order = best_first[::-1]
    colours = _instance_colours(classes, best_first)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).copy()
    for i in order if masks else ():
        pixels[masks[i]] = (
            pixels[masks[i]] * (1 - opacity) + np.array(colours[i], np.float32) * opacity
        )
    canvas = _fit(Image.fromarray(np.rint(pixels).astype(np.uint8)))
    # Separate scales, because the short side of a narrow canvas is rounded to a few pixels.
    scale_x, scale_y = canvas.width / image.width, canvas.height / image.height
    output = Image.new("RGB", (max(canvas.width, MIN_WIDTH), canvas.height), _BACKGROUND)
    output.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(output)
    size = _font_size(max(canvas.size) // 55)
    font, line = _font(size), max(2, size // 7)
    corners = [
        (x * scale_x, y * scale_y, (x + width) * scale_x, (y + height) * scale_y)
        for x, y, width, height in boxes
    ]
    for i in order:
        outline = _inner_outline(corners[i], line)
        if outline is not None:  # a dark edge, so that the box is visible on its own colour
            draw.rectangle(outline, outline=_TEXT, width=1)
        draw.rectangle(corners[i], outline=colours[i], width=line)
    taken: list[_Rectangle] = []
    room = LABELS * canvas.width * canvas.height
    for i in best_first:  # labels last, so that boxes do not cover them
        if sum(map(_area, taken)) > room:
            break
        _draw_tag(draw, f"{names[i]} {scores[i]:.0%}", corners[i], colours[i], font, taken)
    return output


_Rectangle = tuple[float, float, float, float]


def _area(box: _Rectangle) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)


def _inner_outline(box: _Rectangle, line: int) -> _Rectangle | None:
    """The box inside the line of another one; None if nothing is left."""
    left, top, right, bottom = box
    inner = (left + line, top + line, right - line, bottom - line)
    return inner if inner[0] <= inner[2] and inner[1] <= inner[3] else None


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: _Rectangle,
    colour: tuple[int, int, int],
    font: Font,
    taken: list[_Rectangle],
) -> None:
    """Draw a label at a box where no other label is, and add its rectangle to ``taken``."""
    left, up, right, down = draw.textbbox((0, 0), text, font)
    pad = 3
    place = _free_place(box, (right - left + 2 * pad, down - up + 2 * pad), draw.im.size, taken)
    if place is None:
        return
    taken.append(place)
    x, y = place[:2]
    draw.rectangle(place, fill=colour)
    draw.text((x + pad - left, y + pad - up), text, _text_colour(colour), font)


def _free_place(
    box: _Rectangle, size: tuple[float, float], canvas: tuple[int, int], taken: list[_Rectangle]
) -> _Rectangle | None:
    """Rectangle of a label: above the box, inside it, or below, else on the next free line.

    Args:
        box: The box.
        size: Width and height of the label.
        canvas: Width and height of the image.
        taken: Rectangles of other labels.
    """
    (left, top, right, bottom), (width, height) = box, size
    rows = [top - height, top, bottom - height, bottom]
    rows += [top + step * height for step in range(1, _MAX_LINES)]
    rows += [top - step * height for step in range(2, _MAX_LINES)]
    for y in rows:
        for x in (left, right - width):
            x = min(max(x, 0.0), max(canvas[0] - width, 0.0))
            place = (x, y, x + width, y + height)
            is_inside = y >= 0 and place[3] <= max(canvas[1], height)
            if is_inside and not any(_overlap(place, other) for other in taken):
                return place
    return None


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher contrast (WCAG), which is at least 4.5."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _BACKGROUND


def _instance_colours(
    classes: Sequence[int], order: Sequence[int]
) -> dict[int, tuple[int, int, int]]:
    """Colour of each instance: the hue of its class in the next shade.

    Args:
        classes: Class of each instance.
        order: Instances, the one with the brightest shade first.
    """
    seen = Counter[int]()
    colours = {}
    for i in order:
        saturation, value = SHADES[seen[classes[i]] % len(SHADES)]
        seen[classes[i]] += 1
        rgb = colorsys.hsv_to_rgb(classes[i] * HUE_STEP % 1, saturation, value)
        colours[i] = (round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2]))
    return colours
