"""What the data sets ask of a transform; the library behind it can change."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class PairTransform(Protocol):
    """Random transform of a picture together with its labels, for training."""

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        """Transform one pair.

        Args:
            image: RGB picture of shape ``(H, W, 3)``.
            label: Class of every pixel, shape ``(H, W)``; 255 counts nowhere.
            seed: Decides everything random: the same seed gives the same result.

        Returns:
            Normalised picture, float32, shape ``(3, h, w)``, and its labels, int64, ``(h, w)``.
        """
        ...


class ViewsTransform(Protocol):
    """Fixed preparation of a picture for evaluation, in one or more ways."""

    @property
    def flipped(self) -> list[bool]:
        """Which of the views are mirrored left to right."""
        ...

    def __call__(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """Prepare one RGB picture ``(H, W, 3)``: normalised views, each float32 ``(3, h, w)``."""
        ...
