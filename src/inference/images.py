"""Images to predict on: files, and images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from src.data.formats.image_files import refuse_url
from src.decoding import MAX_PIXELS, MissingImageError, Reduce, decode, to_rgb, turn_upright
from src.errors import UserError, counted

ImageSource = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a Pillow image of any mode, an array or a tensor.

Arrays are RGB ``(H, W, 3)``, RGBA ``(H, W, 4)`` or grey, ``(H, W)`` or ``(H, W, 1)``; tensors are
RGB ``(3, H, W)``, RGBA ``(4, H, W)`` or grey ``(1, H, W)``. Their values are uint8, or
floating-point from 0 to 1; values up to 0.001 beyond, as resizing leaves them, are clamped. Grey
becomes RGB, and alpha is dropped, as those of a file.
"""

_CHANNELS = (1, 3, 4)
_BEYOND = 1e-3  # of floating-point values, which resizing and colour conversion leave


def load_image(
    source: ImageSource,
    *,
    upright: bool = False,
    max_pixels: int = MAX_PIXELS,
    reduce: Reduce | None = None,
) -> Image.Image:
    """Read an image as 8-bit RGB.

    Args:
        source: The image.
        upright: Apply the EXIF orientation of a file or a Pillow image.
        max_pixels: Maximum number of pixels of a file.
        reduce: See `src.decoding.decode`; only for files.

    Raises:
        MissingImageError: If the file does not exist; it is a `UserError` and a
            ``FileNotFoundError``.
        UserError: If the file cannot be decoded, or the source is a URL or not an image.
    """
    if isinstance(source, (str, Path)):
        refuse_url(source)
    if isinstance(source, str) and not source:
        raise UserError("The path of the image is empty.")
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        raise UserError(
            f"predict takes images, and {source} is a folder. Give a list of its images, such as"
            f" find_images({str(source)!r}) with `from src.inference import find_images`."
        )
    if isinstance(source, (str, Path)):
        try:
            return decode(source, upright=upright, max_pixels=max_pixels, reduce=reduce)
        except MissingImageError as error:
            raise MissingImageError(f"{error}{_relative_to(Path(source))}") from None
    if isinstance(source, Image.Image):
        try:
            image = to_rgb(source)
        except OSError as error:  # Pillow decodes a file when its pixels are needed
            raise UserError(f"The image cannot be decoded: {error}.") from None
        return turn_upright(image, "the image") if upright else image
    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] not in _CHANNELS:
            expected = "(3, H, W), RGBA (4, H, W) or grey (1, H, W)"
            raise _wrong_shape("a tensor", expected, source.shape)
        array = source.detach().cpu()
        # NumPy has no bfloat16.
        values = array.float() if array.is_floating_point() else array
        return _from_array(values.permute(1, 2, 0).numpy(), is_tensor=True)
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3) or source.shape[2:] not in ((), *((n,) for n in _CHANNELS)):
            expected = "(H, W, 3), RGBA (H, W, 4) or grey (H, W) or (H, W, 1)"
            raise _wrong_shape("an array", expected, source.shape)
        return _from_array(source)
    raise UserError(
        "predict takes the path of a file, a Pillow image, a NumPy array (H, W, 3) or a tensor"
        f" (3, H, W), or a list of these, got {type(source).__name__}.{_with_pillow(source)}"
    )


def _relative_to(path: Path) -> str:
    """Which folder a relative path of a missing file starts from, with a leading space."""
    if path.is_absolute() or path.is_symlink():  # the target of a broken link is missing
        return ""
    here = Path.cwd()
    return f" Paths are relative to the current folder, {here.name or here}."


def _with_pillow(source: object) -> str:
    """How Pillow opens the bytes of a file or an open one; empty for anything else."""
    if isinstance(source, (bytes, bytearray)):
        return " Open it with Pillow: Image.open(io.BytesIO(data))."
    return " Open it with Pillow: Image.open(file)." if hasattr(source, "read") else ""


def split_batch(images: Any) -> list[ImageSource] | None:
    """The images of an iterable or of a batch ``(N, ...)``; ``None`` for a single image."""
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else None
    is_single = isinstance(images, (str, bytes, bytearray, Mapping)) or hasattr(images, "read")
    return list(images) if isinstance(images, Iterable) and not is_single else None


def _from_array(array: NDArray[Any], *, is_tensor: bool = False) -> Image.Image:
    """RGB image of an array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``."""
    if min(array.shape[:2]) < 1:
        raise UserError(f"The image has {array.shape[1]}x{array.shape[0]} pixels.")
    values = array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if np.isnan(low):  # the minimum of values with a NaN is NaN
            count = int(np.isnan(values).sum())
            raise UserError(
                f"Floating-point images must have values from 0 to 1, got {counted(count, 'NaN')}"
                f" in {values.size} values."
            )
        if not -_BEYOND <= low <= high <= 1 + _BEYOND:
            raise UserError(
                "Floating-point images must have values from 0 to 1 (not normalised), got values"
                f" from {low:g} to {high:g}."
            )
        values = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise UserError(
            "An array or tensor of an image must be uint8 or floating-point, got"
            f" {values.dtype}.{_conversion(values.dtype, is_tensor)}"
        )
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def _conversion(dtype: np.dtype[Any], is_tensor: bool) -> str:
    """How to convert an image whose values are of another type, with a leading space."""
    to_uint8 = "image.to(torch.uint8)" if is_tensor else "image.astype(np.uint8)"
    to_float = "image.float()" if is_tensor else "image.astype(np.float32)"
    if dtype == np.bool_:
        return f" Convert it with {to_uint8} * 255."
    if dtype == np.uint16:
        return f" Convert it with {to_float} / 65535, or divide by another largest value."
    if np.issubdtype(dtype, np.integer):
        return f" Convert values from 0 to 255 with {to_uint8}."
    return ""


def _wrong_shape(what: str, expected: str, got: Sequence[int]) -> UserError:
    return UserError(f"Expected {what} of shape {expected}; got {tuple(got)}.")
