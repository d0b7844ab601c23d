"""Find image files by their extensions, which are those of torchvision's image folders."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.decoding import IMAGE_EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from src.errors import UserError, counted
from src.file_names import similar_file, similar_folder, url_of
from src.files import on_one_line

_MAX_NAMED = 5
LISTED_EXTENSIONS = ", ".join(IMAGE_EXTENSIONS)


def is_image(path: str | Path) -> bool:
    """Whether the file name has one of `IMAGE_EXTENSIONS` (in any case) and is not hidden."""
    return _has_extension(Path(path).name, IMAGE_EXTENSIONS)


def _has_extension(name: str, extensions: tuple[str, ...]) -> bool:
    return not name.startswith(".") and name.lower().endswith(extensions)


def list_images(root: str | Path) -> list[str]:
    """All images under a folder, at any depth.

    Links are followed; hidden files and folders are left out. A folder that several links point to,
    or that is part of a cycle, is read once. Pipes, sockets and devices are left out with a
    warning.

    Args:
        root: An existing folder.

    Returns:
        Paths that start with ``root``, sorted.
    """
    return sorted(_walk(root))


def find_images(source: str | Path) -> list[str]:
    """A single image file of any name, or every image under a folder, sorted.

    Raises:
        UserError: If the source is missing, a URL, or a folder without images.
    """
    check_source(source)
    source = Path(source)
    if source.is_file():
        return [str(source)]
    images = list_images(source)
    if not images:
        raise UserError(
            f"There is nothing to predict: {source} holds no images; expected files ending in "
            f"{LISTED_EXTENSIONS}."
        )
    return images


def check_source(source: str | Path) -> None:
    """Refuse images to predict that do not exist.

    Raises:
        UserError: If the source is a URL, or neither a file nor a folder.
    """
    path = Path(source)
    if path.exists():
        return
    refuse_url(source)
    close = similar_file(path) if path.suffix else ""
    if not close and (folder := similar_folder(path)) is not None:
        close = f" Did you mean {folder}?"
    raise UserError(
        f"There is nothing to predict: {path} is neither a file nor a folder."
        f"{close or ' Give an image or a folder of images.'}"
    )


def refuse_url(source: str | Path) -> None:
    """Refuse the URL of an image.

    Raises:
        UserError: If the source is a URL.
    """
    if (url := url_of(source)) is not None:
        raise UserError(
            f"predict does not download images: {url} is a URL. Download the file, and give its"
            " path."
        )


def left_out(source: str | Path) -> str | None:
    """Which files under a folder have one of `OTHER_IMAGE_EXTENSIONS`, and why they are not read.

    Returns:
        One sentence; ``None`` if there are none, or for a file.
    """
    if not Path(source).is_dir():
        return None
    found = sorted(_walk(source, OTHER_IMAGE_EXTENSIONS))
    if not found:
        return None
    names = [on_one_line(os.path.relpath(path, source)) for path in found[:_MAX_NAMED]]
    more = f", and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
    return (
        f"{counted(len(found), 'image file')} with other extensions than {LISTED_EXTENSIONS}:"
        f" {', '.join(names)}{more}"
    )


def left_out_files(source: str | Path) -> list[str]:
    """Which files under a folder `predict` does not read, in at most two sentences."""
    other_images = left_out(source)
    found = [] if other_images is None else [other_images]
    if listed := other_files(source, besides=OTHER_IMAGE_EXTENSIONS):
        found.append(f"files without the extension of an image ({listed})")
    return found


def other_files(source: str | Path, *, besides: tuple[str, ...] = ()) -> str:
    """How many files under a folder have no extension of an image, for each extension.

    Args:
        source: A folder, or a file.
        besides: Extensions of files that are not counted.

    Returns:
        Such as ``2 .pdf, 1 .txt``; empty if there are none, or for a file. Files without an
        extension have their name.
    """
    if not Path(source).is_dir():
        return ""
    paths = [Path(path) for path in _walk(source, ("",)) if not is_image(path)]
    counts = Counter(
        path.suffix.lower() or on_one_line(path.name)
        for path in paths
        if not _has_extension(path.name, besides)
    )
    listed = [f"{count} {ending}" for ending, count in sorted(counts.items())]
    return ", ".join(listed[:_MAX_NAMED]) + (", ..." if len(listed) > _MAX_NAMED else "")


def first_images(root: str | Path, count: int = 100) -> list[str]:
    """Some images under a folder, as `list_images` finds them; none if it does not exist."""
    return list(itertools.islice(_walk(root), count)) if Path(root).is_dir() else []


def _walk(root: str | Path, extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> Iterator[str]:
    seen = set()
    folders = [os.fspath(root)]
    while folders:
        folder = folders.pop()
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            continue
        seen.add((facts.st_dev, facts.st_ino))
        children = []
        with _entries(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    children += [] if entry.name.startswith(".") else [entry.path]
                elif _has_extension(entry.name, extensions) and _can_be_read(entry):
                    yield entry.path
        folders += sorted(children, reverse=True)  # the first one is taken next


def _can_be_read(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file; reading others, such as a pipe, can block forever."""
    # Broken links stay in the list, so that reading them raises an error.
    if entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists()):
        return True
    warnings.warn(
        f"{on_one_line(entry.path)} is not a regular file (a pipe, socket or device): it is left "
        "out.",
        stacklevel=2,
    )
    return False


def _entries(folder: str) -> Any:
    """Entries of a folder; one that cannot be listed is an error, as it may hold images."""
    try:
        return os.scandir(folder)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def list_class_folders(root: str | Path) -> list[str]:
    """Sorted names of the folders in ``root`` that are not hidden: the label order of ImageNet."""
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )
