"""Lines of the scripts beside exported files that print and draw a result."""

from __future__ import annotations

from collections.abc import Sequence

from src.models.graphs import ClassResult, LabelMapResult, RegionResult, Result
from src.visualization import (
    BAR,
    FONT,
    HUE_STEP,
    INSTANCE_OPACITY,
    LABEL_MAP_OPACITY,
    LABELS,
    MAX_SIDE,
    MIN_WIDTH,
    SHADES,
)

MIN_SCORE = 0.3
"""Default minimum score of the detections that are shown."""


def needs_font(class_names: Sequence[str]) -> bool:
    """Whether class names have letters that Pillow's own font lacks."""
    return not all(map(str.isascii, class_names))


def drawing(
    result: Result,
    masks: str,
    class_names: Sequence[str],
    own_numbers: Sequence[int] | None = None,
) -> str:
    """Lines that print and draw a result, in the colours of `src.visualization`.

    They use ``found`` (results of a file from image to result, in pixels of ``photo``), ``photo``,
    ``stem``, ``names``, ``short`` (names for drawings), ``FOLDER`` and ``args``, of a segmentor
    ``palette``, and of a detector ``min_score``; they define ``result``. ``SUFFIX`` stands for
    the end of the names of written files.

    Args:
        result: What the file predicts.
        masks: ``box`` or ``image``, see `src.export.results.assemble`.
        class_names: Names of the classes.
        own_numbers: See `src.export.description.Description`.
    """
    own = "" if own_numbers is None else f" ({{{list(own_numbers)}[label]}} in your label maps)"
    text = _drawing(result, masks).replace("OWN", own)
    if needs_font(class_names):
        font = f'ImageFont.truetype(str(FOLDER / "{FONT.name}"), '
        text = text.replace("ImageFont.load_default(", font)
    return text


def _drawing(result: Result, masks: str) -> str:
    if isinstance(result, ClassResult):
        return _CLASSES.replace("BAR", str(BAR))
    if isinstance(result, LabelMapResult):
        return _LABELS.replace("OPACITY", str(LABEL_MAP_OPACITY))
    masked = ""
    if isinstance(result, RegionResult) and result.mask_threshold is not None:
        masked = _MASKS[masks].replace("THRESHOLD", str(result.mask_threshold))
        masked = masked.replace("OPACITY", str(round(255 * INSTANCE_OPACITY)))
    shown = _SHOWN.replace("SHADES", str(list(SHADES))).replace("HUE_STEP", str(HUE_STEP))
    shown = shown.replace("MIN_WIDTH", str(MIN_WIDTH)).replace("MAX_SIDE", str(MAX_SIDE))
    return shown + masked + _BOXES.replace("LABELS", str(LABELS))


