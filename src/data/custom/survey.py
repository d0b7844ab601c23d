"""Decode every image once, and count unusual and broken ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool

from src.decoding import (
    MAX_PIXELS,
    BrokenImageError,
    decode,
    open_image,
    orientation,
    turn_upright,
)
from src.errors import agreed, counted
from src.types import Size

_KINDS = {"1": "black and white", "L": "grey", "LA": "grey", "CMYK": "CMYK", "YCCK": "CMYK"}
_MAX_NAMED = 10


@dataclass
class Survey:
    """Result of decoding a set of images.

    Attributes:
        count: Number of images.
        kinds: Number of unusual images, by kind.
        sizes: Height and width of each image that can be read, turned upright.
        stored: Height and width of each image that can be read, as it is stored.
        broken: One sentence for each that cannot be read.
    """

    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, Size] = field(default_factory=dict)
    stored: dict[str, Size] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def __add__(self, other: Survey) -> Survey:
        """Sum of two surveys."""
        return Survey(
            self.count + other.count,
            self.kinds + other.kinds,
            self.sizes | other.sizes,
            self.stored | other.stored,
            self.broken + other.broken,
        )

    def __str__(self) -> str:
        unusual = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        images = "the image" if self.count == 1 else f"all {self.count} images"
        if self.broken:
            images = f"{self.count - len(self.broken)} of {counted(self.count, 'image')}"
        return f"{images} can be read" + (f" ({unusual})" if unusual else "")

    def named(self) -> str:
        """The messages about up to ten broken images, each on a line of its own."""
        lines = self.broken[:_MAX_NAMED]
        if (more := len(self.broken) - _MAX_NAMED) > 0:
            lines = [*lines, f"and {more} more"]
        return "".join(f"\n  {line}" for line in lines)

    def unreadable(self, noun: str = "image", advice: str = "") -> list[str]:
        """A message that counts the broken files and names up to ten; empty if there are none.

        Args:
            noun: What the files are.
            advice: What else can be done than to replace or remove them; begins with a comma.
        """
        if not self.broken:
            return []
        return [
            f"{len(self.broken)} of {counted(self.count, noun)} cannot be read; replace or"
            f" remove {agreed(len(self.broken), 'it', 'them')}{advice}:{self.named()}"
        ]


def look_at(paths: Sequence[str], max_pixels: int = MAX_PIXELS) -> Survey:
    """Decode every image, on all cores, and keep the errors of broken ones in the survey.

    Args:
        paths: The files.
        max_pixels: Larger images count as broken.
    """
    found = Survey(len(paths))
    with ThreadPool(os.cpu_count() or 1) as pool:  # PIL releases the GIL while it decodes
        for path, (kinds, upright, stored, problem) in zip(
            paths, pool.imap(partial(_look, max_pixels=max_pixels), paths, chunksize=8), strict=True
        ):
            found.kinds.update(kinds)
            if problem:
                found.broken.append(problem)
            else:
                found.sizes[path], found.stored[path] = upright, stored
    return found


def _look(path: str, max_pixels: int) -> tuple[list[str], Size, Size, str]:
    try:
        stored = decode(path, max_pixels=max_pixels)
        upright = turn_upright(stored, path)
        with open_image(path, max_pixels) as image:
            kinds = [_KINDS[image.mode]] if image.mode in _KINDS else []
            if image.mode.startswith(("I", "F")):
                kinds.append("16-bit")
            if orientation(image, path) != 1:
                kinds.append("turned by EXIF")
    except BrokenImageError as error:
        return [], (0, 0), (0, 0), str(error)
    return kinds, (upright.height, upright.width), (stored.height, stored.width), ""
