"""Detection metrics that score all images of all ranks together.

Results (as arrays) and annotations of all ranks are gathered. Every rank takes part in
exactly one gather per evaluation, so no rank waits for another. An image that several ranks have
seen (samplers may repeat some) counts once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from src.metrics.base import DetectionMetric
from src.metrics.coco_results import PackedResults, Result
from src.types import Detections, ImageId, ImageLabels


@dataclass
class ScoredImage:
    """Annotations and results of an image.

    Attributes:
        size: Height and width in its file.
        annotations: COCO annotations with the class index as ``category_id``.
        found: Results, with the class index as ``category_id``.
        id: Id of the image in its annotation file.
        labels: Classes that were checked in the image.
    """

    size: tuple[int, int]
    annotations: list[dict[str, Any]]
    found: PackedResults
    id: ImageId
    labels: ImageLabels = field(default_factory=ImageLabels)

    @property
    def results(self) -> list[Result]:
        """COCO results, made for each use."""
        return self.found.unpacked(self.id)


class GatheredMetric(DetectionMetric):
    """Collects images; a subclass defines `score`.

    After `compute`, ``scored`` holds the images of all ranks until the next `reset`.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(sync_on_compute=False)
        self.num_classes = num_classes
        self.images: dict[ImageId, ScoredImage] = {}
        self.scored: dict[ImageId, ScoredImage] = {}

    @abstractmethod
    def score(self, images: dict[ImageId, ScoredImage]) -> dict[str, Tensor]:
        """Scores of images, sorted by id; see `ScoreMetric`."""

    @property
    def results(self) -> list[Result]:
        """COCO results of the scored images of all ranks."""
        return [result for image in self.scored.values() for result in image.results]

    def update(
        self,
        found: Sequence[Detections],
        image_ids: Sequence[ImageId],
        sizes: Sequence[tuple[int, int]],
        annotations: Sequence[Sequence[dict[str, Any]]],
        image_labels: Sequence[ImageLabels] | None = None,
    ) -> None:
        """Add images; see `DetectionMetric.update`."""
        labels = image_labels or [ImageLabels()] * len(found)
        for detections, number, (height, width), truth, checked in zip(
            found, image_ids, sizes, annotations, labels, strict=True
        ):
            self.images[number] = ScoredImage(
                (height, width), list(truth), PackedResults.of(detections), number, checked
            )

    def compute(self) -> dict[str, Tensor]:
        """Score all images that were added, on all ranks.

        Returns:
            Scores of `score`, and ``class_objects``, int64: annotated objects of every class, shape
            ``(num_classes,)``. Without those of ``iscrowd`` and ``ignore``, unless `score` counts.
        """
        self.scored = gather(self.images)
        return {"class_objects": self._objects()} | self.score(self.scored)

    def _objects(self) -> Tensor:
        labels = [
            annotation["category_id"]
            for image in self.scored.values()
            for annotation in image.annotations
            if not (annotation.get("iscrowd") or annotation.get("ignore"))
        ]
        numbers = torch.tensor(labels, dtype=torch.int64)
        return torch.bincount(numbers, minlength=self.num_classes)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self.images, self.scored = {}, {}


def gather(images: dict[ImageId, ScoredImage]) -> dict[ImageId, ScoredImage]:
    """Images of all ranks, sorted by id."""
    parts = [images]
    if dist.is_available() and dist.is_initialized():
        parts = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, images)
    together = {number: image for part in parts for number, image in part.items()}
    return dict(sorted(together.items()))
