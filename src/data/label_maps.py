"""Reading label maps: pictures whose pixel values are class numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.pictures import BrokenPictureError
from src.errors import UserError
from src.types import IGNORE_LABEL

MAX_CLASSES = 255


def read_label_map(
    path: str | Path, num_classes: int, *, reduce_zero_label: bool = False
) -> NDArray[np.uint8]:
    """Read the class of every pixel.

    Grey and palette pictures of 8, 16 or 32 bits are read as numbers; the colours of a palette do
    not matter.

    Args:
        path: A PNG or another lossless picture.
        num_classes: Number of classes, at most 255.
        reduce_zero_label: The file counts classes from 1, and 0 means unlabelled.

    Returns:
        Classes in ``[0, num_classes)``, and 255 where the file has 255 or, with
        ``reduce_zero_label``, 0. Shape ``(H, W)``.

    Raises:
        BrokenPictureError: If the file cannot be decoded.
        UserError: If it holds colours or a number that is no class.
    """
    stored = _read_numbers(path)
    ignored = stored == IGNORE_LABEL
    if reduce_zero_label:
        ignored |= stored == 0
        stored = stored - 1  # unsigned types wrap 0 to their largest value, which is ignored
    wrong = (stored >= num_classes) & ~ignored
    if wrong.any():
        first = 1 if reduce_zero_label else 0
        value = int(stored[wrong][0]) + first
        zero = "0 and 255 (unlabelled)" if reduce_zero_label else "255 (unlabelled)"
        raise UserError(
            f"The label map {path} has the value {value} in {int(wrong.sum())} pixels. Accepted "
            f"are {first} to {num_classes - 1 + first} and {zero}; give all class names with "
            "data.class_names, or set data.reduce_zero_label to what the files mean by 0."
        )
    return np.where(ignored, IGNORE_LABEL, stored).astype(np.uint8)


def _read_numbers(path: str | Path) -> NDArray[np.unsignedinteger]:
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.array(picture)
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, ...
        raise BrokenPictureError(f"The label map {path} cannot be read: {error}.") from error
    if values.ndim != 2 or mode in ("F", "CMYK"):
        raise UserError(
            f"The label map {path} holds colours (mode {mode}), not class numbers. Accepted are "
            "grey or palette pictures of one number a pixel; translate the colours first."
        )
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind == "i":
        if values.min() < 0:
            raise UserError(f"The label map {path} has the negative value {int(values.min())}.")
        return values.astype(np.uint32)
    return values