_CLASSES = """\
probabilities = found["probabilities"][0]
best = (-probabilities).argsort(kind="stable")[:5]
side = photo.width // 40 + 10  # size of the text
font, row = ImageFont.load_default(side), 7 * side // 4
longest = int(max(font.getlength(short[i]) for i in best))
full = max(longest, 6 * side, photo.width - 6 * side)  # width of a bar of 100 %
result = Image.new("RGB", (full + 6 * side, photo.height + len(best) * row + side), "white")
result.paste(photo)
draw = ImageDraw.Draw(result)
for i, label in enumerate(best):
    print(f"{names[label]} {probabilities[label]:.1%}")
    top = photo.height + side // 2 + i * row
    bar = side // 2 + round(full * float(probabilities[label]))
    draw.rectangle((side // 2, top + 2, bar, top + row - 2), BAR)
    draw.text((side, top + row // 2), short[label], "black", font, anchor="lm")
    percent = f"{probabilities[label]:.1%}"
    draw.text((result.width - side, top + row // 2), percent, "black", font, anchor="rm")
"""
_LABELS = """\
labels = found["label_map"][0]
# The class number of every pixel:
save(Image.fromarray(labels.astype(np.uint8)), args.output / f"{stem}_label_mapSUFFIX.png")
shown, counts = np.unique(labels, return_counts=True)
shares = dict(sorted(zip(shown, counts / labels.size), key=lambda pair: -pair[1]))
for label, share in shares.items():
    percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
    print(f"{label} {names[label]} {percent}OWN")
shown = [label for label, share in shares.items() if f"{share:.0%}" != "0%"][:24]
grey = photo.convert("L").convert("RGB")  # so that colours are those of the legend
photo = Image.blend(grey, Image.fromarray(np.uint8(palette)[labels]), OPACITY)
side = photo.height // 60 + 10  # of a field in the legend
font, texts = ImageFont.load_default(side), [f"{short[i]} {shares[i]:.0%}" for i in shown]
width = photo.width + 5 * side // 2 + int(max(map(font.getlength, texts), default=0))
height = max(photo.height, side // 2 + len(shown) * 3 * side // 2)
result = Image.new("RGB", (width, height), "white")
result.paste(photo)
draw = ImageDraw.Draw(result)
for i, label in enumerate(shown):
    x, y = photo.width + side // 2, side // 2 + i * 3 * side // 2
    draw.rectangle((x, y, x + side, y + side), palette[label])
    draw.text((x + 3 * side // 2, y + side // 2), texts[i], "black", font, anchor="lm")
"""
_SHOWN = """\
boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
shown = np.flatnonzero(scores >= min_score)  # best first
counts = f"{len(shown)} of {len(scores)} detections have a score of at least {min_score:g}"
print(counts if len(scores) else "There are no detections.")
if len(scores) and not len(shown):
    print(f"The highest score is {max(scores):.3f}; lower --score to draw more.")
shades = SHADES
# A class has a hue, and each of its detections the next of the shades (saturation and value).
nth = [sum(labels[:i] == labels[i]) % len(shades) for i in shown]
rgb = [colorsys.hsv_to_rgb(labels[i] * HUE_STEP % 1, *shades[n]) for i, n in zip(shown, nth)]
colours = {i: tuple(round(255 * c) for c in colour) for i, colour in zip(shown, rgb)}
# Small images are enlarged and narrow ones padded, so that labels are legible.
scale = max(1, min(MIN_WIDTH / photo.width, MAX_SIDE / max(photo.size)))
size = [round(scale * length) for length in photo.size]
result = Image.new("RGB", (max(size[0], MIN_WIDTH), size[1]), "white")
result.paste(photo.resize(size, Image.NEAREST if scale > 3 else Image.BICUBIC))
drawn, side = scale * boxes, max(size) // 60 + 10  # boxes in the drawing, size of the text
"""
_BOXES = """\
draw, font = ImageDraw.Draw(result), ImageFont.load_default(side)
for i in shown[::-1]:  # the best ones on top
    draw.rectangle(drawn[i].tolist(), outline=colours[i], width=side // 5)
taken, high = [], 13 * side // 10  # rectangles of labels, and their height
for i in shown:  # the best labels first, each at the nearest place without another label
    text = f"{short[labels[i]]} {scores[i]:.0%}"
    wide = font.getlength(text) + 4
    left, top, right, bottom = drawn[i].tolist()
    rows = [top - high, top, bottom - high, bottom, *(top + n * high for n in range(1, 6))]
    for y, x in [(y, x) for y in rows for x in (left, right - wide)]:
        x, y = max(min(x, result.width - wide), 0), max(min(y, result.height - high), 0)
        if all(x + wide < a or c < x or y + high < b or d < y for a, b, c, d in taken):
            break
    else:
        continue  # without a label: it would hide others
    if sum((c - a) * high for a, _, c, _ in taken) > LABELS * result.width * result.height:
        break  # labels would hide the image
    taken.append((x, y, x + wide, y + high))
    draw.rectangle(taken[-1], colours[i])
    is_bright = np.dot(colours[i], (0.3, 0.6, 0.1)) > 120
    draw.text((x + 2, y + high / 2), text, "black" if is_bright else "white", font, anchor="lm")
for i in shown:
    corners = ", ".join(f"{value:.1f}" for value in boxes[i])
    print(f"{names[labels[i]]} {scores[i]:.1%} box {corners}")
"""
_MASKS = {
    "box": """\
for i in shown[::-1]:  # masks have the size of their box
    left, top, right, bottom = drawn[i].round().astype(int).tolist()
    sides = max(right - left, 1), max(bottom - top, 1)
    mask = np.asarray(Image.fromarray(found["masks"][i]).resize(sides, Image.BILINEAR))
    mask = Image.fromarray(((mask > THRESHOLD) * OPACITY).astype(np.uint8))
    result.paste(colours[i], (left, top), mask)
""",
    "image": """\
for i in shown[::-1]:
    mask = Image.fromarray((found["masks"][i] * OPACITY).astype(np.uint8)).resize(size)
    result.paste(colours[i], (0, 0), mask)
""",
}
