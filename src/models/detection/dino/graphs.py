"""Exported graph of DINO: the predictions of all queries."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from src.models.detection.detector import Detector
from src.models.detection.dino.head import DINOHead
from src.models.detection.dino.padding import same_padding
from src.models.graphs import Graph, QueryResult, free_sides, image_graph

SMALLEST_SIDE = 65
"""The last feature map is half as large as that of other networks, see `free_sides`."""


DIVISOR = 32
"""As in prediction, images are padded with zeros to multiples of this many pixels."""


class ExportedDINO(nn.Module):
    """Predictions of DINO for images without padding, which it adds, before the best are chosen."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, proposals: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect in ``(N, 3, H, W)``.

        Args:
            image: Prepared images.
            proposals: Pixels that the queries are initialised from, instead of the best ones.

        Returns:
            Logits of the last decoder layer ``(N, Q, classes)``; boxes ``(N, Q, 4)``, centre and
            size in [0, 1]; the pixels of all feature maps that the queries are initialised from,
            int64 ``(N, Q)``, and the logits that they are chosen by, ``(N, Q)``, descending.
        """
        head = cast("DINOHead", self.network.bbox_head)
        transformer = head.transformer
        size = image.shape[2], image.shape[3]
        image = _padded(image)
        features = self.network.extract_features(image)
        padding = same_padding((image.shape[2], image.shape[3]), size, features)
        memory = transformer.encode(features, padding)
        chosen = transformer.propose(
            memory, padding, head.cls_branches[-1], head.reg_branches[-1], proposals
        )
        found = head.predict(
            *transformer.decode(memory, padding, chosen, None, head.reg_branches), chosen
        )
        return found.logits[-1], found.boxes[-1], chosen.index, chosen.logits.amax(-1)


def _padded(image: Tensor) -> Tensor:
    """Zeros below and to the right of images.

    By indices, because other operators treat some amounts of padding in another way, which a
    recorded graph of any size cannot.
    """
    for axis in (2, 3):
        side = image.shape[axis]
        places = torch.arange((side + DIVISOR - 1) // DIVISOR * DIVISOR, device=image.device)
        is_image = (places < side).unflatten(0, (-1, 1) if axis == 2 else (1, -1))
        image = image.index_select(axis, places.clamp(max=side - 1)).masked_fill(~is_image, 0)
    return image


def dino_graph(network: Detector) -> Graph:
    """Graph ``model``: ``image -> logits, boxes, proposals, proposal_scores``.

    Args:
        network: DINO or CB-DINO in evaluation mode.
    """
    head = cast("DINOHead", network.bbox_head)
    outputs = {
        "logits": "scores of each query before the sigmoid, (N, Q, classes)",
        "boxes": "centre x, centre y, width, height of each query's box over the size of the image",
        "proposals": "pixel of all feature maps that each query is initialised from",
        "proposal_scores": "scores that the proposals are chosen by, descending",
    }
    return image_graph(
        "model",
        ExportedDINO(network),
        outputs,
        free_sides(SMALLEST_SIDE),
        size=(150, 220),
        integer_outputs={"proposals": "queries"},
        # Two pixels whose scores differ by less than rounding may change places, and with them the
        # learned content of their queries.
        selections={"proposals": "proposal_scores"},
        result=QueryResult(head.max_detections, head.best_pairs),
    )
