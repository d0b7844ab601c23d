"""Names of the files that `predict` writes, one per image."""

from __future__ import annotations

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from src.file_names import digest, shorten

_EXTENSION = ".png"
_LONGEST = 220  # bytes of a stem; leaves room for a hash and the extension


class OutputNames:
    """Unique output names: the name of the image with the extension ``.png``.

    If two outputs would have the same name (upper and lower case are not distinguished), they keep
    the extension of their image (``cat.jpg.png``). If that is not enough, a hash of the image path
    is appended. Names that are too long for a file system are truncated and get a hash as well. The
    names depend only on the set of images, so they are the same for every batch, rank and run.

    Images that are not in ``images`` always keep their extension.

    Args:
        images: All images that outputs are written for.
        root: The folder of the images, or a single image. Without it, outputs have no subfolders.
    """

    def __init__(self, images: Iterable[str], root: str | None) -> None:
        self._root = None if root is None else Path(root)
        self._names = self._choose(sorted(set(images)))

    def __call__(self, image: str) -> Path:
        """Relative path of the output of an image, in the same subfolder as the image."""
        return self._names.get(image) or self._name(image, keep_extension=True)

    def _choose(self, images: list[str]) -> dict[str, Path]:
        names = {image: self._name(image, keep_extension=False) for image in images}
        extended: set[str] = set()
        # A name with its extension can clash with another image: a.jpg, a.png and a.jpg.png.
        while clashing := _clashing(names) - extended:
            extended |= clashing
            names |= {image: self._name(image, keep_extension=True) for image in clashing}
        remaining = _clashing(names)
        taken = {_folded(name) for image, name in names.items() if image not in remaining}
        taken |= _folders(names.values())
        for image in sorted(remaining):
            names[image] = self._free(names[image], image, taken)
            taken.add(_folded(names[image]))
        return names

    def _name(self, image: str, *, keep_extension: bool) -> Path:
        source, relative = Path(image), self._relative(image)
        stem = source.name if keep_extension else source.stem
        return relative.with_name(f"{shorten(stem, _LONGEST)}{_EXTENSION}")

    def _relative(self, image: str) -> Path:
        source = Path(image)
        is_inside = self._root is not None and source.is_relative_to(self._root)
        relative = source.relative_to(self._root) if self._root and is_inside else Path()
        # The root is the image itself, or the image is outside the root.
        is_elsewhere = relative == Path() or ".." in relative.parts
        return Path(source.name) if is_elsewhere else relative

    def _free(self, name: Path, image: str, taken: set[str]) -> Path:
        key = image if self._root is None else str(self._relative(image))
        for attempt in itertools.count():
            suffix = digest(f"{key}/{attempt}" if attempt else key)
            candidate = name.with_name(f"{shorten(name.stem, _LONGEST)}-{suffix}{_EXTENSION}")
            if _folded(candidate) not in taken:
                break
        return candidate


def output_names(trainer: Trainer) -> OutputNames:
    """Output names for the images that the trainer is about to predict."""
    data: Any = getattr(trainer.predict_dataloaders, "dataset", None)
    root = getattr(trainer.datamodule, "predict_dir", None)  # type: ignore[attr-defined]
    return OutputNames(getattr(data, "paths", ()), root)


def _folded(name: Path) -> str:
    """Normalised name: equal for names that some file systems do not distinguish."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(name)).casefold())


def _folders(names: Iterable[Path]) -> set[str]:
    return {_folded(folder) for folder in {name.parent for name in names}} | {
        _folded(above) for name in {name.parent for name in names} for above in name.parents
    }


def _clashing(names: dict[str, Path]) -> set[str]:
    """Images whose output name is not unique, or equals the name of an output folder."""
    groups = defaultdict(list)
    for image, name in names.items():
        groups[_folded(name)].append(image)
    folders = _folders(names.values())
    clashing = [group for name, group in groups.items() if len(group) > 1 or name in folders]
    return {image for group in clashing for image in group}
