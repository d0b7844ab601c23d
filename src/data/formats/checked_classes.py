"""Fields of COCO files that say which classes were checked in an image, and how frequent they are.

LVIS has them (``neg_category_ids``, ``not_exhaustive_category_ids``, ``frequency``). Readers of
other formats add ``pos_category_ids``, the classes known to be in an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.data.formats.coco_entries import shown
from src.errors import UserError
from src.types import ImageLabels

_FIELDS = {
    "present": "pos_category_ids",
    "absent": "neg_category_ids",
    "not_exhaustive": "not_exhaustive_category_ids",
}
_FREQUENCIES = ("r", "c", "f")


def read_image_labels(
    images: Sequence[Mapping[str, Any]], label_of: Mapping[int, int], path: Path
) -> list[ImageLabels] | None:
    """Classes that were checked in each image.

    Args:
        images: Checked entries ``images`` of the file.
        label_of: Label of each category id.
        path: The file.

    Returns:
        One per image; None if no image has any of the fields.

    Raises:
        UserError: If a field is not a list of category ids of the file.
    """
    if not any(field in image for image in images for field in _FIELDS.values()):
        return None
    return [
        ImageLabels(
            **{
                name: tuple(_labels(image, field, label_of, path))
                for name, field in _FIELDS.items()
            }
        )
        for image in images
    ]


def _labels(
    image: Mapping[str, Any], field: str, label_of: Mapping[int, int], path: Path
) -> Iterable[int]:
    ids = image.get(field, [])
    if not isinstance(ids, list):
        raise UserError(
            f"{path}: the image {shown(image['id'])} has {field} {shown(ids)}; expected a list of "
            "category ids."
        )
    for number in ids:
        if type(number) is not int or number not in label_of:
            raise UserError(
                f"{path}: the image {shown(image['id'])} has {shown(number)} in {field}, which is "
                "not one of the file's category ids."
            )
        yield label_of[number]


def read_frequencies(
    categories: Sequence[Mapping[str, Any]], numbers: Iterable[int]
) -> tuple[str, ...]:
    """Frequency of each class: ``"r"``, ``"c"`` or ``"f"``.

    Args:
        categories: Checked entries ``categories`` of the file.
        numbers: Category ids in label order.

    Returns:
        Empty if a class has none.
    """
    found = {entry["id"]: entry["frequency"] for entry in categories if "frequency" in entry}
    frequencies = tuple(found.get(number, "") for number in numbers)
    return frequencies if all(value in _FREQUENCIES for value in frequencies) else ()
