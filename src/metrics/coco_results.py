"""Detections as COCO results: the list of dictionaries that the COCO tools read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from src.types import Detections, ImageId

Result = dict[str, Any]


def only_finite(found: Detections) -> Detections:
    """Drop detections whose box, score or mask is not finite.

    The IoU of such a box is NaN, which the COCO tools would take for a match with any annotation.
    """
    kept = torch.isfinite(found.boxes).all(1) & torch.isfinite(found.scores)
    masks = found.masks
    if masks is not None and masks.is_floating_point():
        kept &= torch.isfinite(masks).flatten(1).all(1)
    if bool(kept.all()):
        return found
    return Detections(
        found.boxes[kept],
        found.scores[kept],
        found.labels[kept],
        None if masks is None else masks[kept],
    )


def to_results(found: Detections, image_id: ImageId) -> list[Result]:
    """Turn the detections of one image into COCO results.

    Args:
        found: Detections of the image.
        image_id: Id of the image in its annotation file.

    Returns:
        One dictionary per finite detection, in the same order: ``image_id``,
        ``category_id`` (the class index; see `with_category_ids`), ``bbox`` as ``x, y, width,
        height``, ``score`` and, if there are masks, ``segmentation`` as compressed run-length
        code.
    """
    return PackedResults.of(found).unpacked(image_id)


@dataclass(frozen=True)
class PackedResults:
    """COCO results of one image as arrays.

    A box needs 48 bytes; as a dictionary it needs about 460, which is 2.7 GB for 300 detections in
    each of 20,000 images, on every rank.

    Attributes:
        boxes: ``x, y, width, height``, ``(D, 4)``.
        scores: ``(D,)``.
        labels: Class indices, ``(D,)``.
        size: Height and width of the masks.
        codes: Compressed run-length code of each mask; ``None`` for a detector without masks.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    size: tuple[int, int] = (0, 0)
    codes: list[str] | None = None

    @classmethod
    def of(cls, found: Detections) -> PackedResults:
        """Pack the finite detections of an image."""
        found = only_finite(found)
        boxes = found.boxes.double().cpu().numpy()
        corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        scores, labels = found.scores.double().cpu().numpy(), found.labels.cpu().numpy()
        if found.masks is None:
            return cls(corner_and_size, scores, labels)
        height, width = found.masks.shape[1:]
        codes = [code["counts"] for code in encode_masks(found.masks)]
        return cls(corner_and_size, scores, labels, (height, width), codes)

    def unpacked(self, image_id: ImageId) -> list[Result]:
        """The results as dictionaries, see `to_results`."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        results: list[Result] = [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for box, score, label in rows
        ]
        if self.codes is not None:
            for result, counts in zip(results, self.codes, strict=True):
                result["segmentation"] = {"size": list(self.size), "counts": counts}
        return results


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Run-length codes of masks ``(N, H, W)``; one mask at a time, to use little memory."""
    codes = []
    for mask in masks:
        column_major = np.asfortranarray(mask.cpu().numpy().astype(np.uint8))
        code = coco_mask.encode(column_major)
        codes.append({"size": list(code["size"]), "counts": code["counts"].decode("ascii")})
    return codes


def with_category_ids(results: list[Result], category_ids: list[int]) -> list[Result]:
    """Copy results with the class index replaced by the category id of the annotation file."""
    return [{**result, "category_id": category_ids[result["category_id"]]} for result in results]


def as_annotations(results: list[Result], category_ids: list[int]) -> list[Result]:
    """COCO results as the ``annotations`` of a COCO file, which ``pycocotools.coco.COCO`` loads.

    Args:
        results: With class indices.
        category_ids: Category id of each class.

    Returns:
        Copies with ``category_id`` of the annotation file, and with ``id`` (from 1), ``area`` (of
        the mask, else of the box, in pixels) and ``iscrowd`` (0).
    """
    annotations = with_category_ids(results, category_ids)
    for number, annotation in enumerate(annotations, start=1):
        annotation |= {"id": number, "area": _area(annotation), "iscrowd": 0}
    return annotations


def _area(result: Result) -> float:
    """Area of the mask of a result, or of its box if there is none, in pixels."""
    if "segmentation" in result:
        return float(coco_mask.area(result["segmentation"]))
    _, _, width, height = result["bbox"]
    return float(width * height)


def annotated_results(annotations: list[dict[str, Any]], size: tuple[int, int]) -> list[Result]:
    """COCO annotations of one image as results with score 1, for drawing.

    Args:
        annotations: As in the annotation file; ``category_id`` is the class index.
        size: Height and width of the image.
    """
    results: list[Result] = []
    for annotation in annotations:
        result = {name: annotation[name] for name in ("category_id", "bbox")} | {"score": 1.0}
        if shape := annotation.get("segmentation"):
            codes = coco_mask.frPyObjects(shape, *size) if _is_plain(shape) else [shape]
            whole = codes if isinstance(codes, dict) else coco_mask.merge(codes)
            result["segmentation"] = whole
        results.append(result)
    # Masks are drawn for all annotations or for none.
    if not all("segmentation" in result for result in results):
        for result in results:
            result.pop("segmentation", None)
    return results


def _is_plain(shape: Any) -> bool:
    """Whether a segmentation is polygons or an uncompressed run-length code."""
    return isinstance(shape, list) or isinstance(shape["counts"], list)


def decode_masks(results: list[Result]) -> list[NDArray[np.bool_]]:
    """Masks of COCO results, each bool ``(H, W)``; empty for a detector without masks."""
    return [
        coco_mask.decode(result["segmentation"]).astype(bool)
        for result in results
        if "segmentation" in result
    ]
