"""Make the label maps of Cityscapes, ``*_labelTrainIds.png``, from ``*_polygons.json``.

The rules are those of the Cityscapes scripts: polygons are drawn in the order of the file, deleted
ones and number plates are left out, ``cargroup`` counts as ``car``, and all other labels than the
19 evaluated classes become 255 (unlabelled). Existing label maps are kept.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from src import files
from src.data.classes.cityscapes import (
    CITYSCAPES_IGNORED,
    CITYSCAPES_NAMES,
    CITYSCAPES_NOT_DRAWN,
)
from src.decoding import MAX_PIXELS
from src.errors import MALFORMED_CONTENT, UserError, agreed, counted
from src.types import IGNORE_LABEL

_POLYGONS, _LABELS = "_polygons.json", "_labelTrainIds.png"
_TRAIN_IDS = dict.fromkeys(CITYSCAPES_IGNORED, IGNORE_LABEL) | {
    name: number for number, name in enumerate(CITYSCAPES_NAMES)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add(
        "--root",
        type=Path,
        default=Path("data/cityscapes"),
        help="folder with gtFine, and optionally gtCoarse (%(default)s)",
    )
    add("--force", action="store_true", help="replace existing label maps")
    add("--workers", type=int, default=4, help="threads (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write a label map beside each file of polygons.

    Raises:
        UserError: If there are none, or one is damaged.
    """
    found = sorted(args.root.glob(f"gt*/*/*/*{_POLYGONS}"))
    if not found:
        raise UserError(
            f"There are no files {args.root}/gtFine/<split>/<city>/*{_POLYGONS}; unpack "
            "gtFine_trainvaltest.zip there, or set --root."
        )
    missing = [path for path in found if args.force or not label_map_of(path).is_file()]
    with ThreadPool(max(1, args.workers)) as pool:
        for _ in pool.imap(_write, missing):
            pass  # iterating over the results raises errors of the threads
    there = len(found) - len(missing)
    print(
        f"{args.root}: wrote {counted(len(missing), 'label map')}, {there} already"
        f" {agreed(there, 'exists', 'exist')}"
    )


def _write(polygons: Path) -> None:
    files.write_image(label_map_of(polygons), draw_label_map(polygons))


def label_map_of(polygons: Path) -> Path:
    """File of the label map beside a file of polygons."""
    return polygons.with_name(polygons.name.removesuffix(_POLYGONS) + _LABELS)


def draw_label_map(path: Path) -> Image.Image:
    """Label map of train ids of a file of polygons.

    Raises:
        UserError: If it is damaged or has an unknown label.
    """
    try:
        content = json.loads(path.read_bytes())
        size = int(content["imgWidth"]), int(content["imgHeight"])
        objects = [_object(entry) for entry in content["objects"] if not entry.get("deleted")]
    except (OSError, *MALFORMED_CONTENT) as error:
        raise UserError(
            f"{path} is not a file of Cityscapes polygons ({type(error).__name__}: {error}); "
            "expected imgWidth, imgHeight, and objects with label and polygon."
        ) from error
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{path} describes an image of {size[0]}x{size[1]} pixels.")
    image = Image.new("L", size, IGNORE_LABEL)
    pen = ImageDraw.Draw(image)
    for name, points in objects:
        if name == CITYSCAPES_NOT_DRAWN:
            continue
        if name not in _TRAIN_IDS:
            raise UserError(f"{path} has an object with the label {name!r}, which is unknown.")
        if len(points) >= 2:
            pen.polygon(points, fill=_TRAIN_IDS[name])
    return image


def _object(entry: dict[str, Any]) -> tuple[str, list[tuple[float, float]]]:
    name = str(entry["label"])
    if name not in _TRAIN_IDS:
        name = name.removesuffix("group")
    return name, [(float(x), float(y)) for x, y in entry["polygon"]]
