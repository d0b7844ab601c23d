"""Finding and decoding picture files; PIL only, so that the checking commands start fast.

The file endings and ``convert("RGB")`` are those of torchvision's image folders, which the official
evaluation reads: the EXIF orientation is applied only on request. 16-bit pictures are the
exception: they are scaled to 8 bits, where PIL would clip.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from src.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Several ImageNet files carry EXIF blocks that PIL complains about; their pixels are fine.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BrokenPictureError(UserError):
    """A file that should be a picture and cannot be decoded."""


def is_picture(path: str | Path) -> bool:
    """Whether the file name has one of `IMAGE_EXTENSIONS` (in any case) and is not hidden."""
    name = Path(path).name
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def list_pictures(root: str | Path) -> list[str]:
    """All pictures under a folder, at any depth, links followed, hidden files and folders left out.

    Args:
        root: An existing folder.

    Returns:
        Paths that start with ``root``, sorted.
    """
    return sorted(_walk(root))


def _walk(root: str | Path) -> Iterator[str]:
    for folder, children, files in os.walk(root, followlinks=True):
        children[:] = [child for child in children if not child.startswith(".")]
        for name in files:
            if is_picture(name):
                yield os.path.join(folder, name)  # noqa: PTH118 - a million strings, no Path objects


def list_class_folders(root: str | Path) -> list[str]:
    """Sorted names of the folders in ``root`` without hidden ones: the label order of ImageNet."""
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def decode(path: str | Path, *, upright: bool = False) -> Image.Image:
    """Read one picture of any mode as 8-bit RGB.

    Grey, palette and CMYK pictures become RGB, transparency is dropped, 16-bit values are divided
    by 256.

    Args:
        path: The file. Its content decides the format, not its ending.
        upright: Turn the picture as its EXIF block says.

    Returns:
        The decoded picture, mode ``"RGB"``.

    Raises:
        BrokenPictureError: If the file is missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as picture:
            return _to_rgb(ImageOps.exif_transpose(picture) if upright else picture)
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, ...
        raise BrokenPictureError(
            f"The picture {path} cannot be read: {_reason(path, error)}."
        ) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(
        "I"
    ):  # I;16 and relatives, or 32-bit integers that hold 16-bit values
        values = np.asarray(picture, dtype=np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA").convert(
            "RGB"
        )  # the direct way makes PIL warn; the colours are the same
    return picture.convert("RGB")


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
