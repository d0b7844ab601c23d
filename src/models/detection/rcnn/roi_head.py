"""Second stage of Mask R-CNN: class, exact box and mask of every proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.losses.detection import accuracy, average, l1_loss, mask_loss
from src.models.detection.boxes import BoxCoder, resize_factor
from src.models.detection.nms import grouped_nms
from src.models.detection.rcnn import box_head, mask_head
from src.models.detection.rcnn.assigner import MaxIoUAssigner, RandomSampler
from src.models.detection.rcnn.box_head import BoxHead, offsets_of_class
from src.models.detection.rcnn.mask_head import MaskHead, mask_targets, masks_of_class
from src.models.detection.rcnn.mask_paste import paste_masks
from src.models.detection.rcnn.roi_align import align_on_pyramid, boxes_with_image
from src.types import Detections, DetectionTarget, Size


@dataclass(frozen=True)
class DetectionLimits:
    """Which boxes count as detections.

    Attributes:
        score: Probability that a box must exceed.
        nms_iou: Boxes of one class that overlap more than this are duplicates.
        per_image: Best boxes that are kept.
        mask: Probability from which on a pixel belongs to the object.
    """

    score: float = 0.05
    nms_iou: float = 0.5
    per_image: int = 100
    mask: float = 0.5


@dataclass
class RegionSample:
    """The proposals of one image that are trained on: positive first.

    Attributes:
        boxes: ``(R, 4)``.
        labels: Class, or number of classes for background, ``(R,)``.
        objects: Index of the object of each positive box, ``(P,)``.
        is_object: Which boxes are the objects themselves, bool ``(R,)``.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    is_object: Tensor

    @property
    def positive(self) -> Tensor:
        """Boxes with an object, ``(P, 4)``."""
        return self.boxes[: len(self.objects)]

    @property
    def positive_labels(self) -> Tensor:
        """Their classes, ``(P,)``."""
        return self.labels[: len(self.objects)]


class RegionSampler:
    """Choose which proposals are trained on; the objects themselves are proposals too.

    Args:
        num_classes: Classes without background; this number labels the background.
        iou: From this overlap on a proposal is an object, below it background.
        low_quality: Whether the best proposal of an object is positive from ``iou`` on even if
            another object overlaps it more.
        number: Proposals per image.
        positive_fraction: Largest share of positive ones.
    """

    def __init__(
        self,
        num_classes: int,
        iou: float,
        *,
        low_quality: bool,
        number: int = 512,
        positive_fraction: float = 0.25,
    ) -> None:
        self.num_classes = num_classes
        self.assigner = MaxIoUAssigner(iou, iou, low_quality_iou=iou if low_quality else None)
        self.sampler = RandomSampler(number, positive_fraction)

    def __call__(self, proposals: Tensor, target: DetectionTarget) -> RegionSample:
        """Sample from the proposals ``(N, 4)`` and the objects of one image."""
        objects, labels = target["boxes"].to(proposals), target["labels"]
        itself = torch.arange(1, len(objects) + 1, device=labels.device)
        assigned = torch.cat([itself, self.assigner(proposals, objects)])
        sample = self.sampler(assigned)
        chosen = torch.cat([sample.positive, sample.negative])
        background = labels.new_full((len(sample.negative),), self.num_classes)
        return RegionSample(
            boxes=torch.cat([objects, proposals])[chosen],
            labels=torch.cat([labels[sample.objects], background]),
            objects=sample.objects,
            is_object=chosen < len(objects),
        )


