"""Second stage of a two-stage detector: class, box and mask of every proposal.

`RoIHead` computes losses and detections for any number of stages, each of which refines the boxes
of the one before. Mask R-CNN has one stage (`StandardRoIHead`), Cascade Mask R-CNN three
(``cascade_roi_head.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.losses.detection import accuracy, average, l1_loss, mask_loss
from src.models.detection.boxes import BoxCoder, resize_factor
from src.models.detection.detector import TrainingOutput
from src.models.detection.rcnn.assigner import RegionSample, RegionSampler
from src.models.detection.rcnn.box_head import BOX_ROI_SIDE, BoxHead, offsets_of_class
from src.models.detection.rcnn.mask_head import (
    MASK_ROI_SIDE,
    MaskHead,
    mask_targets,
    masks_of_class,
)
from src.models.detection.rcnn.postprocess import DetectionLimits, add_masks, select_detections
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.types import Detections, DetectionTarget, Size


class RoIHead(nn.Module):
    """Box and mask heads of all stages, with their losses and their detections.

    A subclass defines `box_loss`, and `loss_prefix` and `loss_weight` where stages differ in them.

    Args:
        bbox_head: `BoxHead`, or a list of one per stage.
        mask_head: `MaskHead`, or a list of one per stage; None predicts boxes only.
        regions: Sampler of proposals for training, one per stage.
        stds: Scale of the box offsets, four numbers per stage; see `BoxCoder`.
        limits: Score and NMS thresholds, and the number of detections.
    """

    def __init__(
        self,
        bbox_head: nn.Module,
        mask_head: nn.Module | None,
        regions: Iterable[RegionSampler],
        stds: Iterable[Sequence[float]],
        limits: DetectionLimits,
    ) -> None:
        super().__init__()
        self.bbox_head = bbox_head
        self.mask_head = mask_head
        self.regions = tuple(regions)
        self.coders = tuple(BoxCoder(values) for values in stds)
        self.limits = limits

    @property
    def box_heads(self) -> list[BoxHead]:
        """The box head of each stage."""
        return cast("list[BoxHead]", _stages(self.bbox_head))

    @property
    def mask_heads(self) -> list[MaskHead]:
        """The mask head of each stage; empty without masks."""
        if self.mask_head is None:
            return []
        return cast("list[MaskHead]", _stages(self.mask_head))

    def box_loss(
        self, stage: int, boxes: Tensor, offsets: Tensor, gt_boxes: Tensor, number: int
    ) -> Tensor:
        """Loss of the boxes of a stage.

        Args:
            stage: Index of the stage.
            boxes: Positive proposals of a batch, ``(P, 4)``.
            offsets: Predicted offsets of their true class, ``(P, 4)``.
            gt_boxes: Their ground-truth boxes, ``(P, 4)``.
            number: Sampled proposals of the batch, which the sum is divided by.
        """
        raise TypeError(f"{type(self).__name__} must define box_loss()")

    def loss_prefix(self, stage: int) -> str:
        """Prefix of the names of the losses and metrics of a stage."""
        return ""

    def loss_weight(self, stage: int) -> float:
        """Weight of the losses of a stage."""
        return 1.0

    # ---------------------------------------------------------------- training

    def losses(
        self,
        pyramid: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[DetectionTarget],
        sizes: Sequence[Size],
    ) -> TrainingOutput:
        """Losses of the proposals of a batch.

        Args:
            pyramid: Feature maps ``p2..p6``.
            proposals: Boxes of each image, ``(N, 4)``.
            targets: Ground truth of each image.
            sizes: Height and width of each image without padding.

        Returns:
            Of each stage, with its prefix: weighted ``loss_cls``, ``loss_bbox`` and, if there are
            mask heads, ``loss_mask``, and the metric ``acc``, the fraction of proposals with the
            right class.
        """
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        mask_heads, last = self.mask_heads, len(self.box_heads) - 1
        for stage in range(last + 1):
            samples = [
                self.regions[stage](box, t) for box, t in zip(proposals, targets, strict=True)
            ]
            logits, offsets = self._predict(stage, pyramid, [s.boxes for s in samples])
            labels = torch.cat([s.labels for s in samples])
            stage_losses = {
                "loss_cls": class_loss(logits, labels),
                "loss_bbox": self._box_loss(stage, samples, targets, offsets, labels),
            }
            if mask_heads:
                stage_losses["loss_mask"] = mask_head_loss(
                    mask_heads[stage], pyramid, samples, targets
                )
            prefix, weight = self.loss_prefix(stage), self.loss_weight(stage)
            losses |= {f"{prefix}{name}": value * weight for name, value in stage_losses.items()}
            metrics[f"{prefix}acc"] = accuracy(logits.detach(), labels)
            if stage < last:
                proposals = self._refine_samples(stage, samples, logits, offsets, sizes)
        return TrainingOutput(losses, metrics)

    def _box_loss(
        self,
        stage: int,
        samples: Sequence[RegionSample],
        targets: Sequence[DetectionTarget],
        offsets: Tensor,
        labels: Tensor,
    ) -> Tensor:
        positive = labels < self.box_heads[stage].num_classes
        boxes = torch.cat([s.positive for s in samples])
        predicted = offsets_of_class(offsets[positive], labels[positive])
        return self.box_loss(stage, boxes, predicted, matched_boxes(samples, targets), len(labels))

    @torch.no_grad()
    def _refine_samples(
        self,
        stage: int,
        samples: Sequence[RegionSample],
        logits: Tensor,
        offsets: Tensor,
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """Proposals of the next stage: the refined samples without the ground-truth boxes.

        Positive samples are refined as their true class, the others as their most likely one.
        """
        counts = [len(s.boxes) for s in samples]
        refined = []
        for sample, logit, offset, size in zip(
            samples, logits.split(counts), offsets.split(counts), sizes, strict=True
        ):
            is_background = sample.labels == self.box_heads[stage].num_classes
            labels = torch.where(is_background, logit[:, :-1].argmax(dim=1), sample.labels)
            boxes = self._refine(stage, sample.boxes, labels, offset, size)
            refined.append(boxes[~sample.is_gt])
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
            pyramid: Feature maps ``p2..p6``.
            proposals: Boxes of each image, ``(N, 4)``.
            sizes: Height and width of each image without padding.
            original_sizes: Height and width of each image before it was resized.

        Returns:
            Detections of each image in its original size, best first.
        """
        boxes, counts = list(proposals), [len(box) for box in proposals]
        last, all_logits = len(self.box_heads) - 1, []
        for stage in range(last + 1):
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
        if self.mask_head is None:
            return [Detections(*of_image) for of_image in found]
        return add_masks(found, self.mask_heads, pyramid, sizes, original_sizes, self.limits.mask)

    # ------------------------------------------------------------------- parts

    def dense_outputs(self, level: Tensor, batch_size: int) -> list[Tensor]:
        """Outputs of all heads on the largest number of regions; see `Detector.dense_outputs`.

        Args:
            level: Feature map that the placeholder RoI features are connected to in the autograd
                graph, ``(N, C, H, W)``.
            batch_size: Images.
        """
        sampler = self.regions[0].sampler
        number = batch_size * sampler.number
        positive = int(number * sampler.positive_fraction)
        outputs: list[Tensor] = []
        for box_head in self.box_heads:
            outputs += box_head(_region_features(level, number, BOX_ROI_SIDE))
        for mask_head in self.mask_heads:
            outputs.append(mask_head(_region_features(level, positive, MASK_ROI_SIDE)))
        return outputs

    def _predict(
        self, stage: int, pyramid: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        features = align_on_pyramid(pyramid, boxes_with_image(boxes), BOX_ROI_SIDE)
        logits, offsets = self.box_heads[stage](features)
        return logits, offsets

    def _refine(
        self, stage: int, boxes: Tensor, labels: Tensor, offsets: Tensor, size: Size
    ) -> Tensor:
        """Refine boxes ``(R, 4)`` with the offsets of one class each, clipped to the image."""
        return self.coders[stage].decode(boxes, offsets_of_class(offsets, labels), size)


class StandardRoIHead(RoIHead):
    """One stage, with an L1 loss between box offsets: Mask R-CNN.

    Args:
        bbox_head: Predicts class and box.
        mask_head: Predicts masks.
        regions: Samples proposals for training.
        limits: Score and NMS thresholds, and the number of detections.
    """

    def __init__(
        self,
        bbox_head: BoxHead,
        mask_head: MaskHead,
        regions: RegionSampler,
        limits: DetectionLimits,
    ) -> None:
        super().__init__(bbox_head, mask_head, [regions], [(0.1, 0.1, 0.2, 0.2)], limits)

    def box_loss(
        self, stage: int, boxes: Tensor, offsets: Tensor, gt_boxes: Tensor, number: int
    ) -> Tensor:
        """See `RoIHead.box_loss`."""
        return l1_loss(offsets, self.coders[stage].encode(boxes, gt_boxes), number)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over all sampled proposals of a batch."""
    total = F.cross_entropy(logits, labels, reduction="sum")
    return average(total, max(len(labels), 1))


def matched_boxes(samples: Sequence[RegionSample], targets: Sequence[DetectionTarget]) -> Tensor:
    """Ground-truth box of every positive proposal of a batch, ``(P, 4)``."""
    return torch.cat(
        [t["boxes"].to(s.boxes)[s.matched_gt] for s, t in zip(samples, targets, strict=True)]
    )


def mask_head_loss(
    head: MaskHead,
    pyramid: Sequence[Tensor],
    samples: Sequence[RegionSample],
    targets: Sequence[DetectionTarget],
) -> Tensor:
    """Mask loss of the positive proposals of a batch."""
    boxes = [s.positive for s in samples]
    labels = torch.cat([s.positive_labels for s in samples])
    features = align_on_pyramid(pyramid, boxes_with_image(boxes), MASK_ROI_SIDE)
    logits = masks_of_class(head(features), labels)
    gt_masks = mask_targets(boxes, [s.matched_gt for s in samples], [t["masks"] for t in targets])
    return mask_loss(logits, gt_masks)


def _region_features(level: Tensor, number: int, side: int) -> Tensor:
    """Placeholder RoI features, ``(number, C, side, side)``, for memory planning.

    They are connected to the feature map ``level`` in the autograd graph.
    """
    return level.new_zeros(number, level.shape[1], side, side) + level.mean()


def _stages(heads: nn.Module) -> list[nn.Module]:
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]
