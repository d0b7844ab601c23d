"""Drawing results on pictures. Needs nothing but Pillow; used by callbacks and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MIN_WIDTH = 360  # pixels; smaller pictures are enlarged so that the text below them fits
_MAX_SIDE = 1024
_INK, _MUTED, _PAPER, _BAR = (20, 20, 20), (90, 90, 90), (255, 255, 255), (178, 208, 244)


def draw_classes(
    image: Image.Image, names: Sequence[str], probabilities: Sequence[float]
) -> Image.Image:
    """Put the picture above a bar chart of its most probable classes.

    Args:
        image: Picture of any mode and size.
        names: Class names, most probable first.
        probabilities: Their probabilities in [0, 1].

    Returns:
        RGB picture at least 360 pixels wide and about 1024 high or wide at most, text included.

    Raises:
        ValueError: If the two lists differ in length.
    """
    if len(names) != len(probabilities):
        raise ValueError(f"got {len(names)} names for {len(probabilities)} probabilities")
    picture = _fit(image.convert("RGB"))
    size = max(15, picture.width // 28)
    font, row, pad = ImageFont.load_default(size), round(size * 1.7), size // 2
    sheet = Image.new("RGB", (picture.width, picture.height + row * len(names) + 2 * pad), _PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for line, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        top = picture.height + pad + line * row
        full = picture.width - 2 * pad
        draw.rectangle((pad, top + 2, pad + round(full * probability), top + row - 2), fill=_BAR)
        percent = f"{probability:.1%}"
        room = full - draw.textlength(percent, font) - 3 * pad
        middle = top + row // 2
        color = _INK if line == 0 else _MUTED
        draw.text((2 * pad, middle), _shorten(draw, name, font, room), color, font, anchor="lm")
        draw.text((picture.width - 2 * pad, middle), percent, color, font, anchor="rm")
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    scale = min(1.0, _MAX_SIDE / max(image.size))
    scale = max(scale, _MIN_WIDTH / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest keeps the pixels of tiny pictures recognisable instead of blurring them.
    filter_ = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC
    return image if scale == 1.0 else image.resize(size, filter_)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…"
