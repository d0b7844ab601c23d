"""``EXPORT.md`` of a network that is one file from image to result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.export.card import card, opening, operators
from src.export.description import Description
from src.export.preparation import described, opened, prepared
from src.models.graphs import ClassResult, LabelMapResult, RegionResult, Result
from src.visualization import FONT, HUE_STEP, INSTANCE_OPACITY, LABEL_MAP_OPACITY, SHADES

_BOX_OUTPUTS = {
    "boxes": "(detections, 4) float32 | x1, y1, x2, y2 in pixels of the input, best first",
    "scores": "(detections,) float32 | probabilities",
    "labels": "(detections,) int64 | class numbers",
}
_BOX_MASKS = {"masks": "(detections, 28, 28) float32 | probabilities inside of each box"}
_IMAGE_MASKS = {"masks": "(detections, height, width) bool | mask of each detection"}
_LABEL_MAP = {
    "label_map": "(batch, height, width) int64 | best class of each pixel",
    "scores": "(batch, height, width) float32 | probability of that class",
}


def result_card(
    result: Result,
    files: Sequence[Path],
    description: Description,
    *,
    inside: bool,
    masks: str,
    library: str | None = None,
) -> str:
    """Text of ``EXPORT.md``.

    Args:
        result: What the file predicts.
        files: The files.
        description: Task, classes and preprocessing.
        inside: Whether preprocessing is part of the file.
        masks: ``box`` or ``image``, see `src.export.results.assemble`.
        library: Name of the library that the file needs.
    """
    rows = "\n".join(f"| `{k}` | out | {v} |" for k, v in _outputs(result, masks).items())
    tensorrt = "" if library else _tensorrt(description.preprocessing, inside)
    content = f"""`model.onnx` takes an image and gives the result, with {operators(library)}.
Class names, preprocessing and versions are in its metadata (`names`, `preprocessing` and
`versions`, JSON){_palette(result)}.

| name | | shape, type | meaning |
| --- | --- | --- | --- |
{_inputs(result, inside)}
{rows}

## Running it

Needs `pip install onnxruntime numpy pillow`. Saved as `predict.py`, `python predict.py FILE` reads
an image (without `FILE`, `photo.jpg`) and writes `result.png`.
{_colours(result)}Grey images become RGB; those of more than 8 bits are refused.

```python
{_code(result, description, inside=inside, masks=masks, library=library)}
```

{tensorrt}"""
    return card(description, files, content, _preprocessing(result, description, inside=inside))


def needs_font(class_names: Sequence[str]) -> bool:
    """Whether class names have letters that Pillow's own font lacks."""
    return not all(map(str.isascii, class_names))


def _colours(result: Result) -> str:
    is_text = isinstance(result, ClassResult)
    return "" if is_text else "Its colours are those of `python -m src predict`. "


def _palette(result: Result) -> str:
    has_palette = isinstance(result, LabelMapResult)
    return ", and the colours of the classes (`palette`)" if has_palette else ""


def _tensorrt(settings: Mapping[str, Any], inside: bool) -> str:
    if inside:
        return "For TensorRT, export with `--preprocessing outside`."
    side = settings.get("image_size")
    size = f"{side}x{side}" if side else "800x1216"
    return f"""TensorRT (not run here; shapes must be fixed or given as profiles):

```bash
trtexec --onnx=model.onnx --saveEngine=model.engine --optShapes=image:1x3x{size}
```"""


def _preprocessing(result: Result, description: Description, *, inside: bool) -> str:
    if inside:
        return "Part of the file: it resizes, normalises and pads RGB images of 8 bits."
    return f"Not part of the file. {described(result, description.preprocessing)}"


def _inputs(result: Result, inside: bool) -> str:
    batch = "batch" if isinstance(result, ClassResult | LabelMapResult) else "1"
    if inside:
        return f"| `image` | in | ({batch}, height, width, 3) uint8 | RGB image of any size |"
    row = f"| `image` | in | ({batch}, 3, height, width) float32 | prepared RGB image"
    if isinstance(result, RegionResult):
        size = "| `size` | in | (2,) int64 | height and width of the image without padding |"
        return f"{row}, padded with zeros to multiples of {result.divisor} |\n{size}"
    return f"{row} |"


def _outputs(result: Result, masks: str) -> dict[str, str]:
    if isinstance(result, ClassResult):
        return {"probabilities": "(batch, classes) float32 | probability of each class"}
    if isinstance(result, LabelMapResult):
        return _LABEL_MAP
    if isinstance(result, RegionResult) and result.mask_threshold is not None:
        return _BOX_OUTPUTS | (_BOX_MASKS if masks == "box" else _IMAGE_MASKS)
    return _BOX_OUTPUTS


def _code(
    result: Result, description: Description, *, inside: bool, masks: str, library: str | None
) -> str:
    settings = description.preprocessing
    named = _PADDED if isinstance(result, RegionResult) else _PREPARED
    drawn = _drawing(result, masks)
    if needs_font(description.class_names):
        drawn = drawn.replace("ImageFont.load_default(", f'ImageFont.truetype("{FONT.name}", ')
    used = "Image, ImageDraw, ImageFont" + (", ImageOps" if description.upright else "")
    lines = [
        *(["import colorsys"] if "colorsys" in drawn else []),
        "import json",
        "import sys",
        "",
        "import numpy as np",
        "import onnxruntime",
        f"from PIL import {used}",
        "",
        _PATH,
        *([_MIN_SCORE] if "min_score" in drawn else []),
        *opening("model.onnx", library),
        "metadata = session.get_modelmeta().custom_metadata_map",
        'names = json.loads(metadata["names"])',
        *opened(upright=description.upright),
        *([_WHOLE] if inside else [*prepared(result, settings), named]),
        "outputs = [output.name for output in session.get_outputs()]",
        "found = dict(zip(outputs, session.run(outputs, inputs)))",
    ]
    return "\n".join(lines) + "\n" + drawn + 'result.save("result.png")'


