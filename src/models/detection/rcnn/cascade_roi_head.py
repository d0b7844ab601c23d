"""Second stage of Cascade Mask R-CNN: three box heads, each improving the boxes of the one before.

Source: Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018 (arXiv 1712.00726); details of the official
InternImage detectors: class-specific offsets, GIoU loss on decoded boxes, one mask head per stage,
class logits averaged over the stages before the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.losses.detection import giou_loss
from src.models.detection.boxes import BoxCoder, resize_factor
from src.models.detection.rcnn import box_head
from src.models.detection.rcnn.box_head import BoxHead, offsets_of_class
from src.models.detection.rcnn.mask_head import MaskHead
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.models.detection.rcnn.roi_head import (
    DetectionLimits,
    RegionSample,
    RegionSampler,
    add_masks,
    class_losses,
    mask_head_loss,
    select_detections,
    wanted_boxes,
)
from src.types import Detections, DetectionTarget, Size

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
STAGE_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)
GIOU_WEIGHT = 10.0


class CascadeRoIHead(nn.Module):
    """Box and mask heads of three stages with their losses and their detections.

    Args:
        bbox_heads: One box head per stage.
        mask_heads: One mask head per stage.
        regions: Per stage, chooses proposals for training.
        limits: Which boxes are detections.
    """

    def __init__(
        self,
        bbox_heads: Sequence[BoxHead],
        mask_heads: Sequence[MaskHead],
        regions: Sequence[RegionSampler],
        limits: DetectionLimits,
    ) -> None:
        super().__init__()
        self.bbox_head = nn.ModuleList(bbox_heads)
        self.mask_head = nn.ModuleList(mask_heads)
        self.regions = tuple(regions)
        self.limits = limits
        self.coders = tuple(BoxCoder(stds) for stds in STAGE_STDS)

    # ---------------------------------------------------------------- training

    def losses(
        self,
        pyramid: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[DetectionTarget],
        sizes: Sequence[Size],
    ) -> dict[str, Tensor]:
        """Losses of the proposals of a batch.

        Args:
            pyramid: Maps ``p2..p6``.
            proposals: Boxes of each image, ``(N, 4)``.
            targets: Objects of each image.
            sizes: Height and width of each image without padding.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_mask``, each times the weight of its stage, and
            ``acc`` (percent), all with the prefix ``s0.``, ``s1.``, ``s2.``.
        """
        losses: dict[str, Tensor] = {}
        for stage, weight in enumerate(STAGE_WEIGHTS):
            samples = [
                self.regions[stage](box, t) for box, t in zip(proposals, targets, strict=True)
            ]
            logits, offsets = self._predict(stage, pyramid, [s.boxes for s in samples])
            stage_losses = self._box_losses(stage, samples, targets, logits, offsets)
            stage_losses["loss_mask"] = mask_head_loss(
                self._mask_head(stage), pyramid, samples, targets
            )
            for name, value in stage_losses.items():
                losses[f"s{stage}.{name}"] = value * weight if "loss" in name else value
            proposals = self._refine_samples(stage, samples, logits, offsets, sizes)
        return losses

    def _box_losses(
        self,
        stage: int,
        samples: Sequence[RegionSample],
        targets: Sequence[DetectionTarget],
        logits: Tensor,
        offsets: Tensor,
    ) -> dict[str, Tensor]:
        labels = torch.cat([s.labels for s in samples])
        positive = labels < self._box_head(stage).num_classes
        predicted = self.coders[stage].decode(
            torch.cat([s.positive for s in samples]),
            offsets_of_class(offsets[positive], labels[positive]),
        )
        loss = giou_loss(predicted, wanted_boxes(samples, targets), len(labels))
        return {**class_losses(logits, labels), "loss_bbox": GIOU_WEIGHT * loss}

    @torch.no_grad()
    def _refine_samples(
        self,
        stage: int,
        samples: Sequence[RegionSample],
        logits: Tensor,
        offsets: Tensor,
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """Proposals of the next stage: the improved samples without the objects themselves.

        Positive samples are improved as their true class, the others as their most likely one.
        """
        counts = [len(s.boxes) for s in samples]
        refined = []
        for sample, logit, offset, size in zip(
            samples, logits.split(counts), offsets.split(counts), sizes, strict=True
        ):
            is_background = sample.labels == self._box_head(stage).num_classes
            labels = torch.where(is_background, logit[:, :-1].argmax(dim=1), sample.labels)
            boxes = self._refine(stage, sample.boxes, labels, offset, size)
            refined.append(boxes[~sample.is_object])
        return refined

    # -------------------------------------------------------------- evaluation

    def detect(
        self,
        pyramid: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[Size],
        original_sizes: Sequence[Size],
    ) -> list[Detections]:
        """Detections of a batch.

        Args:
            pyramid: Maps ``p2..p6``.
            proposals: Boxes of each image, ``(N, 4)``.
            sizes: Height and width of each image without padding.
            original_sizes: Height and width of each image before it was resized.

        Returns:
            Detections of each image in its original size, best first.
        """
        boxes, counts = list(proposals), [len(box) for box in proposals]
        last, all_logits = len(self.bbox_head) - 1, []
        for stage in range(len(self.bbox_head)):
            stage_logits, stage_offsets = self._predict(stage, pyramid, boxes)
            all_logits.append(stage_logits)
            logits, offsets = stage_logits.split(counts), stage_offsets.split(counts)
            if stage < last:
                boxes = [
                    self._refine(stage, box, logit[:, :-1].argmax(dim=1), offset, size)
                    for box, logit, offset, size in zip(boxes, logits, offsets, sizes, strict=True)
                ]
        scores = torch.stack(all_logits).mean(dim=0).softmax(dim=1).split(counts)
        found = [
            select_detections(
                self.coders[last].decode(box, offset, size),
                score,
                resize_factor(size, original, box),
                self.limits,
            )
            for box, score, offset, size, original in zip(
                boxes, scores, offsets, sizes, original_sizes, strict=True
            )
        ]
        heads = [self._mask_head(stage) for stage in range(len(self.mask_head))]
        return add_masks(found, heads, pyramid, sizes, original_sizes, self.limits.mask)

    # ------------------------------------------------------------------- parts

    def _predict(
        self, stage: int, pyramid: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        features = align_on_pyramid(pyramid, boxes_with_image(boxes), box_head.ROI_SIDE)
        logits, offsets = self._box_head(stage)(features)
        return logits, offsets

    def _refine(
        self, stage: int, boxes: Tensor, labels: Tensor, offsets: Tensor, size: Size
    ) -> Tensor:
        """Improve boxes ``(R, 4)`` with the offsets of one class each, clipped to the image."""
        return self.coders[stage].decode(boxes, offsets_of_class(offsets, labels), size)

    def _box_head(self, stage: int) -> BoxHead:
        head = self.bbox_head[stage]
        assert isinstance(head, BoxHead)
        return head

    def _mask_head(self, stage: int) -> MaskHead:
        head = self.mask_head[stage]
        assert isinstance(head, MaskHead)
        return head
