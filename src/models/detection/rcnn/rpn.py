"""Region proposal network: class-agnostic boxes with objectness scores.

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
SIZE_DIVISOR = 32
"""Images are padded to a multiple of this many pixels, the stride of the coarsest stage."""


@dataclass(frozen=True)
class ProposalLimits:
    """Numbers of boxes and thresholds that select proposals.

    Attributes:
        pre_nms_top_n: Best boxes per level before NMS.
        post_nms_top_n: Best boxes of all levels after NMS.
    """

    pre_nms_top_n: int = 1000
    post_nms_top_n: int = 1000


@dataclass
class Proposals:
    """Boxes ``(N, 4)`` in pixels of the network's input and their scores ``(N,)``, best first."""

    boxes: Tensor
    scores: Tensor


@dataclass
class RPNOutput:
    """Predictions at every anchor of a batch, one entry per level, finest first.

    Attributes:
        logits: Objectness, ``(N, H_i * W_i * A)``.
        offsets: Box offsets, ``(N, H_i * W_i * A, 4)``.
        anchors: ``x1, y1, x2, y2`` in pixels of the network's input, ``(H_i * W_i * A, 4)``.
        cells: Height and width of the feature map.
    """

    logits: list[Tensor]
    offsets: list[Tensor]
    anchors: list[Tensor]
    cells: list[Size]

    def of_image(self, i: int) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and offsets of one image, per level."""
        return [x[i] for x in self.logits], [x[i] for x in self.offsets]


class RPNHead(nn.Module):
    """One 3x3 convolution, then a score and a box offset for every anchor of every cell.

    Args:
        channels: Width of the feature maps.
        anchors: The anchors.
        train_limits: Proposals in training.
        test_limits: Proposals in evaluation.
        box_loss: Loss between predicted and ground-truth offsets.
        batch_size_per_image: Anchors per image in the loss, at most half of them positive.
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
        batch_size_per_image: int = 256,
        inside_only: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.train_limits, self.test_limits = train_limits, test_limits
        self.box_loss, self.inside_only = box_loss, inside_only
        self.coder = BoxCoder()
        self.assigner = MaxIoUAssigner(0.7, 0.3, low_quality_iou=0.3)
        self.sampler = RandomSampler(batch_size_per_image, 0.5)
        self.rpn_conv = Conv2d(channels, channels, 3, init=0.01)
        self.rpn_cls = Conv2d(channels, anchors.num_per_cell, 1, init=0.01)
        self.rpn_reg = Conv2d(channels, anchors.num_per_cell * 4, 1, init=0.01)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict at every anchor.

        Args:
            pyramid: Feature maps ``(N, C, H_i, W_i)``.

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

    def predict(self, pyramid: Sequence[Tensor]) -> RPNOutput:
        """Predictions together with their anchors; see `forward`."""
        logits, offsets = self(pyramid)
        cells = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        return RPNOutput(logits, offsets, self.anchors(cells, offsets[0]), cells)

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, sizes: Sequence[Size], limits: ProposalLimits
    ) -> list[Proposals]:
        """Turn predictions into proposals.

        Args:
            output: Result of `predict`.
            sizes: Height and width of each image without padding.
            limits: How many to keep.

        Returns:
            Proposals of each image, clipped to it, after NMS within each level.
        """
        return [
            self._propose_one(*output.of_image(i), output.anchors, size, limits)
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
            if len(score) > limits.pre_nms_top_n:
                score, best = score.sort(descending=True, stable=True)
                score, best = score[: limits.pre_nms_top_n], best[: limits.pre_nms_top_n]
            else:
                best = torch.arange(len(score), device=score.device)
            boxes.append(self.coder.decode(anchors[i][best], offsets[i][best], size))
            scores.append(score)
            levels.append(torch.full_like(best, i))
        box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        has_area = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
        box, score, level = box[has_area], score[has_area], level[has_area]
        kept = grouped_nms(box, score, level, NMS_IOU)[: limits.post_nms_top_n]
        return Proposals(box[kept], score[kept])

    def losses(
        self, output: RPNOutput, sizes: Sequence[Size], gt_boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compare predictions with the ground truth.

        Args:
            output: Result of `predict`.
            sizes: Height and width of each image without padding.
            gt_boxes: Ground-truth boxes of each image, ``(G, 4)``.

        Returns:
            ``loss_rpn_cls`` and ``loss_rpn_bbox``, each with one value per level.
        """
        anchors = torch.cat(output.anchors)
        logits, offsets = torch.cat(output.logits, 1), torch.cat(output.offsets, 1)
        weight = torch.zeros_like(logits)  # 1 where the objectness is trained
        target = torch.zeros_like(logits)  # 1 where there is an object
        target_offsets = offsets.detach().clone()  # no loss except at positive anchors
        number = 0
        for i, boxes in enumerate(gt_boxes):
            trained = self._trained_anchors(anchors, output.cells, sizes[i])
            sample = self.sampler(self.assigner(anchors[trained], boxes))
            positive, negative = trained[sample.positive], trained[sample.negative]
            weight[i, positive] = weight[i, negative] = 1
            target[i, positive] = 1
            target_offsets[i, positive] = self.coder.encode(
                anchors[positive], boxes[sample.matched_gt]
            )
            number += max(len(positive), 1) + max(len(negative), 1)
        cls_loss = weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        counts = [len(level) for level in output.anchors]
        levels = zip(offsets.split(counts, 1), target_offsets.split(counts, 1), strict=True)
        return {
            "loss_rpn_cls": torch.stack(
                [average(level.sum(), number) for level in cls_loss.split(counts, dim=1)]
            ),
            "loss_rpn_bbox": torch.stack([self.box_loss(*pair, number) for pair in levels]),
        }

    def _trained_anchors(self, anchors: Tensor, cells: Sequence[Size], size: Size) -> Tensor:
        """Indices of the anchors that may be trained in an image.

        A batch is as large as its largest image; anchors beyond an image's own padding to a
        multiple of 32 are left out.
        """
        height, width = size
        padded = (
            -(-height // SIZE_DIVISOR) * SIZE_DIVISOR,
            -(-width // SIZE_DIVISOR) * SIZE_DIVISOR,
        )
        usable = torch.cat(self.anchors.valid(cells, padded, anchors.device))
        if self.inside_only:
            x1, y1, x2, y2 = anchors.unbind(dim=1)
            usable = usable & (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
        return usable.nonzero().flatten()


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """``(N, A * values, H, W) -> (N, H * W * A, values)``, at least float32."""
    return full_precision(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
