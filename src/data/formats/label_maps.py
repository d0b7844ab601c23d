"""Read label maps: images whose pixel values are class numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.decoding import MAX_PIXELS, open_image
from src.errors import UserError
from src.types import IGNORE_LABEL

MAX_CLASSES = 255
ClassValues = Sequence[int] | Mapping[int, int]
"""Number of each class in label order, or the class of each number (255: unlabelled)."""
_MAX_OWN_NUMBER = 65535
_STRETCH = {"L;2": 85, "L;4": 17}


def read_label_map(
    path: str | Path,
    num_classes: int,
    *,
    reduce_zero_label: bool = False,
    class_values: ClassValues | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Read the class of every pixel.

    Grey and palette images of up to 32 bits are read as numbers; the colours of a palette and an
    alpha channel are ignored.

    Args:
        path: A PNG or another lossless image.
        num_classes: Number of classes, at most 255, and 254 with ``reduce_zero_label``.
        reduce_zero_label: The file counts classes from 1, and 0 means unlabelled.
        class_values: Number of each class in the file, if they are not consecutive, or the class of
            each number, 255 for unlabelled; not together with ``reduce_zero_label``.
        max_pixels: Larger label maps are refused.

    Returns:
        Classes in ``[0, num_classes)``, and 255 where the file has 255 or, with
        ``reduce_zero_label``, 0. Shape ``(H, W)``.

    Raises:
        BrokenImageError: If the file cannot be decoded.
        UserError: If it holds colours or a number that is no class.
    """
    stored = read_numbers(path, max_pixels)
    if class_values is not None:
        return _look_up(stored, class_values, path)
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
            f"The label map {path} has the value {value} in {int(wrong.sum())} pixels; expected "
            f"{first} to {num_classes - 1 + first} and {zero}. Give all class names with "
            "data.class_names, or set data.reduce_zero_label to what 0 means in the files."
        )
    return np.where(ignored, IGNORE_LABEL, stored).astype(np.uint8)


def _look_up(
    stored: NDArray[np.unsignedinteger], class_values: ClassValues, path: str | Path
) -> NDArray[np.uint8]:
    """Classes of numbers that are not consecutive; see `read_label_map`."""
    no_class = -1
    table = np.full(IGNORE_LABEL + 1, no_class)
    table[IGNORE_LABEL] = IGNORE_LABEL
    for value, number in class_of_value(class_values).items():
        table[value] = number
    label: NDArray[np.int64] = table[np.minimum(stored, IGNORE_LABEL)]
    label[stored > IGNORE_LABEL] = no_class
    wrong = label == no_class
    if wrong.any():
        raise UserError(
            f"The label map {path} has the value {int(stored[wrong][0])} in {int(wrong.sum())} "
            f"pixels, which is none of the {len(class_values)} numbers of classes (data."
            f"class_values, {min(class_values)} to {max(class_values)} with gaps) and not 255 "
            "(unlabelled)."
        )
    return label.astype(np.uint8)


def to_own_numbers(values: Sequence[int]) -> str:
    """How to get the numbers of the user's label maps from predicted ones, which count from 0.

    Args:
        values: Number of each class.
    """
    first = values[0]
    if list(values) == list(range(first, first + len(values))):
        return f"add {first} to get your numbers"
    return f"in NumPy, np.array({list(values)})[label_map] has your numbers"


def number_of_each_class(values: ClassValues) -> list[int] | None:
    """Numbers in label order; ``None`` if several stand for one class."""
    if not isinstance(values, Mapping):
        return list(values)
    pairs = sorted((label, value) for value, label in values.items() if label != IGNORE_LABEL)
    is_one_to_one = len({label for label, _ in pairs}) == len(pairs)
    return [value for _, value in pairs] if is_one_to_one else None


def is_own_value(value: int | tuple[int, int, int]) -> bool:
    """Whether a value is a number of 16 bits or a colour of 8 bits per channel."""
    if isinstance(value, int):
        return 0 <= value <= _MAX_OWN_NUMBER
    return len(value) == 3 and min(value) >= 0 and max(value) <= 255


def class_of_value(class_values: ClassValues) -> dict[int, int]:
    """Class of each number that `ClassValues` name."""
    if isinstance(class_values, Mapping):
        return dict(class_values)
    return {value: label for label, value in enumerate(class_values)}


def refuse_floats(image: Image.Image, path: str | Path) -> None:
    """Refuse a floating-point label map; rounding could give another class.

    Raises:
        UserError: If it is one.
    """
    if image.mode == "F":
        raise UserError(
            f"The label map {path} holds floating-point numbers; save class numbers as integers, "
            "for example in a PNG."
        )


def stored_values(image: Image.Image) -> NDArray[np.unsignedinteger]:
    """Values of an image as its file has them, ``(H, W)`` of grey and palette images.

    Pillow stretches grey of 2 and 4 bits to 8.
    """
    if image.mode == "1":
        return np.asarray(image.convert("L")) // 255  # faster than reading single bits
    tiles = getattr(image, "tile", [])  # set until the file is read
    layout = tiles[0][3] if tiles else ""
    stretch = _STRETCH.get(layout if isinstance(layout, str) else layout[0], 1)
    values = np.array(image.getchannel(0) if image.mode in ("LA", "PA") else image)
    return values if stretch == 1 else values // stretch


def read_numbers(path: str | Path, max_pixels: int) -> NDArray[np.unsignedinteger]:
    """Read a grey or palette image of up to 32 bits as it is; errors are those of `read_label_map`.

    Args:
        path: The image.
        max_pixels: Larger images are refused.

    Returns:
        Numbers of shape ``(H, W)``.
    """
    with open_image(path, max_pixels, "label map") as image:
        refuse_floats(image, path)
        if image.mode not in ("1", "L", "LA", "P", "PA") and not image.mode.startswith("I"):
            raise UserError(
                f"The label map {path} holds colours (mode {image.mode}); expected a grey or "
                "palette image with a class number per pixel. `python -m src prepare from-masks "
                "--colours` translates colours."
            )
        values = stored_values(image)
    if values.dtype.kind == "i":
        if values.min() < 0:
            raise UserError(f"The label map {path} has the negative value {int(values.min())}.")
        return values.astype(np.uint32)
    return values
