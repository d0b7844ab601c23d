"""Finding picture files; the endings are those of torchvision's image folders."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def is_picture(path: str | Path) -> bool:
    """Whether the file name has one of `IMAGE_EXTENSIONS` (in any case) and is not hidden."""
    name = Path(path).name
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def list_pictures(root: str | Path) -> list[str]:
    """All pictures under a folder, at any depth, links followed, hidden files and folders left out.

    A folder that links lead to several times, or in circles, is read once.

    Args:
        root: An existing folder.

    Returns:
        Paths that start with ``root``, sorted.
    """
    return sorted(_walk(root))


def first_pictures(root: str | Path, count: int = 100) -> list[str]:
    """Some images under a folder, as `list_pictures` finds them; none if it does not exist."""
    return list(itertools.islice(_walk(root), count)) if Path(root).is_dir() else []


def _walk(root: str | Path) -> Iterator[str]:
    seen = set()
    for folder, children, files in os.walk(root, onerror=_refuse, followlinks=True):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            children.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        children[:] = sorted(child for child in children if not child.startswith("."))
        for name in files:
            if is_picture(name):
                yield os.path.join(folder, name)  # noqa: PTH118 - a million strings, no Path objects


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed may hold images, so it is not passed over."""
    raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error


def list_class_folders(root: str | Path) -> list[str]:
    """Sorted names of the folders in ``root`` without hidden ones: the label order of ImageNet."""
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )
