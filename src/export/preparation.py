"""How images are prepared for files without preprocessing: in words, and as lines of Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.decoding import FORMATS
from src.models.graphs import LabelMapResult, RegionResult, Result

_SCALES = ("image_scale", "eval_scale")


def accepted_formats() -> str:
    """Formats of image files, as in a sentence."""
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


_READ = """\
def read(path):
    # 8-bit RGB. Values of more bits are scaled, because convert("RGB") would make them white.
    photo = Image.open(path, formats=FORMATS)
    photo.load()
    is_16_bit = photo.mode.startswith("I;") or photo.format in ("PNG", "PPM")
    photo = UPRIGHT
    if photo.mode[0] in "IF":
        values = np.asarray(photo)
        low, high = values.min(), values.max()
        if photo.mode == "F":
            if not 0 <= low <= high <= 255:
                wanted = "floating-point values from 0 to 1 or from 0 to 255"
                raise ValueError(f"expected {wanted}, got values from {low:g} to {high:g}")
            values = np.rint(values * 255 if high <= 1 else values)
        elif is_16_bit or high > 255:
            values = values >> 8
        photo = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return photo.convert("RGB")"""
OPENED = """\
try:
    photo = read(path)
except Exception as error:  # Pillow raises many kinds of exceptions
    reason = str(error) or repr(error)
    if isinstance(error, UnidentifiedImageError):
        reason = "expected an image file (ACCEPTED)"
    print(f"error: {path} cannot be read: {reason}", file=sys.stderr)
    status = 1
    continue""".replace("ACCEPTED", accepted_formats())
"""Lines of a loop that read ``photo`` from the file ``path`` with `reader`.

A file that cannot be read leads to a sentence, ``status`` 1, and the next file.
"""
RESIZED = """\
def resized(x, sides):
    # Bilinear without antialiasing, as in training: filters of Pillow average when they shrink.
    for axis, side in enumerate(sides[::-1]):
        last = x.shape[axis] - 1
        place = ((np.arange(side) + 0.5) * x.shape[axis] / side - 0.5).clip(0, last)
        low = place.astype(int)
        share = np.float32(place - low).reshape(-1, *[1] * (x.ndim - axis - 1))
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, last), axis) * share
    return x"""
"""Function that resizes an array, ``(H, W)`` or ``(H, W, C)``, to width and height ``sides``."""
_NORMALISED = "RGB, divided by 255, minus the mean, divided by the standard deviation."


def reader(*, upright: bool) -> str:
    """Function ``read`` of a path, which returns an RGB image as `src.decoding.decode` does.

    Args:
        upright: Whether its EXIF orientation is applied.
    """
    text = _READ.replace("FORMATS", str(FORMATS))
    if upright:
        return text.replace("UPRIGHT", "ImageOps.exif_transpose(photo)")
    return text.replace("    photo = UPRIGHT\n", "")


def is_known(settings: Mapping[str, Any]) -> bool:
    """Whether the settings say how an image is prepared."""
    sized = any(settings.get(name) for name in ("image_size", *_SCALES))
    return sized and {"mean", "std"} <= settings.keys()


def read_by_caller(script: str | None, *, upright: bool) -> str:
    """What every program does before it gives an image to a file, as a list.

    Args:
        script: Name of a script whose function ``read`` does it, if there is one.
        upright: Whether the EXIF orientation is applied.
    """
    turned = (
        "Apply the EXIF orientation of the image file (`upright`; with Pillow:"
        " `ImageOps.exif_transpose(photo)`)."
        if upright
        else "Use the image as it is stored, without its EXIF orientation (`upright` is False)."
    )
    steps = f"""\
- {turned}
- Convert it to RGB of 8 bits. Scale images of more bits before: `convert("RGB")` of Pillow would
  make most of their pixels white."""
    return f"{steps}\n\nThe function `read` of `{script}` does both; copy it." if script else steps


def described(result: Result | None, settings: Mapping[str, Any]) -> str:
    """How an image is prepared, before a list of the settings.

    Args:
        result: What the network predicts.
        settings: Preprocessing of the recipe.
    """
    if not is_known(settings):
        return _NORMALISED
    if "image_size" in settings:
        side, short, resample = _crop(settings)
        return (
            f"Resize the shorter side to {short} pixels ({resample} with antialiasing, as Pillow"
            f" does it; `image_size` divided by `crop_pct`), and crop {side} x {side} pixels at the"
            f" centre. {_NORMALISED}"
        )
    scale = _scale(settings)
    text = (
        "Resize (bilinear without antialiasing, rounded to whole grey values) until the longer side"
        f" has at most {max(scale)} pixels and the shorter one at most {min(scale)}."
    )
    if isinstance(result, LabelMapResult):
        text += f" Resize again, to sides rounded up to multiples of {_divisor(settings)}."
    text += f" {_NORMALISED}"
    if isinstance(result, RegionResult):
        text += f" Pad with zeros below and right to multiples of {result.divisor}."
    return text


def prepared(result: Result | None, settings: Mapping[str, Any]) -> list[str]:
    """Lines that prepare ``image``, ``(1, 3, H, W)`` float32, from ``photo``.

    They use the function `RESIZED` for detectors and segmentors, whose recipes resize with OpenCV;
    it rounds some grey values differently. Resizes of classifiers are Pillow's.

    Args:
        result: What the network predicts.
        settings: Preprocessing of the recipe, see `is_known`.
    """
    mean, std = settings["mean"], settings["std"]
    if "image_size" in settings:
        side, short, resample = _crop(settings)
        lines = [
            f"sides = [side * {short} // min(photo.size) for side in photo.size]",
            f"small = photo.resize(sides, Image.{resample.upper()})",
            f"left, top = [round((side - {side}) / 2) for side in small.size]",
            f"pixels = np.asarray(small.crop((left, top, left + {side}, top + {side})))",
        ]
    else:
        scale = _scale(settings)
        lines = [
            f"scale = min({max(scale)} / max(photo.size), {min(scale)} / min(photo.size))",
            "sides = [max(1, int(side * scale + 0.5)) for side in photo.size]",
            "pixels = np.floor(resized(np.asarray(photo), sides) + 0.5)",
        ]
        if isinstance(result, LabelMapResult):
            divisor = _divisor(settings)
            lines.append(f"sides = [-(-side // {divisor}) * {divisor} for side in sides]")
            lines.append("pixels = np.floor(resized(pixels, sides) + 0.5)  # again, as in training")
    lines += [
        f"pixels = (pixels / 255 - {mean}) / {std}",
        "image = pixels.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, H, W)",
    ]
    if not isinstance(result, RegionResult):
        return lines
    return [
        *lines,
        "height, width = image.shape[2:]  # without padding",
        f"padding = [(0, 0), (0, 0), (0, -height % {result.divisor}), (0, -width % "
        f"{result.divisor})]",
        "image = np.pad(image, padding)",
    ]


def _crop(settings: Mapping[str, Any]) -> tuple[int, int, str]:
    """Side of the crop, shorter side before it, and filter."""
    side = int(settings["image_size"])
    short = int(side / float(settings.get("crop_pct", 1.0)))
    return side, short, str(settings.get("interpolation", "bicubic"))


def _scale(settings: Mapping[str, Any]) -> Any:
    return next(settings[name] for name in _SCALES if settings.get(name))


def _divisor(settings: Mapping[str, Any]) -> int:
    return int(settings.get("size_divisor", 32))
