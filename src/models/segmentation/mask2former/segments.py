"""Segments of an image from the queries of Mask2Former: panoptic segments and instances.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022 (arXiv 2112.01527), with the thresholds of its COCO models: a query counts above a probability
of 0.8, a segment must keep 0.8 of its mask, and the 100 best pairs of query and class are instances
(mmdetection 2.28, which the official InternImage models are built on, has the same values).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from src.models.layers.precision import full_precision
from src.models.segmentation.head import resize
from src.types import Detections, PanopticSegments, Size

OBJECT_THRESHOLD = 0.8
OVERLAP_THRESHOLD = 0.8
MAX_INSTANCES = 100


def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: tuple[Size, Size],
    things: Collection[int],
    object_threshold: float = OBJECT_THRESHOLD,
    overlap_threshold: float = OVERLAP_THRESHOLD,
) -> PanopticSegments:
    """Give each pixel to at most one query.

    A pixel belongs to the query with the largest product of class and mask probability, if it is
    inside its mask (probability of at least 0.5).

    Args:
        class_logits: Scores of the queries of an image, ``(Q, K + 1)``, no object last.
        mask_logits: Their masks, ``(Q, h, w)``.
        sizes: Size of the network's input and of the image, to which masks are resized in turn.
        things: Classes that are counted; all segments of another class are one.
        object_threshold: Probability that the class of a query must exceed.
        overlap_threshold: Smallest ratio of the pixels in which a query is the most probable one,
            also outside of its mask, to the pixels of its mask.
    """
    probabilities, labels = full_precision(class_logits).softmax(-1).max(-1)
    nothing = class_logits.shape[-1] - 1
    kept = ((labels != nothing) & (probabilities > object_threshold)).nonzero()[:, 0]
    ids = torch.zeros(sizes[1], dtype=torch.int32, device=mask_logits.device)
    found = PanopticSegments(ids, [], [])
    if not len(kept):
        return found
    masks = _at_size(mask_logits[kept], sizes).sigmoid()
    owner = (masks * probabilities[kept, None, None]).argmax(0)
    number_of: dict[int, int] = {}  # of the segment of a class that is not counted
    for index, query in enumerate(kept.tolist()):
        inside, owned = masks[index] >= 0.5, owner == index
        own = inside & owned
        if not bool(own.any()) or int(owned.sum()) < overlap_threshold * int(inside.sum()):
            continue
        label, score = int(labels[query]), float(probabilities[query])
        number = number_of.get(label, len(found.labels) + 1)
        if number > len(found.labels):
            found.labels.append(label)
            found.scores.append(score)
        ids[own] = number
        if label not in things:
            number_of[label] = number
    return found


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: tuple[Size, Size],
    things: Collection[int],
    max_instances: int = MAX_INSTANCES,
) -> Detections:
    """The best pairs of query and class, as detections with masks.

    The score is the probability of the class times the mean probability of the pixels in the mask.

    Args:
        class_logits: As for `panoptic_segments`.
        mask_logits: As for `panoptic_segments`.
        sizes: As for `panoptic_segments`.
        things: Classes that are counted; pairs with other classes are left out.
        max_instances: Number of pairs of all classes.
    """
    probabilities = full_precision(class_logits).softmax(-1)[:, :-1]
    count = min(max_instances, probabilities.numel())
    scores, pairs = probabilities.flatten().topk(count)
    queries, labels = pairs // probabilities.shape[1], pairs % probabilities.shape[1]
    counted = torch.tensor([label in things for label in labels.tolist()], device=labels.device)
    scores, queries, labels = scores[counted], queries[counted], labels[counted]
    different, row = queries.unique(return_inverse=True)
    logits = _at_size(mask_logits[different], sizes)
    masks = logits > 0
    area = masks.flatten(1).sum(1)
    quality = (logits.sigmoid() * masks).flatten(1).sum(1) / area.clamp(min=1)
    scores = scores * quality[row]
    order = scores.argsort(descending=True, stable=True)
    order = order[area[row][order] > 0]
    masks = masks[row[order]]
    boxes = masks_to_boxes(masks).to(scores.dtype)
    boxes[:, 2:] += 1  # from the last pixel to its far side
    return Detections(boxes, scores[order], labels[order], masks)


def _at_size(logits: Tensor, sizes: tuple[Size, Size]) -> Tensor:
    """Mask logits ``(Q, h, w)`` at the size of the image, ``(Q, H, W)``."""
    resized = full_precision(logits)[:, None]  # queries as batch, which may be empty
    for size in sizes:
        resized = resize(resized, size)
    return resized[:, 0]
