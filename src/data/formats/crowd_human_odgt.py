"""Read annotations of CrowdHuman: a json object per line (``.odgt``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from src.data.formats.coco_entries import shown
from src.errors import MALFORMED_CONTENT, UserError

Body = Literal["fbox", "vbox", "hbox"]


def read_odgt(path: Path, body: Body) -> dict[str, list[dict[str, Any]]]:
    """Persons of each image as COCO annotations without ``image_id``.

    Boxes that are no person (``tag`` ``mask``: crowds, reflections) or are marked ``ignore`` get
    ``ignore`` and ``iscrowd``: COCO's evaluation looks at ``iscrowd`` alone.

    Args:
        path: The file.
        body: Which box: the full body, its visible part, or the head.

    Returns:
        By image id.

    Raises:
        UserError: If the file is missing or malformed, or has an image twice.
    """
    if not path.is_file():
        raise UserError(
            f"The annotation file {path} does not exist; check data.root and the names of the "
            "annotation files (data.train_annotations, data.val_annotations)."
        )
    found: dict[str, list[dict[str, Any]]] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name = str(entry["ID"])
                persons = [_annotation(box, body) for box in entry["gtboxes"]]
            except MALFORMED_CONTENT as error:
                raise UserError(
                    f"{path}, line {number} is not an image of CrowdHuman: {shown(error)}; "
                    "expected an object with 'ID' and 'gtboxes'."
                ) from error
            if name in found:
                raise UserError(f"{path}, line {number} is a second line of the image {name!r}.")
            found[name] = persons
    return found


def _annotation(box: dict[str, Any], body: Body) -> dict[str, Any]:
    is_person = box["tag"] == "person"
    of_head = box.get("head_attr" if body == "hbox" else "extra", {})
    is_ignored = not is_person or bool(of_head.get("ignore", 0))
    x, y, width, height = map(float, box[body])
    return {
        "category_id": 1,
        "bbox": [x, y, width, height],
        "iscrowd": int(is_ignored),
        "ignore": int(is_ignored),
    }
