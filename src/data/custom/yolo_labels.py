"""Label files of YOLO: one object per line, relative to the size of the image."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from src.data.formats.faults import EntryError, Faults
from src.errors import counted

_MAX_CLASS = 100_000  # if the number of classes is not known
_TOLERANCE = 0.01  # beyond the image, from rounding; clipped
_EXPECTED = (
    "expected `class x y width height` (centre and size, relative to the image, 0 to 1) or "
    "`class x1 y1 x2 y2 x3 y3 ...` (a polygon)"
)


@dataclass(frozen=True)
class Box:
    """An object.

    Attributes:
        label: Class, from 0.
        corners: Left, top, right and bottom, from 0 to 1.
        polygon: ``x1, y1, x2, y2, ...``, from 0 to 1; empty for a box.
    """

    label: int
    corners: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()


def read_labels(
    path: Path, classes: int | None, has_polygons: bool = True, faults: Faults | None = None
) -> list[Box]:
    """Read a label file.

    Args:
        path: The file.
        classes: Number of classes; None if it is not known.
        has_polygons: Whether more than five numbers in a line are a polygon; otherwise they are
            key points after a box, which are left out.
        faults: Where wrong lines are noted; without it, the first one is an error.

    Returns:
        The objects of the lines that are right.

    Raises:
        UserError: If a line is wrong; the message names file and line.
    """
    boxes = []
    with faults.noted() if faults else nullcontext():
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                with faults.noted() if faults else nullcontext():
                    where = f"Line {number} of {path}"
                    boxes.append(_box(line.split(), where, classes, has_polygons))
    return boxes


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise EntryError(
            f"The label file {path} is not UTF-8 text; {_EXPECTED}.",
            "label files that are not UTF-8 text",
        ) from error


def _box(fields: list[str], where: str, classes: int | None, has_polygons: bool) -> Box:
    shown = " ".join(fields)[:60]
    try:
        label, values = float(fields[0]), [float(field) for field in fields[1:]]
    except ValueError:
        raise EntryError(
            f"{where} is not a label: {shown!r}; {_EXPECTED}.", "lines that are no labels"
        ) from None
    is_polygon = has_polygons and len(values) >= 6 and len(values) % 2 == 0
    if not has_polygons:
        values = values[:4]
    if not is_polygon and len(values) != 4:
        raise EntryError(
            f"{where} has {counted(len(fields), 'number')}: {shown!r}; {_EXPECTED}.",
            "lines with too few or too many numbers",
        )
    most = _MAX_CLASS if classes is None else classes - 1
    if not label.is_integer() or not 0 <= label <= most:
        raise EntryError(
            f"{where} has the class {fields[0]}; expected an integer from 0 to {most}.",
            "lines with an unknown class",
        )
    if is_polygon:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        x, y, width, height = values
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in (*values, *corners)):
        raise EntryError(
            f"{where} has numbers outside of 0 to 1: {shown!r}; {_EXPECTED}. Divide pixels by the "
            "width and height of the image.",
            "lines with numbers outside of 0 to 1",
        )
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in corners)
    polygon = tuple(min(max(v, 0.0), 1.0) for v in values) if is_polygon else ()
    return Box(int(label), (left, top, right, bottom), polygon)
