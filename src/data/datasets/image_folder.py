"""Pictures in class folders (the ImageNet layout) and pictures without labels.

A picture that cannot be decoded is an error that names the file, or, with ``broken_images="skip"``,
is left out and remembered in memory shared with the loader workers, so that the main process can
report it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from src.data.pictures import IMAGE_EXTENSIONS, list_class_folders, list_pictures
from src.decoding import BrokenPictureError, decode
from src.errors import UserError

BrokenImages = Literal["error", "skip"]
Transform = Callable[[Image.Image], Tensor]

_MAX_BROKEN_IN_A_ROW = 100
_ENDINGS = ", ".join(IMAGE_EXTENSIONS)


class Sample(TypedDict):
    """One picture, ``(3, H, W)``, with its file and, if known, its class index."""

    image: Tensor
    path: str
    label: NotRequired[int]


class _Pictures(Dataset[Sample | None]):
    """Files, a transform and the memory of which files were broken."""

    def __init__(
        self,
        paths: Sequence[str],
        transform: Transform,
        broken_images: BrokenImages,
        upright: bool,
    ) -> None:
        # One array of bytes instead of a list of str: workers made by fork share its pages, a
        # list's they would copy.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self._broken = torch.zeros(len(paths), dtype=torch.bool).share_memory_()
        self.transform = transform
        self.broken_images = broken_images
        self.upright = upright

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """File of one picture."""
        return os.fsdecode(self._paths[index])

    @property
    def broken_paths(self) -> list[str]:
        """Files that could not be decoded so far, by any worker of this process."""
        return [self.path(int(index)) for index in self._broken.nonzero()]

    def _read(self, index: int) -> Tensor | None:
        """The transformed picture, or None if it is broken and may be skipped."""
        try:
            picture = decode(self.path(index), upright=self.upright)
        except BrokenPictureError as error:
            if self.broken_images == "error":
                raise UserError(
                    f"{error} Replace or delete the file, or train on without such files with "
                    "--data.broken_images skip."
                ) from error
            self._broken[index] = True
            return None
        return self.transform(picture)


class ImageFolderDataset(_Pictures):
    """Labelled pictures of ``root/<class>/**``.

    The label is the position of the folder's name in ``folders``.

    Args:
        root: Folder of one split.
        transform: From an RGB picture to a tensor of shape ``(3, H, W)``.
        folders: Class folders in label order; ``root`` may lack some of them. Default: the folders
            found, sorted.
        broken_images: ``"error"`` raises on the first undecodable file; ``"skip"`` takes the next
            picture instead.
        upright: Turn pictures as their EXIF block says.

    Raises:
        UserError: If the folder is missing, holds no classes, an unknown class or an empty class.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Transform,
        folders: Sequence[str] | None = None,
        broken_images: BrokenImages = "error",
        *,
        upright: bool = False,
    ) -> None:
        found = _class_folders(Path(root))
        self.folders = tuple(found if folders is None else folders)
        label_of = {folder: label for label, folder in enumerate(self.folders)}
        paths: list[str] = []
        labels: list[int] = []
        for folder in found:
            if folder not in label_of:
                raise UserError(
                    f"The class folder {Path(root) / folder} has no label: the data set's "
                    f"{len(label_of)} classes do not include "
                    f"{folder!r}. Remove the folder, or add the class to the training split or to "
                    "class_names."
                )
            pictures = list_pictures(Path(root) / folder)
            if not pictures:
                raise UserError(
                    f"The class folder {Path(root) / folder} holds no pictures. "
                    f"Add files ending in one of {_ENDINGS}, or remove the folder."
                )
            paths += pictures
            labels += [label_of[folder]] * len(pictures)
        super().__init__(paths, transform, broken_images, upright)
        self.labels = np.array(labels, dtype=np.int64)

    def __getitem__(self, index: int) -> Sample:
        """Read one picture; in skip mode the next readable one if this is broken.

        Raises:
            UserError: If the picture is broken, or in skip mode if a long run of pictures is.
        """
        tries = min(len(self), _MAX_BROKEN_IN_A_ROW)
        for candidate in ((index + step) % len(self) for step in range(tries)):
            image = self._read(candidate)
            if image is not None:
                return {
                    "image": image,
                    "label": int(self.labels[candidate]),
                    "path": self.path(candidate),
                }
        raise UserError(
            f"{tries} pictures in a row cannot be read, beginning with {self.path(index)}. "
            "Run `python -m src verify imagenet --decode --root ...` to list the broken files."
        )


class ImageFilesDataset(_Pictures):
    """Pictures without labels: one file of any name, or every picture under a folder, sorted.

    Args:
        source: A picture or a folder.
        transform: From an RGB picture to a tensor of shape ``(3, H, W)``.
        broken_images: ``"error"`` raises on an undecodable file; with ``"skip"`` the sample is None
            (`collate` drops it).
        upright: Turn pictures as their EXIF block says.

    Raises:
        UserError: If the source is missing or a folder without pictures.
    """

    def __init__(
        self,
        source: str | Path,
        transform: Transform,
        broken_images: BrokenImages = "error",
        *,
        upright: bool = False,
    ) -> None:
        super().__init__(files_to_predict(source), transform, broken_images, upright)

    def __getitem__(self, index: int) -> Sample | None:
        """Read one picture; None if it is broken and broken pictures are skipped."""
        image = self._read(index)
        return None if image is None else {"image": image, "path": self.path(index)}


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(
            f"The folder {root} does not exist. Expected is one folder of pictures per class: "
            f"{root}/<class>/*.jpg; check data.root."
        )
    folders = list_class_folders(root)
    if not folders:
        raise UserError(
            f"The folder {root} has no class folders. Expected is one folder of pictures per "
            f"class: {root}/<class>/*.jpg."
        )
    return folders


def files_to_predict(source: str | Path) -> list[str]:
    """The picture itself, or every picture under a folder, sorted.

    Raises:
        UserError: If the source is missing or a folder without pictures.
    """
    source = Path(source)
    if source.is_file():
        return [str(source)]
    if not source.is_dir():
        raise UserError(
            f"There is nothing to predict: {source} does not exist. Give a picture or a folder of "
            "pictures."
        )
    pictures = list_pictures(source)
    if not pictures:
        raise UserError(
            f"There is nothing to predict: {source} holds no pictures. Accepted are files ending "
            f"in {_ENDINGS}."
        )
    return pictures
