"""Open and decode image files, for networks and for drawing predictions.

This module imports only PIL and NumPy, so that commands that check data start fast. Images are
converted with ``convert("RGB")`` as in torchvision's ``ImageFolder``, which the official evaluation
uses; the EXIF orientation is applied only on request. Images with more than 8 bits are scaled,
because PIL would clip them.

No other module opens image files. Only `FORMATS` are read, recognised by content: for PostScript,
Pillow would start Ghostscript. Pipes and devices are not opened, and the size in the header is
checked before memory is allocated.
"""

from __future__ import annotations

import io
import logging
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from src.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Formats that Pillow may read."""
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Extensions of their files, which are those of torchvision's image folders."""
OTHER_IMAGE_EXTENSIONS = (".gif", ".avif", ".heic", ".heif", ".svg", ".jp2", ".jxl")
"""Extensions of images that are not searched for."""

MAX_PIXELS = 120_000_000
"""Default maximum number of pixels of an image; phones take photos of up to 108 million."""

_16_BIT_FORMATS = ("PNG", "PPM")  # Pillow returns 32-bit integers for 16-bit images
_ORIENTATION = 0x0112  # the EXIF tag
_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # may contain it
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = (5, 6, 7, 8)  # orientations in which width and height are exchanged
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_SCAN = 0xDA
_JPEG_SCAN = re.compile(bytes([0xFF, _SCAN]))  # faster than counting bytes
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))
_MAX_SEGMENTS = 20_000
_PART = 2**20
_MAX_BYTES, _MAX_BYTES_PER_PIXEL = 2**26, 16  # of a file: metadata, and four floats
# Encoders write about ten scans, and each costs a pass over the whole image. The limit is lower for
# large images: at most _MAX_SCANNED pixels in all scans, but _MIN_SCANS are always allowed.
_MAX_SCANS = 200
_MAX_SCANNED = 2_000_000_000
_MIN_SCANS = 32

Reduce = Callable[[int, int], int]
"""From width and height of an image to the factor, 1, 2, 4 or 8, by which they may be reduced."""

_log = logging.getLogger(__name__)
_warned: set[str] = set()

# PIL warns about the EXIF data of several ImageNet files, whose pixels are intact.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# `MAX_PIXELS` is the limit here; Pillow would warn below it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BrokenImageError(UserError):
    """An image file that cannot be decoded."""


class MissingImageError(BrokenImageError, FileNotFoundError):
    """An image file that does not exist."""


def decode(
    path: str | Path,
    *,
    upright: bool = False,
    max_pixels: int = MAX_PIXELS,
    reduce: Reduce | None = None,
    content: bytes | None = None,
) -> Image.Image:
    """Read an image of any mode as 8-bit RGB.

    Greyscale, palette and CMYK images are converted to RGB, and the alpha channel is dropped.
    16-bit values are divided by 256, and so are 32-bit integers if the maximum is above 255.
    Floating-point images have the range 0 to 1, or 0 to 255 if the maximum is above 1.

    Args:
        path: The file. The format is recognised by content, not by extension.
        upright: Apply the EXIF orientation. Pillow always applies it to TIFF files.
        max_pixels: Maximum number of pixels.
        reduce: Called once with width and height of the image. A JPEG file is then decoded with
            sides divided by the factor and rounded up, which takes a fraction of the time. Files of
            other formats, and turned images whose sides the factor does not divide, are decoded at
            full size.
        content: Bytes of the image, if it is part of a larger file; ``path`` is then its name in
            messages.

    Returns:
        The decoded image, mode ``"RGB"``. Without ``upright`` it keeps its EXIF orientation tag.

    Raises:
        MissingImageError: If the file does not exist; it is a `BrokenImageError`, too.
        BrokenImageError: If the file is truncated, not an image, too large, or has
            floating-point values out of range.
        UserError: If there is not enough memory.
    """
    with open_image(path, max_pixels, content=content) as image:
        is_reducible = image.format == "JPEG"
        if reduce is not None and is_reducible:
            _reduce(image, reduce, orientation(image, path) if upright else 1)
        image.load()  # applies the orientation of TIFF files, which can change their size
        rgb = to_rgb(image)
    rgb = turn_upright(rgb, path) if upright else rgb
    if reduce is not None and not is_reducible:
        reduce(*rgb.size)
    return rgb


@contextmanager
def open_image(
    path: str | Path,
    max_pixels: int = MAX_PIXELS,
    what: str = "image",
    content: bytes | None = None,
) -> Iterator[ImageFile.ImageFile]:
    """Open an image of one of `FORMATS`; pixels are decoded on first access.

    Args:
        path: The file.
        max_pixels: Maximum number of pixels.
        what: Kind of the file, for messages.
        content: Bytes of the image, if it is part of a larger file.

    Yields:
        The image with a checked header. Decoding errors within the context are converted too.

    Raises:
        MissingImageError: If the file does not exist; it is a `BrokenImageError`, too.
        BrokenImageError: If the file is truncated, not an image, or too large.
        UserError: If there is not enough memory.
    """
    try:
        if content is None:
            content = _content(Path(path), max_pixels)
        # Pass the content instead of the name or an open file. Given a name, Pillow memory-maps
        # uncompressed TIFF files and mixes up the rows of those that it transposes. Given an open
        # file, it allocates as many bytes as a damaged header claims.
        file = io.BytesIO(content)
        with _opened(file, max_pixels) as image:
            _check_header(image, file, max_pixels)
            yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"There is not enough memory to read the {what} {path}. Lower data.num_workers, or "
            "lower data.max_pixels to refuse large images."
        ) from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, ...
        is_missing = content is None and isinstance(error, FileNotFoundError)
        kind = MissingImageError if is_missing else BrokenImageError
        raise kind(
            f"The {what} {path} cannot be read: {_reason(path, error, max_pixels, content)}."
        ) from None


def _content(path: Path, max_pixels: int) -> bytes:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("it is not a regular file")
    if facts.st_size > _MAX_BYTES + _MAX_BYTES_PER_PIXEL * max_pixels:
        raise OSError(f"it has {facts.st_size} bytes, more than an image of data.max_pixels")
    return path.read_bytes()


def turn_upright(image: Image.Image, path: str | Path) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data are ignored.

    Args:
        image: An image.
        path: Its file, for the message.
    """
    transpose = _TRANSPOSES.get(orientation(image, path))
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    turned.info = {key: value for key, value in image.info.items() if key not in _METADATA}
    return turned


def orientation(image: Image.Image, path: str | Path) -> int:
    """EXIF orientation from 1 to 8; 1 with a warning for the first file if data are damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return int(value) if value in _TRANSPOSES else 1
    except Exception as error:  # SyntaxError, struct.error, ValueError, KeyError, ...
        _warn_once(
            "exif",
            f"The EXIF data of {path} are damaged ({_text_of(error)}), so its orientation is "
            "ignored. Further such files are not reported.",
        )
        return 1


