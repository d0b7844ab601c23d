"""Base of DETR-like detectors: backbone, neck, and a head that predicts a set of boxes.

Source of the idea: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020
(arXiv 2005.12872). DINO is in ``dino/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from src.models.detection.detector import Detector, Kind, TrainingOutput
from src.types import Detections, DetectionTarget, Size


class SetPredictionHead(nn.Module):
    """Interface of the head of a `DetectionTransformer`; predictions have a type of its own."""

    def forward(
        self,
        features: Sequence[Tensor],
        image_size: Size,
        sizes: Sequence[Size],
        targets: Sequence[DetectionTarget] | None = None,
    ) -> Any:
        """Predict.

        Args:
            features: Feature maps of the neck, ``(N, C, H_i, W_i)``, finest first.
            image_size: Height and width of the batch.
            sizes: Height and width of each image without padding.
            targets: Ground truth of each image, given in training only.
        """
        raise TypeError(f"{type(self).__name__} must define forward()")

    def losses(
        self, predictions: Any, targets: Sequence[DetectionTarget], sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Losses by name; training minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define losses()")

    def detect(
        self, predictions: Any, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        """Detections of each image, boxes in pixels of ``original_sizes``."""
        raise TypeError(f"{type(self).__name__} must define detect()")


class DetectionTransformer(Detector):
    """Backbone, neck and a set-prediction head.

    A subclass makes the parts and passes them on. It overrides `neck_inputs` if its backbone does
    not return a plain list of feature maps, and `export_graphs` if it can be exported.

    Args:
        backbone: Returns feature maps, finest first.
        neck: Brings the feature maps to one width.
        head: Predicts a set of boxes from them.
        depths: Blocks per stage of the backbone, for learning rates that decay by layer.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("bbox",)

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: SetPredictionHead,
        depths: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.bbox_head = head
        self.depths = depths

    def neck_inputs(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the backbone that detections are made from."""
        features: list[Tensor] = self.backbone(image)
        return features

    def extract_features(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the neck; see `Detector.extract_features`."""
        features: list[Tensor] = self.neck(self.neck_inputs(image))
        return features

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> TrainingOutput:
        """Losses of the head; see `Detector.forward`."""
        features = self.extract_features(image)
        predictions = self.bbox_head(features, (image.shape[2], image.shape[3]), sizes, targets)
        return TrainingOutput(self.bbox_head.losses(predictions, targets, sizes), {})

    @torch.no_grad()
    def detect(
        self, image: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Detections of each image; see `Detector.forward`."""
        features = self.extract_features(image)
        predictions = self.bbox_head(features, (image.shape[2], image.shape[3]), sizes)
        return self.bbox_head.detect(predictions, sizes, original_sizes or sizes)
