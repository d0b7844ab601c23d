"""Transforms of the official COCO recipes, with albumentations.

Source: the pipelines of the official InternImage configurations (mmdetection 2.28): a resize that
keeps the aspect ratio, a horizontal flip, and for the long schedules a resize to one of many sizes,
half of the time after a crop. Image, boxes and masks are transformed together.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, Literal

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no query of PyPI at every start

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.data.transforms.segmentation import fit_size, resize

Array = NDArray[Any]
Scale = tuple[int, int]
ScaleMode = Literal["value", "range"]

# The loader's workers use all cores already; OpenCV's threads would compete with them.
cv2.setNumThreads(0)


class NoObjectLeftError(Exception):
    """A crop has no annotation although it must have one."""


class RandomFitResize(A.DualTransform):
    """Resize to fit one of several sizes, or a size between the smallest and the largest.

    Args:
        scales: Largest long and short side in pixels.
        mode: ``value`` takes one of the sizes, ``range`` draws both sides between them.
    """

    def __init__(self, scales: Sequence[Scale], mode: ScaleMode = "value") -> None:
        super().__init__(p=1.0)
        self.scales = [(max(scale), min(scale)) for scale in scales]
        self.mode = mode

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the size of the result."""
        rng = self.random_generator
        if self.mode == "value":
            scale = self.scales[int(rng.integers(len(self.scales)))]
        else:
            longs, shorts = zip(*self.scales, strict=True)
            long, short = (
                int(rng.integers(min(sides), max(sides) + 1)) for sides in (longs, shorts)
            )
            scale = (long, short)
        return {"size": fit_size(data["image"].shape[:2], scale)}

    def apply(self, img: Array, size: tuple[int, int], **_: Any) -> Array:
        """Resize the image."""
        return resize(img, size)

    def apply_to_mask(self, mask: Array, size: tuple[int, int], **_: Any) -> Array:
        """Resize a mask to the nearest pixels."""
        return resize(mask, size, cv2.INTER_NEAREST)

    def apply_to_bboxes(self, bboxes: Array, **_: Any) -> Array:
        """Boxes are relative to the image size, so they do not change."""
        return bboxes


