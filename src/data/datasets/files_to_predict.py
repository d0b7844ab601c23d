"""Images without labels, for ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from src.data.datasets.readable import BLANK, ReadableImages
from src.data.formats.image_files import find_images
from src.decoding import MAX_PIXELS


class FilesToPredict(ReadableImages):
    """One image file of any name, or every image under a folder, sorted.

    A file that cannot be decoded is recorded and gives a padding sample, as does an index beyond
    the end (`src.data.samplers.padding`). Subclasses define `sample`.

    Args:
        source: An image or a folder; or names of images, which are not searched for.
        transform: Preparation of an image, for `sample`.
        upright: Turn images as their EXIF block says.
        max_pixels: Larger images count as broken.

    Raises:
        UserError: If the source is missing or a folder without images.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str],
        transform: Any,
        *,
        upright: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        paths = find_images(source) if isinstance(source, (str, Path)) else source
        super().__init__(paths, "skip", upright=upright, max_pixels=max_pixels)
        self.transform = transform

    def __getitem__(self, index: int) -> Any:
        """Read and prepare one image."""
        position = index % len(self)
        image = self.open(position)
        sample = self.sample(Image.fromarray(BLANK) if image is None else image, position)
        return {**sample, "is_padding": True} if image is None or index >= len(self) else sample

    def sample(self, image: Image.Image, index: int) -> Any:
        """Prepare an RGB image, the ``index``-th file."""
        raise TypeError(f"{type(self).__name__} must define sample()")
