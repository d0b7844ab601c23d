"""Average precision of COCO for boxes and masks, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from src.errors import UserError
from src.metrics.coco_results import Result
from src.metrics.gathered import GatheredMetric, ScoredImage
from src.types import ImageId

NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
Kind = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "faster_coco_eval"]


class COCOMetric(GatheredMetric):
    """The twelve metrics of COCO for boxes and for masks, and AP of every class.

    Args:
        num_classes: Number of classes.
        kinds: What to score.
        backend: ``pycocotools``, or ``faster_coco_eval`` if it is installed, which computes the
            same numbers faster.
    """

    def __init__(
        self,
        num_classes: int,
        kinds: Sequence[Kind] = ("bbox", "segm"),
        backend: Backend = "pycocotools",
    ) -> None:
        super().__init__(num_classes)
        self.kinds = tuple(kinds)
        self.tools = _tools(backend)

    @property
    def score_names(self) -> tuple[str, ...]:
        """``bbox_AP``, ``bbox_AP50``, ... of every kind."""
        return tuple(f"{kind}_{name}" for kind in self.kinds for name in NUMBERS)

    def score(self, images: dict[ImageId, ScoredImage]) -> dict[str, Tensor]:
        """Score images.

        Returns:
            Scalars ``bbox_AP``, ``bbox_AP50``, ... and ``segm_AP``, ... in [0, 1], or -1 if there
            is nothing to score (as in pycocotools); ``bbox_class_AP`` and ``bbox_class_AP50`` of
            every class, shape ``(num_classes,)``, NaN for a class without annotations.
        """
        scores: dict[str, Tensor] = {}
        for kind in self.kinds:
            numbers, per_class = evaluate(images, self.num_classes, kind, self.tools)
            found = numbers | {f"class_{name}": values for name, values in per_class.items()}
            for name, value in found.items():
                scores[f"{kind}_{name}"] = torch.tensor(value, dtype=torch.float64)
        return scores


def evaluate(
    images: dict[ImageId, ScoredImage], num_classes: int, kind: Kind, tools: tuple[Any, Any]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Score results against annotations.

    Args:
        images: Images by id.
        num_classes: Number of classes.
        kind: Boxes or masks.
        tools: Classes for the annotations and for the evaluation.

    Returns:
        The twelve metrics by name, and ``AP`` and ``AP50`` of every class.
    """
    if not images:
        empty = [float("nan")] * num_classes
        return dict.fromkeys(NUMBERS, -1.0), {"AP": empty, "AP50": empty}
    annotation_class, evaluation_class = tools
    head = {
        "images": [
            {"id": index, "height": image.size[0], "width": image.size[1]}
            for index, image in enumerate(images.values())
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(num_classes)],
    }
    truth, results = [], []
    for index, image in enumerate(images.values()):  # faster_coco_eval needs integers as ids
        truth += [a | {"image_id": index} for a in image.annotations]
        results += [as_annotation(r, kind) | {"image_id": index} for r in image.results]
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = _index(annotation_class, head | {"annotations": numbered(truth)})
        found = _index(annotation_class, head | {"annotations": numbered(results)})
        evaluation = evaluation_class(wanted, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = [float(value) for value in evaluation.stats[: len(NUMBERS)]]
    return dict(zip(NUMBERS, numbers, strict=True)), _per_class(evaluation.eval["precision"])


def as_annotation(result: Result, kind: Kind) -> dict[str, Any]:
    """A result with the area, of its box or mask, that makes it small, medium or large."""
    if kind == "bbox":
        _, _, width, height = result["bbox"]
        kept = {key: result[key] for key in ("image_id", "category_id", "score", "bbox")}
        return kept | {"area": width * height, "iscrowd": 0}
    kept = {key: result[key] for key in ("image_id", "category_id", "score", "segmentation")}
    code = result["segmentation"]
    area, box = float(coco_mask.area(code)), coco_mask.toBbox(code).tolist()
    return kept | {"area": area, "bbox": box, "iscrowd": 0}


def numbered(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations, to which ids from 1 are added; copies would need gigabytes."""
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return annotations


def _index(annotation_class: Any, dataset: dict[str, Any]) -> Any:
    coco = annotation_class()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _per_class(precision: np.ndarray) -> dict[str, list[float]]:
    """Mean of precision ``(IoU, recall, class, area, detections)`` over recall (and IoU)."""
    precision = precision[:, :, :, 0, -1]

    def mean(values: np.ndarray) -> list[float]:
        return [
            float(of_class[of_class > -1].mean()) if (of_class > -1).any() else float("nan")
            for of_class in np.moveaxis(values, 2, 0)
        ]

    return {"AP": mean(precision), "AP50": mean(precision[:1])}


def _tools(backend: Backend) -> tuple[Any, Any]:
    if backend == "pycocotools":
        return COCO, COCOeval
    try:
        import faster_coco_eval
    except ImportError as error:
        raise UserError(
            "The COCO backend faster_coco_eval is not installed. Install it with `pip install "
            "faster-coco-eval`, or use the default backend, pycocotools."
        ) from error
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
