"""COCO annotation files of a folder, by split, and the folders of their images.

Layouts: ``<split>/_annotations.coco.json`` beside its images, as labelling tools export it, and
``annotations/instances_<split>.json`` as in COCO itself.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from src.data.formats.coco_entries import file_name
from src.data.formats.coco_json import parse_json
from src.data.formats.splits import SPLITS, split_of
from src.errors import MALFORMED_CONTENT, UserError

_DEPTH = 3
_MAX_FILES = 20  # that are read to find out what a folder holds
_USUAL = ("_annotations.coco.json", "instances_")


def find_annotations(folder: Path) -> dict[str, Path]:
    """The annotation file of each split.

    Args:
        folder: The dataset.

    Returns:
        Files by split; a single file whose name is no split is for training.

    Raises:
        UserError: If there is none, several are for the same split, or none is for training.
    """
    files = [
        path
        for path in sorted(folder.rglob("*.json"))
        if len(path.relative_to(folder).parts) <= _DEPTH and not path.name.startswith(".")
    ]
    by_split: dict[str, list[Path]] = {}
    for path in files:
        if (split := _split_of_file(path, folder)) is not None:
            by_split.setdefault(split, []).append(path)
    if not by_split and len(files) == 1:
        return {"train": files[0]}
    found = ", ".join(str(path.relative_to(folder)) for path in files[:10]) or "no json file"
    expected = (
        "Expected train/_annotations.coco.json (and valid, test), or annotations/instances_"
        "train.json; or give the annotation file itself."
    )
    for split, paths in by_split.items():
        usual = [path for path in paths if path.name.startswith(_USUAL)] or paths
        if len(usual) > 1:
            names = " and ".join(str(path.relative_to(folder)) for path in usual[:5])
            raise UserError(f"{folder} has several files of the {split} split: {names}. {expected}")
        by_split[split] = usual
    if "train" not in by_split:
        raise UserError(f"{folder} has no annotation file for training; found: {found}. {expected}")
    return {split: by_split[split][0] for split in SPLITS if split in by_split}


def looks_like_coco(folder: Path) -> Path | None:
    """A COCO annotation file in a folder, if there is one; only its keys are looked at."""
    paths = (
        path for depth in range(_DEPTH) for path in sorted(folder.glob("*/" * depth + "*.json"))
    )
    for path in itertools.islice(paths, _MAX_FILES):
        content = path.read_bytes() if path.is_file() else b""
        if b'"images"' in content and b'"annotations"' in content:
            return path
    return None


def find_images(annotations: Path, root: Path) -> Path:
    """The folder that the file names of an annotation file start in.

    Args:
        annotations: The file.
        root: Folder of the dataset.

    Raises:
        UserError: If the file is no COCO json, or no folder nearby has the first image.
    """
    content = parse_json(annotations)
    try:
        first = file_name(content["images"][0])
        if not isinstance(first, str):
            raise TypeError("no file name")
    except MALFORMED_CONTENT as error:
        raise UserError(
            f"{annotations} is not a COCO annotation file with images: it has no list 'images' of "
            "objects with 'file_name' or 'coco_url'."
        ) from error
    year_or_split = [part for part in re.split(r"[-_. ]", annotations.stem) if split_of(part)]
    names = [*year_or_split, *(["val"] if "valid" in year_or_split else [])]
    near = [annotations.parent, annotations.parent / "images"]
    for base in dict.fromkeys((root, annotations.parent.parent)):
        near += [base / name for name in names]
        near += [base / "images" / name for name in names]
        near += [base / "images" / annotations.parent.name, base / "images", base]
    for folder in near:
        if (folder / first).is_file():
            return folder
    raise UserError(
        f"The first image of {annotations}, {first}, is in none of the folders nearby; give the "
        "folder that its file names start in with --images."
    )


def neighbours(annotations: Path) -> list[str]:
    """Annotation files of other splits beside the folder of this one."""
    split = split_of(annotations.parent.name)
    if split is None:
        return []
    others = annotations.parent.parent.glob(f"*/{annotations.name}")
    return sorted(str(p) for p in others if split_of(p.parent.name) not in (None, split))


def _split_of_file(path: Path, root: Path) -> str | None:
    parts = path.relative_to(root).parts
    words = [*re.split(r"[-_. ]", path.stem), *reversed(parts[:-1])]
    return next((split for word in words if (split := split_of(word))), None)
