"""Names of the files that `predict` writes, one for each image."""

from __future__ import annotations

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from src.file_names import digest, shorten

_ENDING = ".png"
_LONGEST = 220  # bytes of a stem; leaves room for a hash and the ending


class OutputNames:
    """Names results as their images, with the ending of the result.

    Every image gets a file of its own, whatever its name and the file system: results that would
    meet, also those that differ in upper and lower case only, keep the ending of their image
    (``cat.jpg.png``), and where that does not help, a hash of the image's path is added. Names that
    are too long for a file system are cut and get a hash as well. The names depend on the set of
    images only, so they are the same for every batch, rank and run.

    Images that are not among ``images``, about whose neighbours nothing is known, keep their
    ending.

    Args:
        images: All files that results are written for.
        root: The folder of the images, or a single image. Without it, results lie in no
            subfolders.
    """

    def __init__(self, images: Iterable[str], root: str | None) -> None:
        self._root = None if root is None else Path(root)
        self._names = self._choose(sorted(set(images)))

    def __call__(self, image: str) -> Path:
        """Relative path of the result of an image, in the same subfolder as the image."""
        return self._names.get(image) or self._name(image, keep_ending=True)

    def _choose(self, images: list[str]) -> dict[str, Path]:
        names = {image: self._name(image, keep_ending=False) for image in images}
        whole: set[str] = set()
        # A name with its ending can meet a third one: a.jpg, a.png and a.jpg.png.
        while clashing := _clashing(names) - whole:
            whole |= clashing
            names |= {image: self._name(image, keep_ending=True) for image in clashing}
        left = _clashing(names)
        taken = {_folded(name) for image, name in names.items() if image not in left}
        taken |= _folders(names.values())
        for image in sorted(left):
            names[image] = self._free(names[image], image, taken)
            taken.add(_folded(names[image]))
        return names

    def _name(self, image: str, *, keep_ending: bool) -> Path:
        source, relative = Path(image), self._relative(image)
        stem = source.name if keep_ending else source.stem
        return relative.with_name(f"{shorten(stem, _LONGEST)}{_ENDING}")

    def _relative(self, image: str) -> Path:
        source = Path(image)
        is_inside = self._root is not None and source.is_relative_to(self._root)
        relative = source.relative_to(self._root) if self._root and is_inside else Path()
        # The image itself was given, or it is from elsewhere.
        is_elsewhere = relative == Path() or ".." in relative.parts
        return Path(source.name) if is_elsewhere else relative

    def _free(self, name: Path, image: str, taken: set[str]) -> Path:
        key = image if self._root is None else str(self._relative(image))
        for attempt in itertools.count():
            end = digest(f"{key}/{attempt}" if attempt else key)
            candidate = name.with_name(f"{shorten(name.stem, _LONGEST)}-{end}{_ENDING}")
            if _folded(candidate) not in taken:
                break
        return candidate


def output_names(trainer: Trainer) -> OutputNames:
    """Names for what the trainer is about to predict."""
    data: Any = getattr(trainer.predict_dataloaders, "dataset", None)
    root = getattr(trainer.datamodule, "predict_dir", None)  # type: ignore[attr-defined]
    return OutputNames(getattr(data, "paths", ()), root)


def _folded(name: Path) -> str:
    """What some file systems take for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(name)).casefold())


def _folders(names: Iterable[Path]) -> set[str]:
    return {_folded(folder) for folder in {name.parent for name in names}} | {
        _folded(above) for name in {name.parent for name in names} for above in name.parents
    }


def _clashing(names: dict[str, Path]) -> set[str]:
    """Images whose results share a name, or have that of a folder of others."""
    groups = defaultdict(list)
    for image, name in names.items():
        groups[_folded(name)].append(image)
    folders = _folders(names.values())
    met = [group for name, group in groups.items() if len(group) > 1 or name in folders]
    return {image for group in met for image in group}
