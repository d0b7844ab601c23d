"""What the datasets ask of a transform; the library behind it can change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class PairTransform(Protocol):
    """Random transform of an image together with its labels, for training."""

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        """Transform one pair.

        Args:
            image: RGB image of shape ``(H, W, 3)``.
            label: Class of every pixel, shape ``(H, W)``; 255 counts nowhere.
            seed: Decides everything random: the same seed gives the same result.

        Returns:
            Normalised image, float32, shape ``(3, h, w)``, and its labels, int64, ``(h, w)``.
        """
        ...


class ViewsTransform(Protocol):
    """Fixed preparation of an image for evaluation, in one or more ways."""

    @property
    def flipped(self) -> list[bool]:
        """Which of the views are mirrored left to right."""
        ...

    def __call__(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """Prepare one RGB image ``(H, W, 3)``: normalised views, each float32 ``(3, h, w)``."""
        ...


class InstanceTransform(Protocol):
    """Random transform of an image together with its objects, for training."""

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
            masks: Mask of each object, 0 and 1, shape ``(H, W)``; empty for boxes alone.
            seed: Decides everything random: the same seed gives the same result.

        Returns:
            Normalised image, float32, ``(3, h, w)``; boxes, float32, ``(n, 4)``; masks, uint8,
            ``(n, h, w)`` (none for boxes alone); and which objects are left. None if a crop shows
            no object and must.
        """
        ...


class ImageTransform(Protocol):
    """Fixed preparation of an image; for test-time augmentation in further ways."""

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """Prepare one RGB image ``(H, W, 3)``: normalised, float32, ``(3, h, w)``."""
        ...

    def views(self, image: NDArray[np.uint8]) -> list[tuple[Tensor, bool]]:
        """Further preparations, each with whether it is mirrored left to right; mostly none."""
        ...