def _drawing(result: Result, masks: str) -> str:
    """Lines that draw a result, in the colours of `src.visualization`."""
    if isinstance(result, ClassResult):
        return _CLASSES
    if isinstance(result, LabelMapResult):
        return _LABELS.replace("OPACITY", str(LABEL_MAP_OPACITY))
    masked = ""
    if isinstance(result, RegionResult) and result.mask_threshold is not None:
        masked = _MASKS[masks].replace("THRESHOLD", str(result.mask_threshold))
        masked = masked.replace("OPACITY", str(round(255 * INSTANCE_OPACITY)))
    shown = _SHOWN.replace("SHADES", str(list(SHADES))).replace("HUE_STEP", str(HUE_STEP))
    return shown + masked + _BOXES


_PATH = """\
given = sys.argv[1:] if "__file__" in globals() else []  # a notebook has arguments of its own
path = given[0] if given else "photo.jpg\""""
_PREPARED = 'inputs = {"image": image}'
_PADDED = 'inputs = {"image": image, "size": np.array([height, width])}'
_WHOLE = 'inputs = {"image": np.asarray(photo)[None]}'
_CLASSES = """\
probabilities = found["probabilities"][0]
best = (-probabilities).argsort(kind="stable")[:5]
text = "\\n".join(f"{names[label]} {probabilities[label]:.1%}" for label in best)
print(text)
font = ImageFont.load_default(photo.width // 40 + 10)
_, _, right, bottom = map(round, ImageDraw.Draw(photo).textbbox((8, 8), text, font))
size = max(photo.width, right + 8), photo.height + bottom + 8
result = Image.new("RGB", size, "white")
result.paste(photo)
ImageDraw.Draw(result).text((8, photo.height + 8), text, "black", font)
"""
_LABELS = """\
labels = found["label_map"][0]
shown, counts = np.unique(labels, return_counts=True)
shares = dict(sorted(zip(shown, counts / labels.size), key=lambda pair: -pair[1]))
print(", ".join(f"{names[label]} {share:.1%}" for label, share in shares.items()))
shown = [label for label, share in shares.items() if f"{share:.0%}" != "0%"][:24]
palette = [tuple(colour) for colour in json.loads(metadata["palette"])]
grey = photo.convert("L").convert("RGB")  # so that colours are those of the legend
photo = Image.blend(grey, Image.fromarray(np.uint8(palette)[labels]), OPACITY)
side = photo.height // 60 + 10  # of a field in the legend
height = max(photo.height, (len(shown) + 1) * 3 * side // 2)
result = Image.new("RGB", (photo.width + 14 * side, height), "white")
result.paste(photo)
draw, font = ImageDraw.Draw(result), ImageFont.load_default(side)
for i, label in enumerate(shown):
    x, y = photo.width + side // 2, side // 2 + i * 3 * side // 2
    draw.rectangle((x, y, x + side, y + side), palette[label])
    text = f"{names[label]} {shares[label]:.0%}"
    draw.text((x + 3 * side // 2, y), text, "black", font)
"""
_MIN_SCORE = "min_score = 0.3  # of the detections that are shown"
_SHOWN = """\
boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
shown = np.flatnonzero(scores >= min_score)  # best first
print(f"{len(shown)} of {len(scores)} detections have a score of at least {min_score}")
if not len(shown):
    print(f"The highest score is {max(scores, default=0):.3f}; lower min_score to draw more.")
shades = SHADES
# A class has a hue, and each of its detections the next of the shades (saturation and value).
nth = [sum(labels[:i] == labels[i]) % len(shades) for i in shown]
rgb = [colorsys.hsv_to_rgb(labels[i] * HUE_STEP % 1, *shades[n]) for i, n in zip(shown, nth)]
colours = {i: tuple(round(255 * c) for c in colour) for i, colour in zip(shown, rgb)}
result, side = photo.copy(), max(photo.size) // 60 + 10
"""
_BOXES = """\
draw, font = ImageDraw.Draw(result), ImageFont.load_default(side)
for i in shown[::-1]:  # the best ones on top
    draw.rectangle(boxes[i].tolist(), outline=colours[i], width=side // 5)
    x, y = boxes[i, 0], max(boxes[i, 1] - 1.3 * side, 0)
    text = f"{names[labels[i]]} {scores[i]:.0%}"
    draw.rectangle(draw.textbbox((x, y), text, font), colours[i])
    is_bright = np.dot(colours[i], (0.3, 0.6, 0.1)) > 120
    draw.text((x, y), text, "black" if is_bright else "white", font)
for i in shown:
    print(names[labels[i]], f"{scores[i]:.1%}", boxes[i].round(1))
"""
_MASKS = {
    "box": """\
for i in shown[::-1]:  # masks have the size of their box
    left, top, right, bottom = boxes[i].round().astype(int).tolist()
    size = max(right - left, 1), max(bottom - top, 1)
    mask = np.asarray(Image.fromarray(found["masks"][i]).resize(size, Image.BILINEAR))
    mask = Image.fromarray(((mask > THRESHOLD) * OPACITY).astype(np.uint8))
    result.paste(colours[i], (left, top), mask)
""",
    "image": """\
for i in shown[::-1]:
    mask = Image.fromarray((found["masks"][i] * OPACITY).astype(np.uint8))
    result.paste(colours[i], (0, 0), mask)
""",
}
