"""Head of DINO: predictions of every layer, their losses, and detections.

Source: Zhang et al., "DINO", ICLR 2023 (arXiv 2203.03605); constants are those of the official
InternImage configurations ``dino_4scale_*`` (mmdet 2.28). Boxes are predicted as centre and size in
[0, 1] of each image without padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from src.losses.box_set import (
    Pairs,
    hungarian_match,
    pixel_boxes,
    relative_boxes,
    set_losses,
)
from src.losses.detection import mean_over_ranks
from src.models.detection.boxes import clip, resize_factor
from src.models.detection.detection_transformer import SetPredictionHead
from src.models.detection.dino.decoder import inverse_sigmoid
from src.models.detection.dino.denoising import Denoising, DenoisingPlan
from src.models.detection.dino.padding import find_padding
from src.models.detection.dino.transformer import DINOTransformer, EncoderProposals
from src.models.layers.conv import ClassOutput
from src.models.layers.precision import full_precision
from src.types import Detections, DetectionTarget, Size

CLASS_PRIOR = 0.01
LOSSES = ("loss_cls", "loss_bbox", "loss_iou")


class ClassBranch(ClassOutput, nn.Linear):
    """Class logits; the initial probability of every class is 0.01."""

    def reset_parameters(self) -> None:
        """Initialise the parameters."""
        super().reset_parameters()
        nn.init.constant_(self.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))


class LabelEmbedding(ClassOutput, nn.Embedding):
    """Content of a denoising query for each class."""


class _ZeroLinear(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def box_branch(channels: int) -> nn.Sequential:
    """Change of a box from its query: three layers, initially no change."""
    return nn.Sequential(
        nn.Linear(channels, channels),
        nn.ReLU(),
        nn.Linear(channels, channels),
        nn.ReLU(),
        _ZeroLinear(channels, 4),
    )


@dataclass
class Predictions:
    """Predictions for a batch.

    Attributes:
        logits: Class logits of the queries for each decoder layer, ``(N, Q, classes)``.
        boxes: Boxes of the queries for each decoder layer, ``(N, Q, 4)``.
        encoder_logits: Class logits of the proposals, ``(N, K, classes)``.
        encoder_boxes: Boxes of the proposals, ``(N, K, 4)``.
        plan: Layout of the denoising queries, the first ones of ``Q``; ``None`` in evaluation.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    encoder_logits: Tensor
    encoder_boxes: Tensor
    plan: DenoisingPlan | None

    def part(self, start: int, stop: int) -> Predictions:
        """Predictions for the images from ``start`` to ``stop``."""
        plan = self.plan
        if plan is not None:
            plan = DenoisingPlan(plan.groups, plan.width, plan.counts[start:stop])
        return Predictions(
            [x[start:stop] for x in self.logits],
            [x[start:stop] for x in self.boxes],
            self.encoder_logits[start:stop],
            self.encoder_boxes[start:stop],
            plan,
        )


