"""Section of ``EXPORT.md`` about a network that is one file from image to result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.export.library import operators
from src.export.names import RESULT_FILE
from src.models.detection.rcnn.mask_head import MASK_SIDE
from src.models.graphs import ClassResult, LabelMapResult, RegionResult, Result

_BOX_OUTPUTS = {
    "boxes": "(detections, 4) float32 | x1, y1, x2, y2 in pixels of the input, best first",
    "scores": "(detections,) float32 | probabilities",
    "labels": "(detections,) int64 | class numbers",
}
_BOX_MASKS = {
    "masks": "(detections, 28, 28) float32 | probabilities inside of each box; see `paste`"
}
_PASTED = f"""\
Masks are sampled bilinearly at pixel centres, with zeros around them; a pixel belongs to an object
from THRESHOLD on (`mask_threshold` in the metadata). `paste(masks[i], boxes[i], height, width)` is
the mask of detection `i`, bool, in the image of its box; for an image of another size, scale the
box first.

```python
def shares(low, high, pixels):  # (pixels, {MASK_SIDE}): weights of rows or columns of a mask
    place = (np.arange(pixels) + 0.5 - low) / (high - low) * {MASK_SIDE} - 0.5
    return np.maximum(1 - np.abs(place[:, None] - np.arange({MASK_SIDE})), 0)


def paste(mask, box, height, width, threshold=THRESHOLD):
    left, top, right, bottom = box.astype(float)
    return shares(top, bottom, height) @ mask @ shares(left, right, width).T >= threshold
```

A file exported with `--masks image` does this itself: its masks are those of the whole image."""
_IMAGE_MASKS = {"masks": "(detections, height, width) bool | mask of each detection"}
_LABEL_MAP = {
    "label_map": "(batch, height, width) int64 | best class of each pixel",
    "scores": "(batch, height, width) float32 | probability of that class",
}


def result_section(
    result: Result,
    settings: Mapping[str, Any],
    *,
    inside: bool,
    masks: str,
    library: str | None = None,
) -> str:
    """Section of ``EXPORT.md`` about a file from image to result.

    Args:
        result: What the file predicts.
        settings: Preprocessing of the recipe.
        inside: Whether preprocessing is part of the file.
        masks: ``box`` or ``image``, see `src.export.results.assemble`.
        library: Name of the library that the file needs.
    """
    rows = "\n".join(f"| `{k}` | out | {v} |" for k, v in _outputs(result, masks).items())
    tensorrt = "" if library else f"\n\n{_tensorrt(settings, inside)}"
    pasted = ""
    if masks == "box" and isinstance(result, RegionResult) and result.mask_threshold is not None:
        pasted = "\n\n" + _PASTED.replace("THRESHOLD", str(result.mask_threshold))
    return f"""## ONNX

`{RESULT_FILE}` takes an image and gives the result, with {operators(library)}.
Class names, preprocessing and versions are in its metadata (`names`, `preprocessing` and
`versions`, JSON){_palette(result)}.

| name | | shape, type | meaning |
| --- | --- | --- | --- |
{_inputs(result, inside)}
{rows}{pasted}{tensorrt}"""


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
