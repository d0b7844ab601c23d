"""Names of the files that `predict` writes, one for each picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


class OutputNames:
    """Names results as their pictures, with the ending of the result.

    Pictures of a folder that differ in nothing but their ending keep it: ``cat.jpg.png``. So do
    those that are not among ``pictures``, about whose neighbours nothing is known.

    Args:
        pictures: All files that results are written for.
        root: The folder of the pictures, or a single picture. Without it, results lie in no
            subfolders.
    """

    def __init__(self, pictures: Iterable[str], root: str | None) -> None:
        self._root = root
        self._count = Counter(_without_ending(path) for path in pictures)

    def __call__(self, picture: str) -> Path:
        """Relative path of the result of a picture, in the same subfolder as the picture."""
        source = Path(picture)
        inside = Path(self._root) if self._root is not None else source.parent
        relative = source.relative_to(inside) if source.is_relative_to(inside) else Path()
        if relative == Path():  # the picture itself was given, or it is from elsewhere
            relative = Path(source.name)
        alone = self._count[_without_ending(picture)] == 1
        return relative.with_name(f"{source.stem if alone else source.name}.png")


def output_names(trainer: Trainer) -> OutputNames:
    """Names for what the trainer is about to predict."""
    data: Any = getattr(trainer.predict_dataloaders, "dataset", None)
    root = getattr(trainer.datamodule, "predict_dir", None)  # type: ignore[attr-defined]
    return OutputNames(getattr(data, "paths", ()), root)


def _without_ending(path: str) -> str:
    return os.path.splitext(path)[0]  # noqa: PTH122 - strings are faster than Path objects
