"""Opening and decoding image files: one way for the networks and for the drawings of results.

Knows PIL and NumPy only, so that the checking commands start fast. ``convert("RGB")`` is that of
torchvision's image folders, which the official evaluation reads: the EXIF orientation is applied
only on request. Images of more than 8 bits are the exception: they are scaled, where PIL would
clip.

No other module opens image files. Only `FORMATS` are read, whatever a file is called: Pillow would
start Ghostscript for PostScript. Files that are not regular (pipes, devices) are not opened, and
the size that a header claims is checked before memory is taken.
"""

from __future__ import annotations

import io
import logging
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from src.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""What Pillow may read: the formats of the file endings in `src.data.formats.image_files`."""

MAX_PIXELS = 120_000_000
"""Largest image that is read unless a setting says otherwise; phones make up to 108 million."""

_16_BIT_FORMATS = ("PNG", "PPM")  # Pillow gives 32-bit integers for their 16-bit images
_ORIENTATION = 0x0112  # the EXIF tag
_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # may hold it
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_SCAN = 0xDA
_JPEG_SCAN = bytes([0xFF, _SCAN])
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))
_MAX_SEGMENTS = 20_000
_PART = 2**20
_MAX_BYTES, _MAX_BYTES_PER_PIXEL = 2**26, 16  # of a file: metadata, and four floats
_MAX_SCANS = 200  # encoders write about ten; each one costs a pass over the whole image,
_MAX_SCANNED = 2_000_000_000  # so large images have fewer: pixels of all scans together,
_SCANS = 32  # but never less than these

_log = logging.getLogger(__name__)
_said: set[str] = set()

# Several ImageNet files carry EXIF blocks that PIL complains about; their pixels are fine.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# The limit here is `MAX_PIXELS`, in one sentence; Pillow would warn below it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BrokenImageError(UserError):
    """A file that should be an image and cannot be decoded."""


def decode(path: str | Path, *, upright: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image of any mode as 8-bit RGB.

    Grey, palette and CMYK images become RGB, and transparency is dropped. 16-bit values are
    divided by 256, and so are 32-bit integers if one is above 255. Floating-point values are
    brightness from 0 to 1, or from 0 to 255 if one is above 1.

    Args:
        path: The file. Its content decides the format, not its ending.
        upright: Turn the image as its EXIF block says. Pillow turns TIFF files in any case.
        max_pixels: Larger images are refused.

    Returns:
        The decoded image, mode ``"RGB"``. Unless it was turned, it keeps its EXIF orientation.

    Raises:
        BrokenImageError: If the file is missing, truncated, not an image, too large, or its
            floating-point values are no brightness.
        UserError: If there is not enough memory for it.
    """
    with open_image(path, max_pixels) as image:
        image.load()  # turns TIFF files, which changes their size
        rgb = _to_rgb(image)
    return turn_upright(rgb, path) if upright else rgb


@contextmanager
def open_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, what: str = "image"
) -> Iterator[ImageFile.ImageFile]:
    """Open an image of one of `FORMATS`; its pixels are decoded when they are first used.

    Args:
        path: The file.
        max_pixels: Larger images are refused.
        what: What the file is, for messages.

    Yields:
        The image with a checked header. Errors of decoding it are raised like those of opening.

    Raises:
        BrokenImageError: If the file is missing, truncated, not an image, or too large.
        UserError: If there is not enough memory for it.
    """
    try:
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):
            raise OSError("it is not a regular file")
        if facts.st_size > _MAX_BYTES + _MAX_BYTES_PER_PIXEL * max_pixels:
            raise OSError(f"it has {facts.st_size} bytes, more than an image of data.max_pixels")
        # The content instead of the name: by name Pillow maps uncompressed TIFF files into memory
        # and mixes up the rows of those that it turns; of an open file it reads as many bytes as a
        # damaged header claims, which takes memory even if the file has fewer.
        file = io.BytesIO(Path(path).read_bytes())
        with _opened(file, max_pixels) as image:
            _check_header(image, file, max_pixels)
            yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"There is not enough memory to read the {what} {path}. Lower data.num_workers, or "
            "refuse large images with a lower data.max_pixels."
        ) from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, ...
        raise BrokenImageError(
            f"The {what} {path} cannot be read: {_reason(path, error, max_pixels)}."
        ) from error


def turn_upright(image: Image.Image, path: str | Path) -> Image.Image:
    """The image turned as its EXIF block says, or as it is if the block is damaged.

    Args:
        image: An image.
        path: Its file, for the message.
    """
    turn = _TURNS.get(orientation(image, path))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {key: value for key, value in image.info.items() if key not in _METADATA}
    return turned


