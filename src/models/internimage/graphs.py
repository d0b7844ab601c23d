"""Exported graph of the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from src.models.graphs import ClassResult, Graph, image_graph


class ExportedClassifier(nn.Module):
    """Logits and probabilities of a classifier, both ``(N, num_classes)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify ``(N, 3, H, W)``."""
        logits = self.network(image)
        return logits, logits.softmax(dim=1)


def classifier_graph(network: nn.Module, sides: Mapping[int, Any]) -> Graph:
    """Graph ``model``: ``image -> logits, probabilities``.

    Args:
        network: Classifier in evaluation mode.
        sides: Dynamic axes of the images, see `image_graph`.
    """
    outputs = {"logits": "scores before the softmax", "probabilities": "softmax of the logits"}
    return image_graph("model", ExportedClassifier(network), outputs, sides, result=ClassResult())
