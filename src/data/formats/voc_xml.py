"""Read annotations of PASCAL VOC: a list of images, and an xml file for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from src.data.formats.image_sizes import read_sizes
from src.decoding import BrokenImageError
from src.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    root: Path, splits: Sequence[str], ids: Mapping[str, int], max_pixels: int
) -> dict[str, list[Any]]:
    """Images and boxes as the content of a COCO file.

    Coordinates are counted from 0, as in the official code. Difficult objects are marked
    ``ignore``. Objects of other classes are left out. An image without an xml file, as in the test
    set of 2012, has no annotations.

    Args:
        root: ``VOCdevkit``.
        splits: Year and list, such as ``"VOC2007/trainval"``.
        ids: Category id of each class name.
        max_pixels: Larger images without an xml file count as broken.

    Raises:
        UserError: If a file is missing or malformed.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for split in splits:
        year, _, part = split.rpartition("/")
        for name in _names(root / year / "ImageSets" / "Main" / f"{part}.txt"):
            number, path = f"{year}/{name}", root / year / "Annotations" / f"{name}.xml"
            file_name = f"{year}/JPEGImages/{name}.jpg"
            if path.is_file():
                size, objects = _read(path, ids)
            else:
                size, objects = _size_of_image(root / file_name, max_pixels), []
            height, width = size
            images.append({"id": number, "file_name": file_name, "height": height, "width": width})
            annotations += [found | {"image_id": number} for found in objects]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(
            f"The list of images {path} does not exist; check data.root and the splits "
            "(data.train_splits, data.val_splits), which are a year and a list such as "
            "VOC2007/trainval."
        )
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"The list of images {path} is not UTF-8 text.") from error


def _size_of_image(path: Path, max_pixels: int) -> tuple[int, int]:
    (size,) = read_sizes([str(path)], max_pixels)
    if isinstance(size, BrokenImageError):
        raise size
    return size


def _read(path: Path, ids: Mapping[str, int]) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    try:
        tree = ElementTree.parse(path).getroot()
        size = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
        found = []
        for item in tree.iter("object"):
            number = ids.get(_text(item, "name"))
            if number is None:
                continue
            x1, y1, x2, y2 = (float(_text(item, f"bndbox/{corner}")) - 1 for corner in _CORNERS)
            found.append(
                {
                    "category_id": number,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                    "ignore": int(item.findtext("difficult") or 0),
                }
            )
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # unknown encodings, too
        raise UserError(f"The annotation file {path} cannot be read: {error}.") from error
    return size, found


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"it has no <{name.rpartition('/')[2]}> in <{element.tag}>")
    return text.strip()
