"""Region proposal network: which boxes of an image are worth a closer look.

Source: Ren et al., "Faster R-CNN", NeurIPS 2015 (arXiv 1506.01497), on a feature pyramid; constants
of the official InternImage detectors (mmdet 2.x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.losses.detection import average
from src.models.detection.boxes import BoxCoder
from src.models.detection.nms import grouped_nms
from src.models.detection.rcnn.anchors import AnchorGenerator
from src.models.detection.rcnn.assigner import MaxIoUAssigner, RandomSampler
from src.models.layers.conv import Conv2d
from src.models.layers.precision import full_precision
from src.types import Size

BoxLoss = Callable[[Tensor, Tensor, float], Tensor]
NMS_IOU = 0.7


@dataclass(frozen=True)
class ProposalLimits:
    """How many proposals pass.

    Attributes:
        per_level: Best boxes per level before duplicates are dropped.
        kept: Best boxes of all levels after it.
    """

    per_level: int = 1000
    kept: int = 1000


@dataclass
class Proposals:
    """Boxes ``(N, 4)`` in pixels of the network's input and their scores ``(N,)``, best first."""

    boxes: Tensor
    scores: Tensor


class RPNHead(nn.Module):
    """One 3x3 convolution, then a score and a box offset for every anchor of every cell.

    Args:
        channels: Width of the pyramid.
        anchors: The anchors.
        train_limits: Proposals in training.
        test_limits: Proposals in evaluation.
        box_loss: Loss between predicted and wanted offsets.
        num_samples: Anchors per image in the loss, at most half of them on objects.
        inside_only: Whether anchors that cross the border of the image are left out of the loss.
    """

    def __init__(
        self,
        channels: int,
        anchors: AnchorGenerator,
        *,
        train_limits: ProposalLimits,
        test_limits: ProposalLimits,
        box_loss: BoxLoss,
        num_samples: int = 256,
        inside_only: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.train_limits, self.test_limits = train_limits, test_limits
        self.box_loss, self.inside_only = box_loss, inside_only
        self.coder = BoxCoder()
        self.assigner = MaxIoUAssigner(0.7, 0.3, low_quality_iou=0.3)
        self.sampler = RandomSampler(num_samples, 0.5)
        self.rpn_conv = Conv2d(channels, channels, 3, start=0.01)
        self.rpn_cls = Conv2d(channels, anchors.num_per_cell, 1, start=0.01)
        self.rpn_reg = Conv2d(channels, anchors.num_per_cell * 4, 1, start=0.01)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict at every anchor.

        Args:
            pyramid: Maps ``(N, C, H_i, W_i)``.

        Returns:
            Objectness ``(N, H_i * W_i * A)`` and offsets ``(N, H_i * W_i * A, 4)`` per level,
            in the order of the anchors.
        """
        logits, offsets = [], []
        for level in pyramid:
            hidden = F.relu(self.rpn_conv(level))
            logits.append(_by_anchor(self.rpn_cls(hidden), 1).squeeze(2))
            offsets.append(_by_anchor(self.rpn_reg(hidden), 4))
        return logits, offsets

    @torch.no_grad()
    def propose(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
        limits: ProposalLimits,
    ) -> list[Proposals]:
        """Turn predictions into proposals.

        Args:
            logits: As `forward` returns them.
            offsets: As `forward` returns them.
            anchors: Anchors per level.
            sizes: Height and width of each image without padding.
            limits: How many to keep.

        Returns:
            Proposals of each image, clipped to it, without duplicates.
        """
        return [
            self._propose_one(
                [x[i] for x in logits], [x[i] for x in offsets], anchors, size, limits
            )
            for i, size in enumerate(sizes)
        ]

    def _propose_one(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        anchors: Sequence[Tensor],
        size: Size,
        limits: ProposalLimits,
    ) -> Proposals:
        boxes, scores, levels = [], [], []
        for i, level_logits in enumerate(logits):
            score = level_logits.sigmoid()
            if len(score) > limits.per_level:
                score, best = score.sort(descending=True, stable=True)
                score, best = score[: limits.per_level], best[: limits.per_level]
            else:
                best = torch.arange(len(score), device=score.device)
            boxes.append(self.coder.decode(anchors[i][best], offsets[i][best], size))
            scores.append(score)
            levels.append(torch.full_like(best, i))
        box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        has_area = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
        box, score, level = box[has_area], score[has_area], level[has_area]
        kept = grouped_nms(box, score, level, NMS_IOU)[: limits.kept]
        return Proposals(box[kept], score[kept])

    def losses(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
        valid: Sequence[Tensor],
        objects: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Compare predictions with the objects.

        Args:
            logits: As `forward` returns them.
            offsets: As `forward` returns them.
            anchors: Anchors per level.
            sizes: Height and width of each image without padding.
            valid: Anchors of each image's own cells, bool ``(anchors of all levels,)``.
            objects: Boxes of each image, ``(G, 4)``.

        Returns:
            ``loss_rpn_cls`` and ``loss_rpn_bbox``, each with one value per level.
        """
        every_anchor = torch.cat(list(anchors))
        all_logits, all_offsets = torch.cat(list(logits), 1), torch.cat(list(offsets), 1)
        weight = torch.zeros_like(all_logits)  # 1 where the score is trained
        wanted = torch.zeros_like(all_logits)  # 1 where there is an object
        wanted_offsets = all_offsets.detach().clone()  # equal, so without loss, elsewhere
        number = 0
        for i, boxes in enumerate(objects):
            usable = self._usable(every_anchor, valid[i], sizes[i])
            sample = self.sampler(self.assigner(every_anchor[usable], boxes))
            positive, negative = usable[sample.positive], usable[sample.negative]
            weight[i, positive] = weight[i, negative] = 1
            wanted[i, positive] = 1
            wanted_offsets[i, positive] = self.coder.encode(
                every_anchor[positive], boxes[sample.objects]
            )
            number += max(len(positive), 1) + max(len(negative), 1)
        score_loss = weight * F.binary_cross_entropy_with_logits(
            all_logits, wanted, reduction="none"
        )
        counts = [len(level) for level in anchors]
        return {
            "loss_rpn_cls": torch.stack(
                [average(level.sum(), number) for level in score_loss.split(counts, dim=1)]
            ),
            "loss_rpn_bbox": torch.stack(
                [
                    self.box_loss(predicted, target, number)
                    for predicted, target in zip(
                        all_offsets.split(counts, dim=1),
                        wanted_offsets.split(counts, dim=1),
                        strict=True,
                    )
                ]
            ),
        }

    def _usable(self, anchors: Tensor, valid: Tensor, size: Size) -> Tensor:
        """Indices of the anchors that may be trained in an image."""
        if self.inside_only:
            height, width = size
            x1, y1, x2, y2 = anchors.unbind(dim=1)
            valid = valid & (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
        return valid.nonzero().flatten()


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """``(N, A * values, H, W) -> (N, H * W * A, values)``, at least float32."""
    return full_precision(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
