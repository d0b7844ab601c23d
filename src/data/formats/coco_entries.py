"""Checks of the entries of COCO annotation files.

Everything that pycocotools or OpenCV will read is checked here: neither validates its input, and a
polygon with huge coordinates exhausts the memory.
"""

from __future__ import annotations

import itertools
import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.formats.faults import EntryError
from src.data.formats.run_length import run_lengths
from src.errors import UserError
from src.types import ImageId

Annotation = dict[str, Any]

MAX_COORDINATE = 1e6
"""Largest coordinate in pixels."""

MAX_POLYGON_COST = 2_000_000
"""Largest cost of drawing the polygons of an annotation, see `polygon_cost`."""

_MAX_PIXELS = 2**31 - 1  # pycocotools counts pixels with 32 bits
_MAX_CLASS_NAME = 1000  # characters
_MAX_ID = 2**63
_MAX_FILE_NAME, _MAX_PATH = 255, 4096  # bytes that file systems accept

_WRONG_BBOX = "annotations with a wrong bbox"  # kind of an `EntryError`

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlevel = 3


def shown(value: Any) -> str:
    """Representation of a value from a file for a message, shortened."""
    return _repr.repr(value)


@dataclass(frozen=True)
class ImageEntry:
    """An entry of ``images``: its id, its file, and its height and width in pixels."""

    id: ImageId
    file_name: str
    size: tuple[int, int]

    def path(self, folder: Path, annotations: Path) -> Path:
        """The file under a folder.

        Args:
            folder: Folder of the images.
            annotations: The annotation file, for the message.

        Raises:
            UserError: If the file name points outside the folder.
        """
        path = folder / self.file_name
        if Path(self.file_name).is_absolute() and _leads_out(os.path.relpath(path, folder)):
            raise UserError(
                f"{annotations}: the image {shown(self.id)} has the file name "
                f"{shown(self.file_name)}, which is outside the folder {folder}."
            )
        return path


def check_categories(entries: list[Any], path: Path) -> dict[int, str]:
    """Id and name of every category, sorted by id."""
    found: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not {"id", "name"} <= entry.keys():
            raise UserError(f"{path}: a category must have 'id' and 'name', got {shown(entry)}.")
        number, name = entry["id"], entry["name"]
        if not _is_id(number) or isinstance(number, str):
            raise UserError(
                f"{path}: the category {shown(name)} has the id {shown(number)}; expected an "
                "integer."
            )
        if number in found:
            raise UserError(f"{path} lists the category id {number} twice.")
        if isinstance(name, (dict, list)) or not 1 <= len(str(name)) <= _MAX_CLASS_NAME:
            raise UserError(
                f"{path}: the category {number} has the name {shown(name)}; expected text of up to "
                f"{_MAX_CLASS_NAME} characters."
            )
        if not _is_encodable(str(name)):
            raise UserError(
                f"{path}: the category {number} has the name {shown(name)}, which is not valid "
                "text."
            )
        found[number] = str(name)
    if not found:
        raise UserError(f"{path} lists no categories, so there is nothing to detect.")
    return dict(sorted(found.items()))


def find_categories(
    listed: Mapping[int, str], classes: Mapping[str, int], path: Path
) -> dict[int, str]:
    """Id and name of every class in label order, with the ids of the file where it has them.

    Args:
        listed: Id and name of the file's categories.
        classes: Names in label order, each with the id it has if the file lists none.
        path: The file.
    """
    unknown = [name for name in listed.values() if name not in classes]
    if unknown:
        raise UserError(
            f"{path} lists the category {unknown[0]!r}, which is not among the "
            f"{len(classes)} names of data.class_names; leave class_names out to use the names of "
            "the file."
        )
    name, times = Counter(listed.values()).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{path} lists {times} categories named {name!r}, so data.class_names cannot tell them "
            "apart; leave class_names out, or give them different names."
        )
    number_of = {name: number for number, name in listed.items()}
    spare = itertools.count(max([*listed, *classes.values()]) + 1)
    return {
        number_of.get(name, next(spare) if wish in listed else wish): name
        for name, wish in classes.items()
    }


def check_images(entries: list[Any], path: Path) -> list[ImageEntry]:
    """All entries of ``images``."""
    images = [check_image(entry, path) for entry in entries]
    ids = {image.id for image in images}
    if len(ids) < len(images):
        twice, _ = Counter(image.id for image in images).most_common(1)[0]
        raise UserError(f"{path} lists several images with the same id {shown(twice)}.")
    if len(kinds := {type(number): number for number in ids}) > 1:
        raise UserError(
            f"{path} has images with integers and with text as id ("
            f"{' and '.join(sorted(map(shown, kinds.values())))}); expected one of the two."
        )
    return images


