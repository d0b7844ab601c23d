"""Files with the features of all images of a split, for `CachedFeatures`.

The features of one view are a folder of safetensors files, named after the fingerprint of
everything that they depend on. A folder is complete or does not exist.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from src import files
from src.errors import UserError
from src.serialization import read_weights

_FILE_BYTES = 64 * 2**20
_NAME = "features"
_KEPT_FREE = 2**30
"""Bytes of the disk that are left for checkpoints and logs."""


class FeatureFiles:
    """Folder of cached features.

    Args:
        folder: The folder, shared by all runs.
        max_gigabytes: Largest size of the folder.
    """

    def __init__(self, folder: Path, max_gigabytes: float) -> None:
        self.folder, self.max_bytes = folder, int(max_gigabytes * 1e9)

    def read(self, key: str, count: int) -> list[Tensor] | None:
        """Features with a fingerprint, memory-mapped, or ``None`` if there are none.

        Args:
            key: The fingerprint.
            count: Number of images.
        """
        paths = sorted(self.path(key).glob("*.safetensors"))
        try:
            parts = [read_weights(path)[_NAME] for path in paths]
        except (UserError, KeyError, ValueError):  # a damaged file is written again
            return None
        return parts if sum(len(part) for part in parts) == count and parts else None

    def write(self, key: str, batches: Iterable[Tensor], count: int) -> None:
        """Write features.

        Args:
            key: Their fingerprint.
            batches: The features of all images in their order, float32 ``(n, C, h, w)``.
            count: Number of images.

        Raises:
            UserError: If they are larger than the folder or the disk allows.
        """
        shutil.rmtree(self.path(key), ignore_errors=True)
        batches = iter(batches)
        first = next(batches)
        per_image = first[0].numel() * first.element_size()
        self._check_size(per_image, count)
        rows = max(1, _FILE_BYTES // per_image)
        with files.whole_folder(self.path(key)) as folder:
            for number, part in enumerate(_regrouped(chain([first], batches), rows)):
                path = folder / f"{number:05}.safetensors"
                files.write_tensors(path, {_NAME: part}, {"key": key})

    def path(self, key: str) -> Path:
        """Folder of the features with a fingerprint."""
        return self.folder / key[:32]

    def _check_size(self, per_image: int, count: int) -> None:
        needed = per_image * count
        used = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        what = (
            f"The features of {count} images need {needed / 1e9:.2g} GB ({per_image / 1e3:.0f} kB"
            f" each)"
        )
        if used + needed > self.max_bytes:
            raise UserError(
                f"{what}, and {self.folder} has {used / 1e9:.2g} GB of the {self.max_bytes / 1e9:g}"
                " GB that CachedFeatures.max_gigabytes allows. Delete the folder, or raise the"
                " limit."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed + _KEPT_FREE > free:
            raise UserError(
                f"{what}, and the disk of {self.folder} has only {free / 1e9:.2g} GB left. Choose"
                " another disk with CachedFeatures.folder."
            )


def _regrouped(batches: Iterable[Tensor], rows: int) -> Iterable[Tensor]:
    """The same rows in parts of at least ``rows``, except for the last one."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= rows:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)