class RoIHead(nn.Module):
    """Box head and mask head of Mask R-CNN with their losses and their detections.

    Args:
        bbox_head: Predicts class and box.
        mask_head: Predicts masks.
        regions: Chooses proposals for training.
        limits: Which boxes are detections.
    """

    def __init__(
        self,
        bbox_head: BoxHead,
        mask_head: MaskHead,
        regions: RegionSampler,
        limits: DetectionLimits,
    ) -> None:
        super().__init__()
        self.bbox_head = bbox_head
        self.mask_head = mask_head
        self.regions = regions
        self.limits = limits
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))

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
            ``loss_cls``, ``loss_bbox``, ``loss_mask`` and ``acc`` (percent of right classes).
        """
        samples = [self.regions(box, t) for box, t in zip(proposals, targets, strict=True)]
        rois = boxes_with_image([s.boxes for s in samples])
        logits, offsets = self.bbox_head(align_on_pyramid(pyramid, rois, box_head.ROI_SIDE))
        return {
            **self._box_losses(samples, targets, logits, offsets),
            "loss_mask": mask_head_loss(self.mask_head, pyramid, samples, targets),
        }

    def _box_losses(
        self,
        samples: Sequence[RegionSample],
        targets: Sequence[DetectionTarget],
        logits: Tensor,
        offsets: Tensor,
    ) -> dict[str, Tensor]:
        labels = torch.cat([s.labels for s in samples])
        positive = labels < self.bbox_head.num_classes
        boxes, objects = torch.cat([s.positive for s in samples]), wanted_boxes(samples, targets)
        predicted = offsets_of_class(offsets[positive], labels[positive])
        loss = l1_loss(predicted, self.coder.encode(boxes, objects), len(labels))
        return {**class_losses(logits, labels), "loss_bbox": loss}

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
        rois = boxes_with_image(proposals)
        logits, offsets = self.bbox_head(align_on_pyramid(pyramid, rois, box_head.ROI_SIDE))
        counts = [len(boxes) for boxes in proposals]
        found = [
            select_detections(
                self.coder.decode(boxes, offset, size),
                logit.softmax(dim=1),
                resize_factor(size, original, boxes),
                self.limits,
            )
            for boxes, logit, offset, size, original in zip(
                proposals,
                logits.split(counts),
                offsets.split(counts),
                sizes,
                original_sizes,
                strict=True,
            )
        ]
        return add_masks(found, [self.mask_head], pyramid, sizes, original_sizes, self.limits.mask)


def class_losses(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross entropy and accuracy over all sampled proposals of a batch."""
    total = F.cross_entropy(logits, labels, reduction="sum")
    return {
        "loss_cls": average(total, max(len(labels), 1)),
        "acc": accuracy(logits.detach(), labels),
    }


def wanted_boxes(samples: Sequence[RegionSample], targets: Sequence[DetectionTarget]) -> Tensor:
    """Box of the object of every positive proposal of a batch, ``(P, 4)``."""
    return torch.cat(
        [t["boxes"].to(s.boxes)[s.objects] for s, t in zip(samples, targets, strict=True)]
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
    features = align_on_pyramid(pyramid, boxes_with_image(boxes), mask_head.ROI_SIDE)
    logits = masks_of_class(head(features), labels)
    wanted = mask_targets(boxes, [s.objects for s in samples], [t["masks"] for t in targets])
    return mask_loss(logits, wanted)


def select_detections(
    boxes: Tensor, scores: Tensor, factor: Tensor, limits: DetectionLimits
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep confident boxes without duplicates.

    Args:
        boxes: One box per proposal and class in the network's input, ``(R, C, 4)``.
        scores: Probabilities, background last, ``(R, C + 1)``.
        factor: See `resize_factor`.
        limits: What to keep.

    Returns:
        Boxes ``(D, 4)`` in the original image, scores ``(D,)`` and classes ``(D,)``, best first.
    """
    confident = scores[:, :-1] > limits.score
    labels = confident.nonzero()[:, 1]
    chosen, score = boxes[confident] / factor, scores[:, :-1][confident]
    kept = grouped_nms(chosen, score, labels, limits.nms_iou)[: limits.per_image]
    return chosen[kept], score[kept], labels[kept]


def add_masks(
    found: Sequence[tuple[Tensor, Tensor, Tensor]],
    heads: Sequence[MaskHead],
    pyramid: Sequence[Tensor],
    sizes: Sequence[Size],
    original_sizes: Sequence[Size],
    threshold: float,
) -> list[Detections]:
    """Predict the masks of detected boxes; several heads are averaged.

    Args:
        found: Boxes, scores and classes of each image, as `select_detections` returns them.
        heads: Mask heads.
        pyramid: Maps ``p2..p6``.
        sizes: Height and width of each image without padding.
        original_sizes: Height and width of each image before it was resized.
        threshold: Pixels from this probability on belong to the object.

    Returns:
        Detections of each image.
    """
    scaled = [
        boxes * resize_factor(size, original, boxes)
        for (boxes, _, _), size, original in zip(found, sizes, original_sizes, strict=True)
    ]
    features = align_on_pyramid(pyramid, boxes_with_image(scaled), mask_head.ROI_SIDE)
    labels = torch.cat([label for _, _, label in found])
    masks = torch.stack([masks_of_class(head(features), labels).sigmoid() for head in heads])
    per_image = masks.mean(dim=0).split([len(boxes) for boxes in scaled])
    return [
        Detections(boxes, scores, labels, paste_masks(mask, boxes, original, threshold))
        for (boxes, scores, labels), mask, original in zip(
            found, per_image, original_sizes, strict=True
        )
    ]
