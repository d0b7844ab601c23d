"""Sizes of image files, for annotation formats that do not give them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool

from src.decoding import BrokenImageError, open_image, orientation
from src.types import Size

_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations in which width and height are exchanged


def read_sizes(paths: Sequence[str], max_pixels: int) -> list[Size | BrokenImageError]:
    """Height and width of each image, turned upright, from the header of its file.

    Args:
        paths: The files.
        max_pixels: Larger images count as broken.

    Returns:
        The size, or the error of a file that is not an image.
    """
    with ThreadPool(min(32, 4 * (os.cpu_count() or 1))) as pool:  # mostly waits for the disk
        return pool.map(partial(_size, max_pixels=max_pixels), paths, chunksize=64)


def is_transposed(path: str, max_pixels: int) -> bool:
    """Whether the EXIF orientation exchanges width and height.

    Args:
        path: The file.
        max_pixels: Larger images count as broken.

    Raises:
        BrokenImageError: If the file is not an image.
    """
    with open_image(path, max_pixels) as image:
        return orientation(image, path) in _TRANSPOSED


def _size(path: str, max_pixels: int) -> Size | BrokenImageError:
    try:
        with open_image(path, max_pixels) as image:
            width, height = image.size
            if orientation(image, path) in _TRANSPOSED:
                width, height = height, width
    except BrokenImageError as error:
        return error
    return height, width
