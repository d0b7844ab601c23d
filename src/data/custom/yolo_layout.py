"""Where the images, labels and class names of a YOLO dataset are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.data.classes.class_names import class_names_of_option, read_class_names
from src.data.formats.image_files import is_image, list_images
from src.data.formats.splits import SPLITS, split_of
from src.errors import UserError, counted

_CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_EXPECTED = (
    "expected `train: images/train`, `val: images/val` and `names: [cat, dog]`, as in the data.yaml"
    " of YOLO datasets"
)


@dataclass(frozen=True)
class Dataset:
    """A dataset.

    Attributes:
        root: Its folder.
        splits: Images of each split.
        names: Class names in label order; None if they are not known.
        has_polygons: Whether lines of many numbers are polygons, not key points.
        notes: Notes for the user.
    """

    root: Path
    splits: dict[str, list[Path]]
    names: list[str] | None
    has_polygons: bool = True
    notes: list[str] = field(default_factory=list)


def label_file(image: Path) -> Path:
    """The label file of an image: in ``labels`` in place of ``images``, else beside it.

    The dataset may be in a folder of that name itself, so the file beside the image is returned
    if only that one exists.
    """
    parts = image.parts
    beside = image.with_suffix(".txt")
    if "images" not in parts[:-1]:
        return beside
    place = len(parts) - 2 - parts[-2::-1].index("images")
    inside = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
    return inside if inside.is_file() or not beside.is_file() else beside


def find_dataset(source: Path, names: list[str] | None) -> Dataset:
    """Find the images of each split and the class names.

    Args:
        source: ``data.yaml``, or a folder.
        names: Class names, if given.

    Raises:
        UserError: If there are no images, or the yaml file is not that of a dataset.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist; give data.yaml or the folder of the dataset.")
    given = None if names is None else class_names_of_option(names, first=0)
    if source.is_file():
        return _from_yaml(source, given)
    found = [path for path in sorted(source.glob("*.y*ml")) if "names" in _load(path)]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise UserError(f"{source} has several yaml files with class names: {listed}; give one.")
    return _from_yaml(found[0], given) if found else _from_folder(source, given)


def _from_folder(root: Path, names: list[str] | None) -> Dataset:
    images = [Path(path) for path in list_images(root)]
    if not images:
        raise UserError(f"{root} holds no images; give data.yaml or the folder of the dataset.")
    splits: dict[str, list[Path]] = {}
    for image in images:
        parents = image.relative_to(root).parts[:-1]
        part = next((found for name in parents if (found := split_of(name))), None)
        splits.setdefault(part or "train", []).append(image)
    files = [root / name for name in _CLASS_FILES if (root / name).is_file()]
    if names is None and files:
        names = read_class_names(str(files[0]), first=0)
    notes = [] if names else ["there are no class names; give them with --class-names"]
    return Dataset(root, _checked(splits, root), names, notes=notes)


def _from_yaml(path: Path, names: list[str] | None) -> Dataset:
    content = _load(path)
    root = path.parent
    if isinstance(content.get("path"), str):
        inside = root / content["path"]  # an absolute path replaces the folder
        root = inside if inside.is_dir() else root
    splits, notes = {}, []
    problems: list[str] = []
    for key, value in content.items():
        part = split_of(str(key))
        if part is not None and value:
            places = value if isinstance(value, list) else [value]
            with _noted(problems):
                found = [image for place in places for image in _images(place, root, path, key)]
                splits[part] = found
    with _noted(problems):
        names = names or _names(content, path)
    if problems:
        raise UserError("\n".join(problems))
    if splits.get("val") and splits["val"] == splits.get("train"):
        del splits["val"]
        notes.append("train and val are the same images, so some of them are set aside")
    return Dataset(root, _checked(splits, path), names, "kpt_shape" not in content, notes)


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Note a `UserError` instead of raising it."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def _checked(splits: dict[str, list[Path]], source: Path) -> dict[str, list[Path]]:
    if not splits.get("train"):
        raise UserError(f"{source} has no images for training; {_EXPECTED}.")
    return {part: splits[part] for part in SPLITS if splits.get(part)}


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as the date 2026-13-01
        raise UserError(f"{path} is not a yaml file; {_EXPECTED}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the yaml file of a dataset; {_EXPECTED}.")
    return content


def _names(content: dict[str, Any], path: Path) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[label] for label in range(len(names))]
    # Aliases of YAML can nest a short file into lists that take hours to print.
    if not isinstance(names, list) or not names or {list, dict} & set(map(type, names)):
        raise UserError(f"{path} has no list `names` of the classes from 0; {_EXPECTED}.")
    names = [str(name) for name in names]
    problems = []
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems.append(f"{path} has the class name {twice!r} twice; give different names.")
    if content.get("nc", len(names)) != len(names):
        problems.append(f"{path} has nc: {content['nc']}, but {counted(len(names), 'name')}.")
    if problems:
        raise UserError("\n".join(problems))
    return names


def _images(place: object, root: Path, source: Path, key: str) -> list[Path]:
    """Images of an entry such as ``images/train``: of a folder, a list in a text file, or one."""
    if not isinstance(place, str):
        raise UserError(f"{source} has {key}: {place!r}; {_EXPECTED}.")
    # Exports of labelling tools may say ../train/images for train/images beside the yaml file.
    tries = [root / place, root / place.removeprefix("../"), source.parent / place]
    found = next((path for path in tries if path.exists()), None)
    if found is None:
        raise UserError(f"{source} has {key}: {place}, but {tries[0]} does not exist.")
    if found.is_dir():
        return [Path(path) for path in list_images(found)]
    if is_image(found):
        return [found]
    try:
        lines = found.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{found} is neither an image nor UTF-8 text; {_EXPECTED}.") from error
    images = [found.parent / line.strip() for line in lines if line.strip()]
    missing = next((path for path in images if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"{found} lists {missing}, which does not exist.")
    return images