def orientation(image: Image.Image, path: str | Path) -> int:
    """EXIF orientation from 1 to 8; 1, and a warning for the first file, if it is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return int(value) if value in _TURNS else 1
    except Exception as error:  # SyntaxError, struct.error, ValueError, KeyError, ...
        _warn_once(
            "exif",
            f"The EXIF block of {path} is damaged ({_words(error)}), so the image is used as it is "
            "stored. Further such files are not reported.",
        )
        return 1


def _opened(file: IO[bytes], max_pixels: int) -> ImageFile.ImageFile:
    # Of the images in a phone's JPEG file the first one counts, so the list of the others, which
    # can be damaged, is not read.
    start = file.read(len(_JPEG_START))
    file.seek(0)
    if start == _JPEG_START:
        _check_segments(file)
        return JpegImagePlugin.JpegImageFile(file)
    if start == _PNG_START[: len(start)]:
        _check_chunks(file)
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)  # not below the setting
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
    """Refuse a JPEG file with millions of segments or fill bytes, which Pillow reads slowly."""
    file.seek(2)
    for _ in range(_MAX_SEGMENTS):
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF or start[1] == _SCAN:
            break  # the pixels, or damage that Pillow names
        if start[1] == 0xFF or start[1] in _WITHOUT_LENGTH:
            file.seek(-3 if start[1] == 0xFF else -2, io.SEEK_CUR)
        else:
            file.seek(int.from_bytes(start[2:], "big") - 2, io.SEEK_CUR)
    else:
        raise ValueError(f"it has more than {_MAX_SEGMENTS} segments before its pixels")
    file.seek(0)


def _check_chunks(file: IO[bytes]) -> None:
    """Refuse a PNG file with millions of chunks, which Pillow reads slowly."""
    file.seek(len(_PNG_START))
    others = 0
    while len(start := file.read(8)) == 8:
        others += start[4:] != b"IDAT"
        if others > _MAX_SEGMENTS:
            raise ValueError(f"it has more than {_MAX_SEGMENTS} chunks beside its pixels")
        file.seek(int.from_bytes(start[:4], "big") + 4, io.SEEK_CUR)
    file.seek(0)


def _check_scans(file: IO[bytes], pixels: int) -> None:
    """Refuse a JPEG file with thousands of scans, which takes hours to decode."""
    position, scans, last = file.tell(), 0, b""
    file.seek(0)
    while part := file.read(_PART):
        scans += (last + part).count(_JPEG_SCAN)  # pixels never look like this marker
        last = part[-1:]
    file.seek(position)
    accepted = min(_MAX_SCANS, max(_SCANS, _MAX_SCANNED // pixels))
    if scans > accepted:
        raise ValueError(f"it has {scans} scans; accepted are up to {accepted}")


def _warn_once(kind: str, message: str) -> None:
    if kind not in _said:
        _said.add(kind)
        _log.warning(message)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        return _rgb_of_grey(_bytes_of_floats(np.asarray(image)), image)
    if image.mode.startswith("I"):  # I: 32-bit integers; I;16 and relatives
        return _rgb_of_grey(_bytes_of_integers(image), image)
    if image.mode == "P" and "transparency" in image.info:
        # The direct way makes PIL warn; the colours are the same.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _rgb_of_grey(pixels: NDArray[np.uint8], source: Image.Image) -> Image.Image:
    """RGB image of grey values ``(H, W)`` with the EXIF block of the image they are from."""
    grey = Image.fromarray(pixels)
    grey.info = {key: value for key, value in source.info.items() if key != "transparency"}
    return grey.convert("RGB")


def _bytes_of_integers(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    # Programs that compute write 8-bit images as 32-bit integers; but a dark 16-bit one is dark.
    may_be_8_bit = image.mode == "I" and image.format not in _16_BIT_FORMATS
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


def _reason(path: str | Path, error: Exception, max_pixels: int) -> str:
    if isinstance(error, Image.DecompressionBombError):
        # Pillow says "Image size (200000000 pixels) exceeds ...".
        size = re.search(r"\d+(x\d+)? pixels", str(error))
        return (
            f"it has {size[0] if size else 'too many pixels'}, but accepted are up to {max_pixels} "
            "(data.max_pixels; --max-pixels of prepare and verify)"
        )
    try:
        facts = Path(path).stat()
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, ValueError) as fault:  # endless names, names with a zero byte
        return _words(fault)
    if stat.S_ISDIR(facts.st_mode):
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "reading it is not permitted"
    if stat.S_ISREG(facts.st_mode) and facts.st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(FORMATS)}"
    words = _words(error)
    if "truncated" in words.lower():
        return "the file is truncated"
    if "MAX_TEXT" in words:
        return "its text or colour profile is compressed and larger than Pillow unpacks"
    return words


def _words(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__