def check_image(entry: Any, path: Path) -> ImageEntry:
    """An entry of ``images``."""
    needed = ("id", "height", "width")
    name = file_name(entry)
    if name is None or any(key not in entry for key in needed):
        number = entry.get("id", entry) if isinstance(entry, dict) else entry
        raise EntryError(
            f"{path}: the image {shown(number)} must have 'id', 'file_name' (or 'coco_url'), "
            "'height' and 'width'.",
            "images without a value that is needed",
        )
    number = entry["id"]
    if not _is_id(number):
        raise UserError(
            f"{path}: an image has the id {shown(number)}; expected an integer or text."
        )
    height, width = entry["height"], entry["width"]
    if not (
        _is_number(height)
        and _is_number(width)
        and min(height, width) >= 1
        and int(height) * int(width) <= _MAX_PIXELS
    ):
        raise UserError(
            f"{path}: the image {shown(number)} has height {shown(height)} and width "
            f"{shown(width)}; expected two numbers of pixels."
        )
    if (fault := _fault_of_file_name(name)) is not None:
        raise UserError(
            f"{path}: the image {shown(number)} has the file name {shown(name)}, {fault}."
        )
    return ImageEntry(number, name, (int(height), int(width)))


def file_name(entry: Any) -> Any:
    """File name of an entry of ``images``, not checked, or ``None`` if it has none.

    LVIS has no ``file_name`` but a ``coco_url``, whose last two parts are folder and file:
    ``train2017/000000391895.jpg``.
    """
    if not isinstance(entry, dict):
        return None
    url = entry.get("coco_url")
    if "file_name" in entry or not isinstance(url, str):
        return entry.get("file_name")
    _, _, _, *parts = [*url.split("/"), "", "", ""]  # without protocol and host
    return "/".join([part for part in parts if part][-2:])


def _fault_of_file_name(name: Any) -> str | None:
    if not isinstance(name, str) or not name:
        return "which is not text"
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return "which is not valid text"
    if b"\0" in encoded:
        return "which holds a zero byte"
    parts = encoded.split(b"/")
    if len(encoded) > _MAX_PATH or max(map(len, parts)) > _MAX_FILE_NAME:
        return f"which has more than {_MAX_FILE_NAME} bytes"
    if b".." in parts and _leads_out(os.path.normpath(name)):
        return "which is outside the folder of the images"
    return None


def check_annotation(
    entry: Any,
    position: int,
    label_of: Mapping[int, int],
    sizes: Mapping[ImageId, tuple[int, int]],
    path: Path,
) -> Annotation:
    """An entry of ``annotations`` with missing values filled in.

    Args:
        entry: As in the file.
        position: Its index in the list, which identifies it in messages if it has no id.
        label_of: Label of each category id.
        sizes: Height and width of each image by its id.
        path: The file.
    """
    number = entry.get("id") if isinstance(entry, dict) else None
    name = f"{path}: the annotation " + (
        f"at position {position} (without id)" if number is None else shown(number)
    )
    needed = ("image_id", "category_id", "bbox")
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        raise EntryError(
            f"{name} must have 'image_id', 'category_id' and 'bbox'.",
            "annotations without a value that is needed",
        )
    category, image = entry["category_id"], entry["image_id"]
    if not _is_id(category) or category not in label_of:
        raise EntryError(
            f"{name} has category_id {shown(category)}, which is not one of the file's "
            f"categories {_shorten(list(label_of))}.",
            "annotations with an unknown category_id",
        )
    if not _is_id(image) or image not in sizes:
        raise EntryError(
            f"{name} belongs to image_id {shown(image)}, which is not one of the file's images.",
            "annotations of an unknown image_id",
        )
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise EntryError(
            f"{name} has the bbox {shown(box)}; expected four numbers x, y, w, h.", _WRONG_BBOX
        )
    if max(map(abs, box)) > MAX_COORDINATE:
        raise EntryError(
            f"{name} has the bbox {shown(box)}; expected numbers up to {MAX_COORDINATE:,.0f} "
            "pixels.",
            _WRONG_BBOX,
        )
    area: Any = entry.get("area")
    if type(area) not in (int, float) or area != area:  # not a number
        area = box[2] * box[3]
    elif not abs(area) <= MAX_COORDINATE**2:
        raise UserError(f"{name} has the area {shown(area)}; expected numbers up to 1e12.")
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise UserError(f"{name} has iscrowd {shown(crowd)}; expected 0 or 1.")
    segmentation = entry.get("segmentation") or []
    if isinstance(segmentation, dict):
        _check_code(segmentation, sizes[image], name)
    else:
        _check_polygons(segmentation, name)
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "iscrowd": int(crowd or 0),
        "area": area,
        "segmentation": segmentation,
        "ignore": bool(entry.get("ignore")),
        "is_group_of": bool(entry.get("is_group_of")),
    }


