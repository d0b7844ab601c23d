"""Annotation files of iNaturalist 2018, and the encoding of dates and places.

A split has two json files: one in COCO's format with one annotation per image (``train2018.json``),
and one with the date and the place of each image (``train2018_locations.json``). Images,
annotations and locations belong together by their order, as in the official code
(OpenGVLab/InternImage, MIT).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import UserError

NUM_CLASSES = 8142
_DATE = re.compile(r"\d+-0*(\d{1,2})-\d")
_MAX_DEGREES = 1e6


@dataclass(frozen=True)
class INaturalistSplit:
    """Content of the annotation files of a split.

    Attributes:
        files: Image files relative to the root of the dataset.
        labels: Class index of each image: the position of its category in the file.
        class_names: Names of the categories in label order.
        temporal: Encoded dates, float32, ``(N, 4)``.
        spatial: Encoded places, float32, ``(N, 3)``.
    """

    files: list[str]
    labels: list[int]
    class_names: list[str]
    temporal: NDArray[np.float32]
    spatial: NDArray[np.float32]

    @property
    def without_date(self) -> int:
        """Number of images without a date."""
        return int((self.temporal == 0).all(1).sum())

    @property
    def without_place(self) -> int:
        """Number of images without a place."""
        return int((self.spatial == 0).all(1).sum())


def encode_date(date: Any) -> tuple[float, float, float, float]:
    """Sine and cosine of the month, and two zeros where the official code has room for the hour.

    Args:
        date: Text that starts with year-month-day. Anything else is an unknown date, four zeros.
    """
    found = _DATE.match(date) if isinstance(date, str) else None
    month = int(found[1]) if found else 0
    if not 1 <= month <= 12:
        return 0.0, 0.0, 0.0, 0.0
    angle = 2 * math.pi * month / 12
    return math.sin(angle), math.cos(angle), 0.0, 0.0


def encode_place(latitude: Any, longitude: Any) -> tuple[float, float, float]:
    """Point on the unit sphere.

    As in the official code, a latitude or longitude of exactly 0 counts as unknown.

    Args:
        latitude: Degrees to the north. ``None`` or another value that is no number up to a million
            is an unknown place, three zeros.
        longitude: Degrees to the east.
    """
    if not (_is_number(latitude) and _is_number(longitude) and latitude and longitude):
        return 0.0, 0.0, 0.0
    lat, lon = math.radians(latitude), math.radians(longitude)
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def read_split(annotations: Path, locations: Path | None) -> INaturalistSplit:
    """Read the two files of a split.

    Args:
        annotations: The annotation file.
        locations: The file of dates and places; ``None`` leaves all of them unknown.

    Raises:
        UserError: If a file is missing or damaged, or the two do not belong together.
    """
    content = _read_json(annotations, dict)
    images, boxes, categories = (
        _entries(content, part, annotations) for part in ("images", "annotations", "categories")
    )
    if len(images) != len(boxes):
        raise UserError(
            f"{annotations} has {len(images)} images and {len(boxes)} annotations; expected one"
            " annotation per image, in the same order."
        )
    label_of = {_value(entry, "id", annotations): label for label, entry in enumerate(categories)}
    if len(label_of) < len(categories):
        raise UserError(f"{annotations} has several categories with the same id.")
    labels = [
        _label(label_of, _value(entry, "category_id", annotations), annotations) for entry in boxes
    ]
    wrong = next(
        (i for i, box in enumerate(boxes) if box.get("image_id") != images[i].get("id")), None
    )
    if wrong is not None:
        raise UserError(
            f"Annotation {wrong} of {annotations} belongs to the image"
            f" {boxes[wrong].get('image_id')!r}, but image {wrong} has the id"
            f" {images[wrong].get('id')!r}; expected both lists in the same order."
        )
    files = [str(_value(entry, "file_name", annotations)) for entry in images]
    places = [] if locations is None else _read_json(locations, list)
    if locations is not None and len(places) != len(images):
        raise UserError(
            f"{locations} has {len(places)} entries, but {annotations} has {len(images)} images;"
            " expected one entry per image, in the same order."
        )
    temporal = np.zeros((len(files), 4), np.float32)
    spatial = np.zeros((len(files), 3), np.float32)
    for row, entry in enumerate(places):
        if isinstance(entry, Mapping):
            temporal[row] = encode_date(entry.get("date"))
            spatial[row] = encode_place(entry.get("lat"), entry.get("lon"))
    names = _distinct([str(entry.get("name", entry["id"])) for entry in categories], categories)
    return INaturalistSplit(files, labels, names, temporal, spatial)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= _MAX_DEGREES  # NaN is not


def _read_json(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise UserError(
            f"The file {path} does not exist; expected the annotation files of iNaturalist 2018 and"
            " the files of dates and places (train2018_locations.json, val2018_locations.json)."
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a json file: {str(error)[:120]}.") from error
    if not isinstance(content, kind):
        raise UserError(
            f"{path} holds a {type(content).__name__}; expected a"
            f" {'list' if kind is list else 'dictionary'}."
        )
    return content


def _entries(content: Mapping[str, Any], part: str, path: Path) -> list[dict[str, Any]]:
    found = content.get(part)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{path} has no list of {part}; expected images, annotations, categories.")
    if not found:
        raise UserError(f"The list of {part} in {path} is empty.")
    return found


def _value(entry: Mapping[str, Any], key: str, path: Path) -> Any:
    value = entry.get(key)
    if not isinstance(value, int | str):
        raise UserError(f"An entry of {path} has no {key!r}: {str(entry)[:120]}.")
    return value


def _label(label_of: Mapping[Any, int], category: Any, path: Path) -> int:
    if category not in label_of:
        raise UserError(f"{path} has an annotation of category {category!r}, which it lacks.")
    return label_of[category]


def _distinct(names: Sequence[str], categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names, with the id in brackets where several categories have the same one."""
    count = Counter(names)
    return [
        f"{name} ({entry['id']})" if count[name] > 1 else name
        for name, entry in zip(names, categories, strict=True)
    ]