class RandomWindow(A.DualTransform):
    """Crop a window of random size and position; boxes without area are dropped.

    Args:
        sides: Smallest and largest side of the window in pixels; shorter sides of an image are not
            cropped.
        allow_empty: Whether the window may have no annotation.
    """

    def __init__(self, sides: tuple[int, int], allow_empty: bool) -> None:
        super().__init__(p=1.0)
        self.sides = sides
        self.allow_empty = allow_empty

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the window.

        Raises:
            NoObjectLeftError: If it must have an annotation and has none.
        """
        height, width = data["image"].shape[:2]
        rng = self.random_generator
        smallest, largest = self.sides
        sides = [
            int(rng.integers(min(side, smallest), min(side, largest) + 1))
            for side in (height, width)
        ]
        top, left = (
            int(rng.integers(full - side + 1))
            for full, side in zip((height, width), sides, strict=True)
        )
        window = (left, top, left + sides[1], top + sides[0])
        if not self.allow_empty and not len(
            _cut(np.asarray(data["bboxes"]), window, (height, width))
        ):
            raise NoObjectLeftError
        return {"window": window, "full": (height, width)}

    def apply(self, img: Array, window: tuple[int, int, int, int], **_: Any) -> Array:
        """Crop the image."""
        left, top, right, bottom = window
        return img[top:bottom, left:right]

    def apply_to_mask(self, mask: Array, window: tuple[int, int, int, int], **_: Any) -> Array:
        """Crop a mask."""
        left, top, right, bottom = window
        return mask[top:bottom, left:right]

    def apply_to_bboxes(
        self,
        bboxes: Array,
        window: tuple[int, int, int, int],
        full: tuple[int, int],
        **_: Any,
    ) -> Array:
        """Clip the boxes to the window and drop those outside."""
        return _cut(bboxes, window, full)


def _cut(bboxes: Array, window: tuple[int, int, int, int], full: tuple[int, int]) -> Array:
    """Clip boxes, relative to an image, to a window; the result is relative to the window."""
    if not len(bboxes):
        return bboxes
    height, width = full
    left, top, right, bottom = window
    size = np.array([right - left, bottom - top] * 2, np.float64)
    boxes = (bboxes[:, :4] * [width, height, width, height] - [left, top, left, top]) / size
    boxes = boxes.clip(0, 1)
    # The sides must differ in float32.
    seen = ((boxes[:, 2:] - boxes[:, :2]) * size[:2] > 1e-3).all(axis=1)
    return np.concatenate([boxes, bboxes[:, 4:]], axis=1)[seen]


class DetectionTrainTransform:
    """Resize, flip and optionally crop an image with its annotations.

    Args:
        scales: Sizes (long and short side) that images are resized to fit.
        scale_mode: ``value`` takes one of the sizes, ``range`` draws both sides between them.
        crop_scales: If given, half of the images are first resized to fit one of these sizes and
            cropped, then resized to ``scales``.
        crop_sides: Smallest and largest side of the crop.
        allow_empty_crop: Whether a crop may have no annotation.
        hflip: Probability of a horizontal flip.
    """

    def __init__(
        self,
        *,
        scales: Sequence[Scale],
        scale_mode: ScaleMode = "value",
        crop_scales: Sequence[Scale] | None = None,
        crop_sides: tuple[int, int] = (384, 600),
        allow_empty_crop: bool = True,
        hflip: float,
    ) -> None:
        steps: list[Any] = [A.HorizontalFlip(p=hflip)]
        if crop_scales is None:
            steps.append(RandomFitResize(scales, scale_mode))
        else:
            cropped = [
                RandomFitResize(crop_scales),
                RandomWindow(crop_sides, allow_empty_crop),
                RandomFitResize(scales, scale_mode),
            ]
            whole = [RandomFitResize(scales, scale_mode)]
            steps.append(A.OneOf([A.Sequential(whole, p=1), A.Sequential(cropped, p=1)], p=1))
        boxes = A.BboxParams("pascal_voc", label_fields=["number"], clip=True)
        self._compose = A.Compose(steps, bbox_params=boxes)

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        masks: Sequence[NDArray[np.uint8]],
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor, list[int]] | None:
        """See `InstanceTransform`."""
        # One generator for all steps; the same seed for each step would correlate them.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            done = self._compose(
                image=image, bboxes=boxes, number=np.arange(len(boxes)), **_stack(masks)
            )
        except NoObjectLeftError:
            return None
        kept = [int(number) for number in done["number"]]
        height, width = done["image"].shape[:2]
        kept_masks = np.zeros((len(kept) if len(masks) else 0, height, width), np.uint8)
        for mask, number in zip(kept_masks, kept, strict=False):
            mask[:] = done["masks"][number]
        corners = np.asarray(done["bboxes"], np.float32).reshape(-1, 4)
        return (
            _to_tensor(done["image"]),
            torch.from_numpy(corners),
            torch.from_numpy(kept_masks),
            kept,
        )


def _stack(masks: Sequence[NDArray[np.uint8]]) -> dict[str, Array]:
    """The masks as albumentations expects them; it refuses an empty list."""
    return {"masks": np.stack(masks)} if len(masks) else {}


class DetectionEvalTransform:
    """Resize to fit; optionally with further views for test-time augmentation.

    Args:
        scale: Largest long and short side in pixels.
        ratios: Scales of the views relative to ``scale``, each with and without a flip; empty for
            no further views.
    """

    def __init__(self, scale: Scale, *, ratios: Sequence[float] = ()) -> None:
        self.scale = scale
        views = [(ratio, mirror) for ratio in ratios for mirror in (False, True)]
        self._views = [view for view in views if view != (1.0, False)]

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """See `ImageTransform`."""
        return self._prepare(image, 1.0)

    def views(self, image: NDArray[np.uint8]) -> list[tuple[Tensor, bool]]:
        """The further views, and whether each is flipped horizontally."""
        return [
            (view.flip(-1) if mirror else view, mirror)
            for ratio, mirror in self._views
            for view in (self._prepare(image, ratio),)
        ]

    def _prepare(self, image: NDArray[np.uint8], ratio: float) -> Tensor:
        long, short = self.scale
        scale = (max(int(long * ratio), 1), max(int(short * ratio), 1))
        fitted = resize(image, fit_size(image.shape[:2], scale))
        return _to_tensor(fitted)


def _to_tensor(image: Array) -> Tensor:
    """``(H, W, 3)`` uint8 to a contiguous ``(3, H, W)`` tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