def _reduce(image: ImageFile.ImageFile, reduce: Reduce, turn: int) -> None:
    """Let a JPEG image be decoded at a reduced size, given its EXIF orientation."""
    width, height = image.size
    factor = reduce(height, width) if turn in _TRANSPOSED else reduce(width, height)
    # The last row and column of a reduced image may stand for fewer pixels than the others. Only
    # in the stored orientation are they at the end.
    if turn == 1 or width % factor == height % factor == 0:
        image.draft(None, (max(1, width // factor), max(1, height // factor)))


def _opened(file: IO[bytes], max_pixels: int) -> ImageFile.ImageFile:
    # JPEG files of phones can contain further images. Only the first one is used, so their index,
    # which can be damaged, is not read.
    start = file.read(len(_JPEG_START))
    file.seek(0)
    if start == _JPEG_START:
        _check_segments(file)
        return JpegImagePlugin.JpegImageFile(file)
    if start == _PNG_START[: len(start)]:
        _check_chunks(file)
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    return Image.open(file, formats=FORMATS)


def _check_header(image: ImageFile.ImageFile, file: IO[bytes], max_pixels: int) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise ValueError(f"it has {width}x{height} pixels")
    tags = getattr(image, "tag_v2", {})
    tile = (tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0))  # decoded as a whole
    if not all(isinstance(side, int) for side in tile):
        raise ValueError(f"its tiles have {tile[0]!r}x{tile[1]!r} pixels")
    for columns, rows in (image.size, tile):
        if columns * rows > max_pixels:
            raise Image.DecompressionBombError(f"{columns}x{rows} pixels")
    if image.format == "JPEG":
        _check_scans(file, width * height)


def _check_segments(file: IO[bytes]) -> None:
    """Refuse JPEG files with millions of segments or fill bytes, which Pillow reads slowly."""
    file.seek(2)
    for _ in range(_MAX_SEGMENTS):
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF or start[1] == _SCAN:
            break  # the pixels, or damaged data that Pillow reports
        if start[1] == 0xFF or start[1] in _WITHOUT_LENGTH:
            file.seek(-3 if start[1] == 0xFF else -2, io.SEEK_CUR)
        else:
            file.seek(int.from_bytes(start[2:], "big") - 2, io.SEEK_CUR)
    else:
        raise ValueError(f"it has more than {_MAX_SEGMENTS} segments before its pixels")
    file.seek(0)


def _check_chunks(file: IO[bytes]) -> None:
    """Refuse PNG files with millions of chunks, which Pillow reads slowly."""
    file.seek(len(_PNG_START))
    others = 0
    while len(start := file.read(8)) == 8:
        others += start[4:] != b"IDAT"
        if others > _MAX_SEGMENTS:
            raise ValueError(f"it has more than {_MAX_SEGMENTS} chunks besides its pixels")
        file.seek(int.from_bytes(start[:4], "big") + 4, io.SEEK_CUR)
    file.seek(0)


def _check_scans(file: IO[bytes], pixels: int) -> None:
    """Refuse JPEG files with thousands of scans, which take hours to decode."""
    position, scans, last = file.tell(), 0, b""
    file.seek(0)
    while part := file.read(_PART):
        # Compressed pixels never contain this marker.
        scans += len(_JPEG_SCAN.findall(last + part))
        last = part[-1:]
    file.seek(position)
    limit = min(_MAX_SCANS, max(_MIN_SCANS, _MAX_SCANNED // pixels))
    if scans > limit:
        raise ValueError(f"it has {scans} scans, and the limit is {limit}")


def _warn_once(kind: str, message: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        _log.warning(message)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, converted as `decode` does."""
    if image.mode == "F":
        return _rgb_of_grey(_bytes_of_floats(np.asarray(image)), image)
    if image.mode.startswith("I"):  # I: 32-bit integers; I;16 and variants
        return _rgb_of_grey(_bytes_of_integers(image), image)
    if image.mode == "P" and "transparency" in image.info:
        # Direct conversion makes PIL warn; the colours are the same.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _rgb_of_grey(pixels: NDArray[np.uint8], source: Image.Image) -> Image.Image:
    """RGB image of grey values ``(H, W)`` with the metadata of the source image."""
    grey = Image.fromarray(pixels)
    grey.info = {key: value for key, value in source.info.items() if key != "transparency"}
    return grey.convert("RGB")


def _bytes_of_integers(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    # Some programs save 8-bit images as 32-bit integers; 16-bit images must stay dark.
    may_be_8_bit = image.mode == "I" and image.format not in _16_BIT_FORMATS
    if not may_be_8_bit or values.max() > 255:
        values = values >> 8
    return np.clip(values, 0, 255).astype(np.uint8)


def _bytes_of_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    lowest, highest = float(values.min()), float(values.max())
    if not 0 <= lowest <= highest <= 255:  # also if there is a NaN
        raise ValueError(
            "expected floating-point values from 0 to 1 or from 0 to 255, got values from "
            f"{lowest:g} to {highest:g}"
        )
    return np.rint(values * 255 if highest <= 1 else values).astype(np.uint8)


def _reason(
    path: str | Path, error: Exception, max_pixels: int, content: bytes | None = None
) -> str:
    if isinstance(error, Image.DecompressionBombError):
        # Pillow says "Image size (200000000 pixels) exceeds ...".
        size = re.search(r"\d+(x\d+)? pixels", str(error))
        return (
            f"it has {size[0] if size else 'too many pixels'}, and the limit is {max_pixels} "
            "(data.max_pixels; --max-pixels of prepare and verify)"
        )
    if content is None and (problem := _problem_of_file(path, error)):
        return problem
    if content == b"":
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = _text_of(error)
    if "truncated" in text.lower():
        return "the file is truncated"
    if "MAX_TEXT" in text:
        return "its compressed text or colour profile is too large"
    return text


def _problem_of_file(path: str | Path, error: Exception) -> str | None:
    """What is wrong with the file, apart from its content."""
    try:
        facts = Path(path).stat()
    except FileNotFoundError:
        if (target := dead_link(path)) is not None:
            return f"it is a link to {target}, which does not exist"
        return "there is no such file"
    except (OSError, ValueError) as fault:  # very long names, names with a null byte
        return _text_of(fault)
    if stat.S_ISDIR(facts.st_mode):
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "permission denied"
    return None


def dead_link(path: str | Path) -> str | None:
    """Target of a symbolic link that does not exist; None if the path is no such link.

    Args:
        path: Any path.
    """
    link = Path(path)
    return str(link.readlink()) if link.is_symlink() and not link.exists() else None


def _text_of(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__
