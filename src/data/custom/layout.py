"""Find out whether a folder holds class folders, or splits of class folders.

A folder with a name such as ``test`` is a split only if it holds class folders, or if all folders
have such names; a folder ``test`` of images beside ``good`` and ``bad`` is a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from src.data.formats.image_files import (
    first_images,
    is_image,
    list_class_folders,
    list_images,
)
from src.data.formats.splits import assign, split_of
from src.errors import UserError
from src.file_names import quoted


@dataclass(frozen=True)
class Layout:
    """Where the classes are.

    Attributes:
        root: Folder of the classes, or of the splits.
        splits: Folder of each split; empty if there are no splits.
        notes: Notes for the user about what is left out.
    """

    root: Path
    splits: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_layout(source: Path) -> Layout:
    """Find the classes or splits of a folder.

    Raises:
        UserError: If folders of both kinds are mixed; the message lists what was found.
    """
    root = _inner(source)
    folders = [root / name for name in list_class_folders(root)]
    named = [folder for folder in folders if split_of(folder.name)]
    with_classes = [folder for folder in named if _has_class_folders(folder)]
    if not with_classes:
        if named and len(named) == len(folders) > 1:
            raise UserError(
                f"{_found(root, folders)}: the folders have the names of splits but hold no class "
                "folders; expected <split>/<class>/*.jpg. If these are classes, rename one of them."
            )
        return Layout(root)
    notes = []
    rest = [folder for folder in folders if folder not in with_classes]
    for folder in [folder for folder in rest if not list_images(folder)]:
        rest.remove(folder)
        notes.append(f"{folder.name} holds no images and is left out")
    for folder in [folder for folder in rest if split_of(folder.name) == "test"]:
        rest.remove(folder)
        notes.append(
            f"{folder.name} has no class folders, so it cannot be tested on; to look at it: "
            f"predict --data.predict_dir {quoted(folder)}"
        )
    if rest:
        raise UserError(
            f"{_found(root, folders)}: {_names(with_classes)} "
            f"{'is a split' if len(with_classes) == 1 else 'are splits'} of class folders, but "
            f"{_names(rest)} {'is' if len(rest) == 1 else 'are'} not; expected only classes, or "
            "only splits (train, val, test). Move the others elsewhere."
        )
    for folder in with_classes:
        stray = sum(is_image(path) and path.is_file() for path in folder.iterdir())
        if stray:
            notes.append(f"images beside the class folders of {folder.name} are left out: {stray}")
    return Layout(root, assign(with_classes, _found(root, folders)), tuple(notes))


def _inner(source: Path) -> Path:
    """The folder that holds the splits: the source, or its only folder (``images/train``)."""
    names = list_class_folders(source)
    if len(names) == 1 and not split_of(names[0]) and not _has_images(source):
        inner = source / names[0]
        if any(split_of(name) for name in list_class_folders(inner)):
            return _inner(inner)
    return source


def _has_class_folders(folder: Path) -> bool:
    """Whether it holds folders with images: at least one, or two if there are images beside."""
    names = list_class_folders(folder)
    with_images = sum(bool(first_images(folder / name, 1)) for name in names)
    return with_images >= (2 if _has_images(folder) else 1)


def _has_images(folder: Path) -> bool:
    return any(is_image(path) and path.is_file() for path in folder.iterdir())


def _found(root: Path, folders: list[Path]) -> str:
    return f"{root} holds the folders {_names(folders)}"


def _names(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders[:10]) + (
        ", ..." if len(folders) > 10 else ""
    )
