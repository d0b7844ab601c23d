"""Average precision of LVIS for boxes and masks, computed by hotcoco.

LVIS is annotated class by class (Gupta et al., "LVIS", CVPR 2019): a class counts in the images
that have it, or are known not to have it. In other images its detections are left out, and where
not all of its instances are annotated, its detections without a match are ignored. Each class
belongs to one of three groups by the number of its training images: rare, common and frequent.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import UserError
from src.metrics.coco import Kind, as_annotation, numbered
from src.metrics.gathered import GatheredMetric, ScoredImage
from src.types import ImageId

_NAMES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_small": "APs",
    "AP_medium": "APm",
    "AP_large": "APl",
    "AP_rare": "APr",
    "AP_common": "APc",
    "AP_frequent": "APf",
    "AR_300": "AR@300",
    "AR_small": "ARs@300",
    "AR_medium": "ARm@300",
    "AR_large": "ARl@300",
}
LVIS_NUMBERS = tuple(_NAMES)


class LVISMetric(GatheredMetric):
    """The metrics of LVIS for boxes and for masks, and AP of every class.

    It needs the fields ``neg_category_ids`` and ``not_exhaustive_category_ids`` of the images and
    ``frequency`` of the categories, which `COCODataModule` reads from annotation files of LVIS.

    Args:
        num_classes: Number of classes.
        kinds: What to score.
        max_detections: Only so many detections of an image, of all classes together, are scored.
    """

    def __init__(
        self,
        num_classes: int,
        kinds: Sequence[Kind] = ("bbox",),
        max_detections: int = 300,
    ) -> None:
        super().__init__(num_classes)
        self.kinds = tuple(kinds)
        self.max_detections = max_detections

    @property
    def score_names(self) -> tuple[str, ...]:
        """``bbox_AP``, ``bbox_AP50``, ... of every kind."""
        return tuple(f"{kind}_{name}" for kind in self.kinds for name in LVIS_NUMBERS)

    def score(self, images: dict[ImageId, ScoredImage]) -> dict[str, Tensor]:
        """Score images.

        Returns:
            Scalars ``bbox_AP``, ``bbox_AP_rare``, ... and ``segm_AP``, ... in [0, 1], or -1 if
            there is nothing to score; ``bbox_class_AP`` and ``bbox_class_AP50`` of every class,
            shape ``(num_classes,)``, NaN for a class without annotations.

        Raises:
            UserError: If the dataset does not give the frequency of every class.
        """
        frequencies = self.class_facts.frequencies
        if len(frequencies) != self.num_classes:
            raise UserError(
                "The metric of LVIS needs the frequency of every class, but the annotation file "
                f"gives {len(frequencies)} for {self.num_classes} classes; expected 'frequency' "
                "('r', 'c' or 'f') in each of its categories. For other datasets leave "
                "model.metric out."
            )
        scores: dict[str, Tensor] = {}
        for kind in self.kinds:
            for name, value in self._score(images, kind, frequencies).items():
                scores[f"{kind}_{name}"] = value
        return scores

    def _score(
        self, images: dict[ImageId, ScoredImage], kind: Kind, frequencies: Sequence[str]
    ) -> dict[str, Tensor]:
        entries, truth = [], []
        for index, image in enumerate(images.values()):
            entries.append(
                {
                    "id": index,
                    "height": image.size[0],
                    "width": image.size[1],
                    "neg_category_ids": list(image.labels.absent),
                    "not_exhaustive_category_ids": list(image.labels.not_exhaustive),
                }
            )
            truth += [a | {"image_id": index} for a in image.annotations]
        categories = [
            {"id": label, "name": str(label), "frequency": frequency}
            for label, frequency in enumerate(frequencies)
        ]
        head = {"images": entries, "categories": categories}
        found: dict[str, Any] | NDArray[np.float64]
        if kind == "bbox":
            found = found_boxes(images.values(), self.max_detections)
        else:
            found = head | {"annotations": found_masks(images.values(), self.max_detections)}
        annotated = head | {"annotations": numbered(truth)}
        evaluation = _evaluate(annotated, found, kind, self.max_detections)
        results = evaluation.get_results()
        scores = {
            name: torch.tensor(results[key], dtype=torch.float64) for name, key in _NAMES.items()
        }
        precision = torch.from_numpy(evaluation.eval["precision"])[..., 0, -1]
        for name, part in (("AP", precision), ("AP50", precision[:1])):
            of_class = part.flatten(0, 1)
            mean = of_class.where(of_class > -1, torch.nan).nanmean(0)
            scores[f"class_{name}"] = mean.double()
        return scores


def _evaluate(
    truth: dict[str, Any], found: dict[str, Any] | NDArray[np.float64], kind: Kind, limit: int
) -> Any:
    """``hotcoco.COCOeval`` of a COCO file, and another one or the rows of `found_boxes`.

    It accepts only integers as ids of images.

    Raises:
        UserError: If hotcoco is not installed.
    """
    try:
        import hotcoco
    except ImportError as error:
        raise UserError(
            "The metric of LVIS needs hotcoco. Install it with `pip install hotcoco`, or use the "
            "metric of COCO (leave model.metric out)."
        ) from error
    annotated = hotcoco.COCO(truth)
    results = hotcoco.COCO(found) if isinstance(found, dict) else annotated.load_res(found)
    evaluation = hotcoco.COCOeval(annotated, results, kind, lvis_style=True)
    evaluation.params.max_dets = [limit]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    return evaluation


def found_boxes(images: Iterable[ScoredImage], number: int) -> NDArray[np.float64]:
    """The ``number`` best boxes of each image, as rows, which need less memory than dictionaries.

    Returns:
        Position of the image, ``x, y, width, height``, score and class, ``(D, 7)``.
    """
    rows = [np.zeros((0, 7))]
    for index, image in enumerate(images):
        found = image.found
        best = np.argsort(-found.scores, kind="stable")[:number]
        columns = found.boxes[best], found.scores[best], found.labels[best]
        rows.append(np.column_stack([np.full(len(best), float(index)), *columns]))
    return np.concatenate(rows)


def found_masks(images: Iterable[ScoredImage], number: int) -> list[dict[str, Any]]:
    """The ``number`` best masks of each image, as annotations of a COCO file."""
    found = []
    for index, image in enumerate(images):
        best = nlargest(number, image.results, key=lambda result: float(result["score"]))
        found += [as_annotation(result, "segm") | {"image_id": index} for result in best]
    return numbered(found)
