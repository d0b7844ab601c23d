"""iNaturalist 2018: 8142 species, with the date and the place of each photo.

Everything but the annotation files is inherited from ImageNet (``imagenet.py``).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.classes.class_names import read_class_names
from src.data.datamodules.imagenet import ImageNetDataModule
from src.data.datasets.features import FeatureDataset
from src.data.formats.inaturalist import NUM_CLASSES, INaturalistSplit, read_split
from src.errors import UserError


class INaturalistDataModule(ImageNetDataModule):
    """Data module of iNaturalist 2018: ``root/train2018.json``, ``root/train_val2018/...``.

    A class is a category of the annotation file, in the order of the file. Images in ``predict``
    have no date and no place.

    Args:
        root: Folder that image names in the annotation files are relative to.
        train_annotations: Annotation file of the training images, relative to ``root``.
        val_annotations: Annotation file of the validation images.
        train_locations: File of the dates and places of the training images; null if unknown.
        val_locations: The same of the validation images.
        class_names: Names of the classes in label order: a list, or a text file with one name per
            line. Default: the names in the annotation file, which are numbers in the published one.
        kwargs: See `ImageNetDataModule`.

    Raises:
        UserError: As `ImageNetDataModule`.
    """

    def __init__(
        self,
        root: str = "data/inat2018",
        train_annotations: str = "train2018.json",
        val_annotations: str = "val2018.json",
        train_locations: str | None = "train2018_locations.json",
        val_locations: str | None = "val2018_locations.json",
        class_names: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, class_names=class_names, **kwargs)
        self._files = {
            "train": (train_annotations, train_locations),
            "val": (val_annotations, val_locations),
        }
        self._read: dict[str, INaturalistSplit] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the species in label order."""
        return self._names

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Numbers of the 8142 classes, which is what the published annotation files call them."""
        return [str(label) for label in range(NUM_CLASSES)]

    def labelled_files(self, split: str) -> tuple[list[str], list[int]]:
        """Image files of a split, and the label of each."""
        content = self._content(split)
        path = self._path("train" if split == "train" else "val", 0)
        if len(content.class_names) != len(self.class_names):
            raise UserError(
                f"{path} has {len(content.class_names)} categories, but the dataset has"
                f" {len(self.class_names)} classes."
            )
        if self._given_names is None and content.class_names != self.class_names:
            raise UserError(
                f"{path} has other categories than {self._path('train', 0)}, or has them in another"
                " order, so its labels would mean other classes."
            )
        return [str(self.root / file) for file in content.files], content.labels

    def metadata(self, split: str) -> dict[str, NDArray[np.float32]]:
        """Encoded date and place of each image of a split."""
        content = self._content(split)
        return {"temporal": content.temporal, "spatial": content.spatial}

    def use_features(self, split: str) -> FeatureDataset:
        """Refuse cached features, which have neither date nor place.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"CachedFeatures does not work with the annotation files in {self.root}, because cached"
            " features have no date and no place. Remove the callback."
        )

    @cached_property
    def _names(self) -> list[str]:
        if self._given_names is not None:
            return read_class_names(self._given_names)
        split = "train" if self._path("train", 0).is_file() else "val"
        return self._content(split).class_names

    def _content(self, split: str) -> INaturalistSplit:
        key = "train" if split == "train" else "val"
        if key not in self._read:
            has_locations = self._files[key][1] is not None
            self._read[key] = read_split(
                self._path(key, 0), self._path(key, 1) if has_locations else None
            )
        return self._read[key]

    def _path(self, split: str, number: int) -> Path:
        return self.root / str(self._files[split][number])
