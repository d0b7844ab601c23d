"""Decoding picture files: one way for the networks and for the drawings of what they found.

Knows PIL and NumPy only, so that the checking commands start fast. ``convert("RGB")`` is that of
torchvision's image folders, which the official evaluation reads: the EXIF orientation is applied
only on request. Pictures of more than 8 bits are the exception: they are scaled, where PIL would
clip.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from src.errors import UserError

_16_BIT_FORMATS = ("PNG", "PPM")  # Pillow gives 32-bit integers for their 16-bit pictures

# Several ImageNet files carry EXIF blocks that PIL complains about; their pixels are fine.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BrokenPictureError(UserError):
    """A file that should be a picture and cannot be decoded."""


def decode(path: str | Path, *, upright: bool = False) -> Image.Image:
    """Read one picture of any mode as 8-bit RGB.

    Grey, palette and CMYK pictures become RGB, and transparency is dropped. 16-bit values are
    divided by 256, and so are 32-bit integers if one is above 255. Floating-point values are
    brightness from 0 to 1, or from 0 to 255 if one is above 1.

    Args:
        path: The file. Its content decides the format, not its ending.
        upright: Turn the picture as its EXIF block says. Pillow turns TIFF files in any case.

    Returns:
        The decoded picture, mode ``"RGB"``. Unless it was turned, it keeps its EXIF orientation.

    Raises:
        BrokenPictureError: If the file is missing, truncated, not a picture, or its floating-point
            values are no brightness.
    """
    try:
        # An open file instead of its name: by name Pillow maps uncompressed TIFF files into memory
        # and mixes up the rows of those that it turns.
        with Path(path).open("rb") as file, Image.open(file) as picture:
            picture.load()  # turns TIFF files, which changes their size
            rgb = _to_rgb(picture)
            return ImageOps.exif_transpose(rgb) if upright else rgb
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, ...
        raise BrokenPictureError(
            f"The picture {path} cannot be read: {_reason(path, error)}."
        ) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        return _rgb_of_grey(_bytes_of_floats(np.asarray(picture)), picture)
    if picture.mode.startswith("I"):  # I: 32-bit integers; I;16 and relatives
        return _rgb_of_grey(_bytes_of_integers(picture), picture)
    if picture.mode == "P" and "transparency" in picture.info:
        # The direct way makes PIL warn; the colours are the same.
        return picture.convert("RGBA").convert("RGB")
    return picture.convert("RGB")


def _rgb_of_grey(pixels: NDArray[np.uint8], source: Image.Image) -> Image.Image:
    """RGB picture of grey values ``(H, W)`` with the EXIF block of the picture they are from."""
    grey = Image.fromarray(pixels)
    grey.info = {key: value for key, value in source.info.items() if key != "transparency"}
    return grey.convert("RGB")


def _bytes_of_integers(picture: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(picture, dtype=np.int64)
    # Programs that compute write 8-bit pictures as 32-bit integers; but a dark 16-bit one is dark.
    may_be_8_bit = picture.mode == "I" and picture.format not in _16_BIT_FORMATS
    if not may_be_8_bit or values.max() > 255:
        values = values >> 8
    return np.clip(values, 0, 255).astype(np.uint8)


def _bytes_of_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    lowest, highest = float(values.min()), float(values.max())
    if not 0 <= lowest <= highest <= 255:  # also if one is not a number
        raise ValueError(
            f"its floating-point values go from {lowest:g} to {highest:g}; accepted are 0 to 1 and "
            "0 to 255"
        )
    return np.rint(values * 255 if highest <= 1 else values).astype(np.uint8)


def _reason(path: str | Path, error: Exception) -> str:
    if not Path(path).exists():
        return "there is no such file"
    if Path(path).is_dir():
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "reading it is not permitted"
    if Path(path).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "its content is not a picture that PIL knows"
    if "truncated" in str(error).lower():
        return "the file is truncated"
    return str(error).strip().rstrip(".") or type(error).__name__
