"""Base classes of the metrics that a recipe may name as ``model.metric``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from src.metrics.coco_results import Result
from src.types import ClassFacts, Detections, ImageId, ImageLabels


class ScoreMetric(Metric):
    """Scores of one evaluation, as fractions.

    `compute` returns them by name: scalars, which are logged, and scores of every class, shape
    ``(num_classes,)``, which make the table of classes. Printed tables show them in percent.
    Integers of every class are counts, such as the number of annotated objects; tables show them
    first and as they are.
    """

    full_state_update = False

    @property
    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """Names of the scalars that `compute` returns."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Scores of all images that were added, on all ranks."""


class DetectionMetric(ScoreMetric):
    """Scores of detections against annotations in COCO format.

    Attributes:
        class_facts: Properties of the classes, which the task takes from the data module before
            `compute`.
    """

    class_facts: ClassFacts = ClassFacts()

    @abstractmethod
    def update(
        self,
        found: Sequence[Detections],
        image_ids: Sequence[ImageId],
        sizes: Sequence[tuple[int, int]],
        annotations: Sequence[Sequence[dict[str, Any]]],
        image_labels: Sequence[ImageLabels] | None = None,
    ) -> None:
        """Add images.

        Args:
            found: Detections of each image.
            image_ids: Id of each image in its annotation file.
            sizes: Height and width of each image in its file.
            annotations: COCO annotations of each image with the class index as ``category_id``.
            image_labels: Classes that were checked in each image; the task gives it only if the
                dataset has it.
        """

    @property
    @abstractmethod
    def results(self) -> list[Result]:
        """COCO results of the images that `compute` has scored, until the next `reset`."""
