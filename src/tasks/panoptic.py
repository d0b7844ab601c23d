"""Prediction of panoptic segments and instances with Mask2Former."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from src.errors import UserError
from src.models.segmentation.mask2former.segments import (
    MAX_INSTANCES,
    OBJECT_THRESHOLD,
    OVERLAP_THRESHOLD,
    instances,
    panoptic_segments,
)
from src.types import Detections, PanopticSegments, Size


@dataclass
class Panoptic:
    """How `predict` turns queries into panoptic segments and instances; defaults as for COCO.

    Attributes:
        things: Names of the classes whose instances are separate; null is all classes.
        object_threshold: Probability that the class of a panoptic segment must exceed.
        overlap_threshold: Smallest ratio of the pixels in which a query is the most probable one to
            the pixels of its mask.
        max_instances: Largest number of instances in an image.
    """

    things: list[str] | None = None
    object_threshold: float = OBJECT_THRESHOLD
    overlap_threshold: float = OVERLAP_THRESHOLD
    max_instances: int = MAX_INSTANCES

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("object_threshold", "overlap_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"model.panoptic.{name}: expected 0 to 1, got {value}.")
        if self.max_instances < 1:
            raise UserError(
                f"model.panoptic.max_instances: expected 1 or more, got {self.max_instances}."
            )

    def thing_labels(self, class_names: Sequence[str], num_classes: int) -> set[int]:
        """Labels of the classes whose instances are separate.

        Args:
            class_names: Names in label order.
            num_classes: Number of classes.

        Raises:
            UserError: If a name is not that of a class.
        """
        if self.things is None:
            return set(range(num_classes))
        unknown = [name for name in self.things if name not in class_names]
        if unknown:
            raise UserError(
                f"model.panoptic.things: there is no class {unknown[0]!r}; expected names of"
                f" {', '.join(class_names[:8])}{', ...' if len(class_names) > 8 else ''}."
            )
        return {class_names.index(name) for name in self.things}

    def segments(
        self, class_logits: Tensor, mask_logits: Tensor, sizes: tuple[Size, Size], things: set[int]
    ) -> tuple[PanopticSegments, Detections]:
        """Panoptic segments and instances of an image, on the CPU; see `panoptic_segments`."""
        found = panoptic_segments(
            class_logits, mask_logits, sizes, things, self.object_threshold, self.overlap_threshold
        )
        found.ids = found.ids.cpu()
        each = instances(class_logits, mask_logits, sizes, things, self.max_instances)
        masks = None if each.masks is None else each.masks.cpu()
        return found, Detections(each.boxes.cpu(), each.scores.cpu(), each.labels.cpu(), masks)


def check_panoptic(network: nn.Module, has_window: bool, views: int) -> None:
    """Refuse what has no panoptic segments.

    Raises:
        UserError: If the network is not Mask2Former, or images are seen in several windows or
            views.
    """
    if not getattr(network, "has_queries", False):
        raise UserError(
            f"model.panoptic needs the network Mask2Former, got {type(network).__name__}, which"
            " scores pixels only. Set model.panoptic to null."
        )
    if has_window or views > 1:
        raise UserError(
            "model.panoptic predicts on whole images. Set model.window_size to null and data.tta to"
            " false."
        )


@contextmanager
def kept_outputs(network: nn.Module) -> Iterator[list[Any]]:
    """Keep the outputs of all forward passes within."""
    outputs: list[Any] = []
    handle = network.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