class DINOHead(SetPredictionHead):
    """Transformer and prediction branches.

    Args:
        num_classes: Classes without background.
        transformer: Encoder and decoder.
        denoising: Makes the denoising queries of training.
        max_detections: Detections per image.
    """

    def __init__(
        self,
        num_classes: int,
        transformer: DINOTransformer,
        denoising: Denoising,
        max_detections: int = 300,
    ) -> None:
        super().__init__()
        channels = transformer.decoder.channels
        branches = len(transformer.decoder.layers) + 1  # the last one is the encoder's
        self.num_classes, self.max_detections = num_classes, max_detections
        self.denoising = denoising
        self.transformer = transformer
        self.cls_branches = nn.ModuleList(
            ClassBranch(channels, num_classes) for _ in range(branches)
        )
        self.reg_branches = nn.ModuleList(box_branch(channels) for _ in range(branches))
        self.label_embedding = LabelEmbedding(num_classes, channels)

    def forward(
        self,
        features: Sequence[Tensor],
        image_size: Size,
        sizes: Sequence[Size],
        targets: Sequence[DetectionTarget] | None = None,
    ) -> Predictions:
        """Predictions of all layers; see `SetPredictionHead.forward`.

        Targets add the denoising queries.
        """
        padding = find_padding(image_size, sizes, features)
        memory = self.transformer.encode(features, padding)
        proposals = self.transformer.propose(
            memory, padding, self.cls_branches[-1], self.reg_branches[-1]
        )
        noisy, plan = None, None
        if targets is not None:
            boxes = [
                relative_boxes(target["boxes"].to(proposals.box_logits), size)
                for target, size in zip(targets, sizes, strict=True)
            ]
            noisy, plan = self.denoising(
                targets, boxes, self.label_embedding, proposals.index.shape[1]
            )
        states, references = self.transformer.decode(
            memory, padding, proposals, noisy, self.reg_branches
        )
        return self.predict(states, references, proposals, plan)

    def predict(
        self,
        states: Sequence[Tensor],
        references: Sequence[Tensor],
        proposals: EncoderProposals,
        plan: DenoisingPlan | None = None,
    ) -> Predictions:
        """Classes and boxes of the queries of all decoder layers.

        Args:
            states: Queries after each decoder layer, ``(N, Q, C)``.
            references: Boxes that the predictions of each layer are relative to, ``(N, Q, 4)``.
            proposals: Proposals that the matching queries were initialised from.
            plan: Layout of the denoising queries among them.
        """
        logits, boxes = [], []
        for i, (state, reference) in enumerate(zip(states, references, strict=True)):
            logits.append(full_precision(self.cls_branches[i](state)))
            change = full_precision(self.reg_branches[i](state))
            boxes.append((change + inverse_sigmoid(reference)).sigmoid())
        return Predictions(logits, boxes, proposals.logits, proposals.box_logits.sigmoid(), plan)

    def losses(
        self,
        predictions: Predictions,
        targets: Sequence[DetectionTarget],
        sizes: Sequence[Size],
    ) -> dict[str, Tensor]:
        """Compare predictions with the ground truth; see `SetPredictionHead.losses`.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last decoder layer; with prefix
            ``d0.``, ``d1.``, ... of the others, ``interm_`` of the encoder, and ``dn_`` for the
            denoising queries.
        """
        plan = predictions.plan
        assert plan is not None, "losses need the denoising queries of training"
        device = predictions.encoder_logits.device
        count = sum(min(n, predictions.encoder_logits.shape[1]) for n in plan.counts)
        number = mean_over_ranks(count, device)
        found = self._matched(
            predictions.encoder_logits, predictions.encoder_boxes, targets, sizes, number
        )
        losses = _named("interm_", found)
        for prefix, logits, boxes in _layers(predictions):
            queries = self._matched(
                logits[:, plan.size :], boxes[:, plan.size :], targets, sizes, number
            )
            losses |= _named(prefix, queries)
        number = mean_over_ranks(sum(plan.counts) * plan.groups, device)
        pairs = [plan.positive(i, device) for i in range(len(targets))]
        # Without ground truth the embedding has no gradient, which DDP refuses.
        unused = self.label_embedding.weight.sum() * 0
        for prefix, logits, boxes in _layers(predictions):
            noisy = set_losses(
                logits[:, : plan.size], boxes[:, : plan.size], targets, sizes, pairs, number
            )
            losses |= _named(f"{prefix}dn_", (noisy[0] + unused, *noisy[1:]))
        return losses

    def _matched(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[DetectionTarget],
        sizes: Sequence[Size],
        number: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs: Pairs = hungarian_match(logits, boxes, targets, sizes)
        return set_losses(logits, boxes, targets, sizes, pairs, number)

    def detect(
        self, predictions: Predictions, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        """The best pairs of query and class of each image; see `SetPredictionHead.detect`.

        There is neither a threshold nor NMS.
        """
        return [
            self.best_pairs(*image)
            for image in zip(
                predictions.logits[-1], predictions.boxes[-1], sizes, original_sizes, strict=True
            )
        ]

    def best_pairs(self, logits: Tensor, boxes: Tensor, size: Size, original: Size) -> Detections:
        """The best pairs of query and class of one image.

        Args:
            logits: Class logits of the queries, ``(Q, classes)``.
            boxes: Their boxes, ``(Q, 4)``.
            size: Height and width of the image without padding.
            original: Height and width that the boxes of the detections refer to.
        """
        probability = logits.sigmoid().flatten()
        scores, index = probability.topk(min(self.max_detections, len(probability)))
        corners = clip(pixel_boxes(boxes[index // self.num_classes], size), size)
        corners = corners / resize_factor(size, original, corners)
        return Detections(corners, scores, index % self.num_classes)


def _layers(predictions: Predictions) -> list[tuple[str, Tensor, Tensor]]:
    """Prefix of the names, logits and boxes of each decoder layer."""
    last = len(predictions.logits) - 1
    return [
        ("" if i == last else f"d{i}.", logits, boxes)
        for i, (logits, boxes) in enumerate(zip(predictions.logits, predictions.boxes, strict=True))
    ]


def _named(prefix: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in zip(LOSSES, values, strict=True)}
