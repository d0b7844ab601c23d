"""Image files of a dataset, and a record of those that could not be decoded.

The record is in memory shared with the loader workers, so that the main process can report all of
them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from src.decoding import MAX_PIXELS, BrokenImageError, Reduce, dead_link, decode
from src.errors import UserError

BrokenImages = Literal["error", "skip"]

MAX_BROKEN_IN_A_ROW = 100
BLANK = np.zeros((32, 32, 3), dtype=np.uint8)
"""Input of the network in place of an image that cannot be read; the output is dropped."""


class ReadableImages:
    """Paths of images, decoded on demand.

    Args:
        paths: The files.
        broken_images: ``"error"`` refuses a file that cannot be decoded; ``"skip"`` remembers it.
        upright: Turn images as their EXIF block says.
        max_pixels: Larger images count as broken.

    Attributes:
        reduce: How far JPEG images may be reduced while they are decoded; None is not at all.
    """

    reduce: Reduce | None = None

    def __init__(
        self,
        paths: Sequence[str],
        broken_images: BrokenImages = "error",
        *,
        upright: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        # One array of bytes: forked workers share its memory; touching a list of `str` would copy
        # it (reference counts).
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self._broken = torch.zeros(len(paths), dtype=torch.bool).share_memory_()
        self.broken_images = broken_images
        self.upright, self.max_pixels = upright, max_pixels
        self.left_out: dict[str, int] = {}  # number of files that are not used, by reason

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Any]:
        """All samples. Python's own iteration would not stop: any index gives a sample."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        """A sample."""
        raise TypeError(f"{type(self).__name__} must define __getitem__()")

    def path(self, index: int) -> str:
        """File of one image."""
        return os.fsdecode(self._paths[index])

    @property
    def paths(self) -> list[str]:
        """The files in their order."""
        return [self.path(index) for index in range(len(self._paths))]

    @property
    def broken_paths(self) -> list[str]:
        """Files that the loader workers of this rank could not decode so far."""
        return [self.path(int(index)) for index in self._broken.nonzero()]

    def open(self, index: int, reduce: Reduce | None = None) -> Image.Image | None:
        """The decoded image, or None if it cannot be decoded and is skipped.

        Args:
            index: Number of the image.
            reduce: Replaces the attribute `reduce`; see `src.decoding.decode`.

        Raises:
            UserError: If it cannot be decoded and is not to be skipped.
        """
        try:
            return decode(
                self.path(index),
                upright=self.upright,
                max_pixels=self.max_pixels,
                reduce=reduce or self.reduce,
            )
        except BrokenImageError as error:
            self.refuse_or_remember(index, error)
            return None

    def refuse_or_remember(self, index: int, error: BrokenImageError) -> None:
        """Raise an error that says how to fix it, or record that the image is skipped."""
        if self.broken_images == "error":
            advice = "Replace or delete the file"
            if dead_link(self.path(index)) is not None:
                advice = (
                    "If `prepare` has made the link, run it again (with --mode copy, the dataset no"
                    " longer needs the original files)"
                )
            raise UserError(
                f"{error} {advice}, or skip such files with --data.broken_images skip."
            ) from error
        self._broken[index] = True

    def refuse_all(self, index: int, tries: int) -> UserError:
        """The error after many broken images in a row."""
        return UserError(
            f"{tries} images in a row cannot be read, beginning with {self.path(index)}. Check the "
            "disk and the folder; `python -m src verify imagenet --decode --root ...` lists the "
            "broken files of class folders."
        )
