"""What every detector promises: losses with targets, detections without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from src.types import Detections, DetectionTarget, Size

Kind = Literal["bbox", "segm"]


class Detector(nn.Module):
    """Base of all detectors."""

    kinds: ClassVar[tuple[Kind, ...]] = ("bbox", "segm")
    """What a detection has: a box, and a mask."""
    depths: tuple[int, ...]
    """Blocks per stage of the backbone."""

    def forward(
        self,
        image: Tensor,
        sizes: Sequence[Size],
        original_sizes: Sequence[Size] | None = None,
        targets: Sequence[DetectionTarget] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses if there are targets, else detections.

        Args:
            image: Normalised images, padded at the right and at the bottom with zeros to one
                size, a multiple of 32, ``(N, 3, H, W)``.
            sizes: Height and width of each image without padding.
            original_sizes: Height and width that detections refer to; default ``sizes``.
            targets: Objects of each image.

        Returns:
            Losses by name (entries with ``loss`` in the name are to be summed, the others are
            figures to watch), or the detections of each image.
        """
        if targets is not None:
            return self.losses(image, sizes, targets)
        return self.detect(image, sizes, original_sizes)

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> dict[str, Tensor]:
        """Losses by name; see `forward`."""
        raise TypeError(f"{type(self).__name__} must define losses()")

    def detect(
        self, image: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Detections of each image; see `forward`."""
        raise TypeError(f"{type(self).__name__} must define detect()")