def _check_polygons(segmentation: Any, name: str) -> None:
    lists = isinstance(segmentation, list) and all(isinstance(p, list) for p in segmentation)
    if not lists:
        raise UserError(
            f"{name} has a segmentation that is neither a list of polygons nor a run-length code."
        )
    numbers = list(itertools.chain.from_iterable(segmentation))
    for value in numbers:
        if not _is_number(value):
            raise UserError(
                f"{name} has a polygon with coordinates that are not numbers: {shown(value)}."
            )
        if abs(value) > MAX_COORDINATE:
            raise UserError(
                f"{name} has a polygon with the coordinate {shown(value)}; expected numbers up to "
                f"{MAX_COORDINATE:,.0f} pixels."
            )
    if (
        not numbers
        or polygon_cost(len(numbers) * (1 + max(numbers) - min(numbers)), len(segmentation))
        <= MAX_POLYGON_COST
    ):
        return  # an upper bound, which is cheaper than the exact length
    lengths = np.array([len(polygon) for polygon in segmentation], dtype=np.int64)
    outline = outlines(np.array(numbers, dtype=np.float64), lengths).sum()
    if polygon_cost(outline, len(lengths)) > MAX_POLYGON_COST:
        largest = MAX_POLYGON_COST / polygon_cost(1.0, len(lengths))
        raise UserError(
            f"{name} has {len(lengths)} polygons with an outline of {outline:,.0f} pixels, which "
            f"are too many to draw; expected up to {largest:,.0f} pixels for so many polygons."
        )


def outlines(coordinates: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Length of the outline of each polygon, plus one per corner.

    Args:
        coordinates: ``x, y, x, y, ...`` of all polygons, one after the other.
        lengths: Number of coordinates of each polygon; fewer than two have no outline.

    Returns:
        Sum of horizontal and vertical steps in pixels, shape of ``lengths``.
    """
    ends = np.cumsum(lengths)
    starts, some = ends - lengths, lengths >= 2
    result = lengths / 2.0
    if not some.any():
        return result
    steps = np.concatenate([[0.0], np.cumsum(np.abs(coordinates[2:] - coordinates[:-2]))])
    start, end = starts[some], ends[some]
    closing = np.abs(coordinates[start] - coordinates[end - 2])
    closing += np.abs(coordinates[start + 1] - coordinates[end - 1])
    result[some] += steps[end - 2] - steps[start] + closing
    return result


def polygon_cost(outline: Any, polygons: Any) -> Any:
    """Cost of drawing polygons with pycocotools; a unit is 100 bytes or some nanoseconds.

    Args:
        outline: Total length of their outlines in pixels.
        polygons: Number of polygons; each one is merged with all before it.
    """
    return outline * (1 + polygons / 1000)


def _check_code(code: dict[str, Any], size: tuple[int, int], name: str) -> None:
    if not {"size", "counts"} <= code.keys():
        raise UserError(f"{name} has a run-length code without 'size' or 'counts'.")
    if code["size"] != list(size):
        raise UserError(
            f"{name} has a run-length code of height and width {shown(code['size'])}, but its "
            f"image is {list(size)}."
        )
    try:
        runs = run_lengths(code["counts"])
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name} has a run-length code that cannot be read: {error}.") from error
    pixels = size[0] * size[1]
    # Check each run before their sum, which could overflow.
    wrong = runs[(runs < 0) | (runs > pixels)]
    if len(wrong):
        raise UserError(
            f"{name} has a run-length code with a run of {wrong[0]} pixels, but its image has "
            f"{pixels}."
        )
    if runs.sum() != pixels:
        raise UserError(
            f"{name} has a run-length code of {runs.sum()} pixels, but its image has {pixels}."
        )


def _leads_out(normal_path: str) -> bool:
    return Path(normal_path).parts[:1] == (os.pardir,)


def _is_id(value: Any) -> bool:
    if type(value) is int:  # a bool is no id
        return -_MAX_ID <= value < _MAX_ID
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < _MAX_ID
    return isinstance(value, float) and math.isfinite(value)


def _is_encodable(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _shorten(values: list[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
