"""Results of an exported network for the page of ``python -m src demo`` and for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.classes.palette import distinct_palette
from src.errors import counted, told_apart
from src.export.predictor import ExportedModel
from src.visualization import draw_classes, draw_instances, draw_label_map

_TOP = 5


@dataclass(frozen=True)
class Answer:
    """Results of one image.

    Attributes:
        rows: One dictionary per class or object, as those of ``src.inference.Prediction.rows``:
            ``label`` (from 0) and ``name``, with ``score`` (classification, best first), ``score``
            and ``x1, y1, x2, y2`` in pixels (detection), or ``pixels`` and ``share``
            (segmentation, largest first).
        text: A line with the names and the scores or shares.
        draw: Draws them; RGB.
    """

    rows: list[dict[str, Any]]
    text: str
    draw: Callable[[], Image.Image]


def answer(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, score: float
) -> Answer:
    """Results of an image.

    Args:
        image: The image.
        found: Outputs of the exported network for it.
        predictor: The exported network.
        score: Minimum score of detections.
    """
    return _ANSWERS[predictor.task](image, found, predictor, score)


def _classes(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, _: float
) -> Answer:
    best = (-found["probabilities"]).argsort(kind="stable")[:_TOP]
    scores = found["probabilities"][best].tolist()
    rows = _rows(predictor, best, score=scores)
    names = [row["name"] for row in rows]
    return Answer(rows, _text(rows, "score"), lambda: draw_classes(image, names, scores))


def _areas(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, _: float
) -> Answer:
    label_map, names = found["label_map"], predictor.class_names
    labels, pixels = np.unique(label_map, return_counts=True)
    order = (-pixels).argsort(kind="stable")
    labels, pixels = labels[order], pixels[order]
    shares = (pixels / label_map.size).tolist()
    rows = _rows(predictor, labels, pixels=pixels.tolist(), share=shares)
    palette = predictor.palette or distinct_palette(len(names))
    return Answer(
        rows, _text(rows, "share"), lambda: draw_label_map(image, label_map, names, palette)
    )


def _objects(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, score: float
) -> Answer:
    shown = found["scores"] >= score
    boxes, labels, scores = (found[name][shown] for name in ("boxes", "labels", "scores"))
    x1, y1, x2, y2 = boxes.T.tolist()
    rows = _rows(predictor, labels, score=scores.tolist(), x1=x1, y1=y1, x2=x2, y2=y2)

    def draw() -> Image.Image:
        masks: list[NDArray[np.bool_]] = []
        if "masks" in found:
            size = image.height, image.width
            masks = list(predictor.whole_masks(found["masks"][shown], boxes, size))
        return draw_instances(
            image,
            boxes=[[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()],
            masks=masks,
            names=[row["name"] for row in rows],
            scores=scores.tolist(),
            classes=labels.tolist(),
        )

    if rows:
        return Answer(rows, f"{counted(len(rows), 'object')}: {_text(rows, 'score')}", draw)
    highest = told_apart(float(found["scores"].max(initial=0.0)), score)
    text = (
        f"0 objects have a score of at least {score:g}; the highest score is {highest}. Start demo"
        " with a lower --score to draw more."
    )
    return Answer(rows, text, draw)


def _rows(
    predictor: ExportedModel, labels: NDArray[Any], **columns: Sequence[Any]
) -> list[dict[str, Any]]:
    names = predictor.class_names
    return [
        {"label": label, "name": names[label]} | dict(zip(columns, values, strict=True))
        for label, *values in zip(labels.tolist(), *columns.values(), strict=True)
    ]


def _text(rows: Sequence[dict[str, Any]], column: str) -> str:
    return ", ".join(f"{row['name']} {row[column]:.1%}" for row in rows)


_ANSWERS = {"classification": _classes, "segmentation": _areas, "detection": _objects}
