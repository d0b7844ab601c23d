"""Exported graph of segmentors."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from src.models.graphs import Graph, LabelMapResult, free_sides, image_graph


class ExportedSegmentor(nn.Module):
    """Logits ``(N, outputs, H, W)`` and the best class of every pixel, int64 ``(N, H, W)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.num_classes = cast(int, network.num_classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segment ``(N, 3, H, W)``."""
        logits = self.network(image)["out"]
        return logits, logits[:, : self.num_classes].argmax(dim=1)


def segmentor_graph(network: nn.Module, logits: str) -> Graph:
    """Graph ``model``: ``image -> logits, label_map``, both at the size of the image.

    Args:
        network: Segmentor in evaluation mode.
        logits: What the logits of this segmentor mean.
    """
    outputs = {"logits": logits, "label_map": "index of the best class of every pixel"}
    return image_graph(
        "model",
        ExportedSegmentor(network),
        outputs,
        free_sides(),
        integer_outputs={"label_map": "pixels"},
        result=LabelMapResult(),
    )
