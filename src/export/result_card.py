"""``EXPORT.md`` of a network that is one file from image to result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.export.card import card
from src.export.description import Description
from src.models.graphs import ClassResult, LabelMapResult, RegionResult, Result

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
) -> str:
    """Text of ``EXPORT.md``.

    Args:
        result: What the file predicts.
        files: The files.
        description: Task, classes and preprocessing.
        inside: Whether preprocessing is part of the file.
        masks: ``box`` or ``image``, see `src.export.results.assemble`.
    """
    rows = "\n".join(f"| `{k}` | out | {v} |" for k, v in _outputs(result, masks).items())
    content = f"""`model.onnx` takes an image and gives the result, with standard operators only.
Class names, preprocessing and versions are in its metadata (`names`, `preprocessing` and
`versions`, JSON).

| name | | shape, type | meaning |
| --- | --- | --- | --- |
{_inputs(result, inside)}
{rows}

## Running it

Needs `pip install onnxruntime numpy pillow`. It writes `result.png`.

```python
{_code(result, description, inside=inside, masks=masks)}
```

{_tensorrt(description.preprocessing, inside)}"""
    return card(description, files, content, _preprocessing(inside))


def _tensorrt(settings: Mapping[str, Any], inside: bool) -> str:
    if inside:
        return "For TensorRT, export with `--preprocessing outside`."
    side = settings.get("image_size")
    size = f"{side}x{side}" if side else "800x1216"
    return f"""TensorRT (not run here; shapes must be fixed or given as profiles):

```bash
trtexec --onnx=model.onnx --saveEngine=model.engine --optShapes=image:1x3x{size}
```"""


def _preprocessing(inside: bool) -> str:
    if inside:
        return "Part of the file: it resizes, normalises and pads RGB images of 8 bits."
    return "Not part of the file: RGB, divided by 255, minus the mean, divided by the deviation."


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


def _code(result: Result, description: Description, *, inside: bool, masks: str) -> str:
    settings = description.preprocessing
    photo = "ImageOps.exif_transpose(photo)" if description.upright else "photo"
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image, ImageDraw, ImageOps",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'names = json.loads(session.get_modelmeta().custom_metadata_map["names"])',
        'photo = Image.open("photo.jpg")',
        f'photo = {photo}.convert("RGB")',
        *([_WHOLE] if inside else _prepared(result, settings)),
        "outputs = [output.name for output in session.get_outputs()]",
        "found = dict(zip(outputs, session.run(outputs, inputs)))",
    ]
    if isinstance(result, ClassResult):
        drawn = _CLASSES
    elif isinstance(result, LabelMapResult):
        drawn = _LABELS
    else:
        drawn = _BOXES
        if isinstance(result, RegionResult) and result.mask_threshold is not None:
            drawn = _MASKS[masks].format(threshold=result.mask_threshold) + drawn
    return "\n".join(lines) + "\n" + drawn + 'photo.save("result.png")'


def _prepared(result: Result, settings: Any) -> list[str]:
    """Lines that prepare an image with Pillow, whose filter differs slightly from OpenCV's."""
    mean, std = settings["mean"], settings["std"]
    if "image_size" in settings:
        side = int(settings["image_size"])
        short = int(side / float(settings.get("crop_pct", 1.0)))
        resample = str(settings.get("interpolation", "bicubic")).upper()
        lines = [
            f"sides = [side * {short} // min(photo.size) for side in photo.size]",
            f"photo = photo.resize(sides, Image.{resample})",
            f"left, top = [round((side - {side}) / 2) for side in photo.size]",
            f"photo = photo.crop((left, top, left + {side}, top + {side}))",
        ]
    else:
        scale = settings.get("image_scale") or settings["eval_scale"]
        lines = [
            f"scale = min({max(scale)} / max(photo.size), {min(scale)} / min(photo.size))",
            "sides = [int(side * scale + 0.5) for side in photo.size]",
        ]
        if isinstance(result, LabelMapResult):
            divisor = int(settings.get("size_divisor", 32))
            lines.append(f"sides = [-(-side // {divisor}) * {divisor} for side in sides]")
        lines.append("photo = photo.resize(sides, Image.BILINEAR)")
    lines += [
        f"pixels = (np.asarray(photo) / 255 - {mean}) / {std}",
        "image = pixels.transpose(2, 0, 1)[None].astype(np.float32)",
    ]
    if not isinstance(result, RegionResult):
        return [*lines, 'inputs = {"image": image}']
    return [
        *lines,
        "height, width = image.shape[2:]",
        f"padding = [(0, 0), (0, 0), (0, -height % {result.divisor}), (0, -width % "
        f"{result.divisor})]",
        'inputs = {"image": np.pad(image, padding), "size": np.array([height, width])}',
    ]


_WHOLE = 'inputs = {"image": np.asarray(photo)[None]}'
_CLASSES = """\
probabilities = found["probabilities"][0]
best = probabilities.argsort()[::-1][:5]
lines = [f"{names[label]} {probabilities[label]:.3f}" for label in best]
print("\\n".join(lines))
ImageDraw.Draw(photo).multiline_text((4, 4), "\\n".join(lines), fill="red")
"""
_LABELS = """\
labels = found["label_map"][0]
print(", ".join(names[label] for label in np.unique(labels)))
palette = np.random.default_rng(0).integers(0, 256, (len(names), 3), np.uint8)
photo = Image.blend(photo, Image.fromarray(palette[labels]), 0.5)
"""
_BOXES = """\
draw = ImageDraw.Draw(photo)
for box, score, label in zip(found["boxes"], found["scores"], found["labels"]):
    if score > 0.3:
        draw.rectangle(box.tolist(), outline="red", width=2)
        draw.text(box[:2].tolist(), f"{names[label]} {score:.2f}", fill="red")
        print(names[label], f"{score:.3f}", box.round(1).tolist())
"""
_MASKS = {
    "box": """\
for mask, box, score in zip(found["masks"], found["boxes"].round().astype(int), found["scores"]):
    if score > 0.3:  # masks have the size of their box
        sides = [max(side, 1) for side in box[2:] - box[:2]]
        whole = np.asarray(Image.fromarray(mask).resize(sides, Image.BILINEAR)) > {threshold}
        photo.paste("red", tuple(box[:2].tolist()), Image.fromarray(whole.astype(np.uint8) * 128))
""",
    "image": """\
for mask, score in zip(found["masks"], found["scores"]):
    if score > 0.3:
        photo.paste("red", (0, 0), Image.fromarray(mask.astype(np.uint8) * 128))
""",
}
