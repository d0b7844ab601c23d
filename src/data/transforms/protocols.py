"""Protocols of the transforms, so that datasets do not depend on an augmentation library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class PairTransform(Protocol):
    """Random transform of an image and its labels, for training."""

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Transform one pair.

        Args:
            image: RGB image of shape ``(H, W, 3)``.
            label: Class of every pixel, shape ``(H, W)``; 255 is ignored.
            seed: Source of all randomness; the same seed gives the same result.

        Returns:
            Image, uint8, shape ``(3, h, w)``; its labels, int64, ``(h, w)``; and height and width
            without the padding on the right and at the bottom.
        """
        ...


class ViewsTransform(Protocol):
    """Deterministic preparation of an image for evaluation: one view or several."""

    @property
    def flipped(self) -> list[bool]:
        """Which of the views are flipped horizontally."""
        ...

    def __call__(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """Prepare one RGB image ``(H, W, 3)``: its views, each uint8 ``(3, h, w)``."""
        ...


class InstanceTransform(Protocol):
    """Random transform of an image and its annotations, for training."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        masks: Sequence[NDArray[np.uint8]],
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor, list[int]] | None:
        """Transform one image.

        Args:
            image: RGB image of shape ``(H, W, 3)``.
            boxes: ``x1, y1, x2, y2`` in pixels inside the image, shape ``(N, 4)``.
            masks: Mask of each box, 0 and 1, shape ``(H, W)``; empty for boxes without masks.
            seed: Source of all randomness; the same seed gives the same result.

        Returns:
            Image, uint8, ``(3, h, w)``; boxes, float32, ``(n, 4)``; masks, uint8,
            ``(n, h, w)`` (empty without masks); and the indices of the boxes that are left. None if
            a crop must have an annotation and has none.
        """
        ...


class ImageTransform(Protocol):
    """Deterministic preparation of an image, with further views for test-time augmentation."""

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """Prepare one RGB image ``(H, W, 3)``: uint8, ``(3, h, w)``."""
        ...

    def views(self, image: NDArray[np.uint8]) -> list[tuple[Tensor, bool]]:
        """Further views, each with whether it is flipped horizontally; usually none."""
        ...
