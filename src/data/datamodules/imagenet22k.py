"""ImageNet-22k by list files, with the label sets of its two releases.

Everything but files and labels is inherited from ImageNet (``imagenet.py``).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from src.data.classes.class_names import read_class_names
from src.data.classes.imagenet22k import (
    FALL_2011,
    fall_2011_synsets,
    label_set,
    map_labels,
    readable_synsets,
)
from src.data.datamodules.imagenet import ImageNetDataModule
from src.data.datasets.image_folder import LabelledImages
from src.data.formats.image_files import list_class_folders, list_images
from src.data.formats.image_lists import ListedImages, read_list
from src.errors import UserError


class ImageNet22kDataModule(ImageNetDataModule):
    """Data module of ImageNet-22k: list files with a path and a class per line.

    Args:
        root: Folder that the paths in the list files are relative to.
        train_list: List file of the training images, relative to ``root``.
        val_list: List file of the validation images.
        classes: Label set of the network: ``"fall-2011"`` (21,841 classes), a text file with one
            synset per line in label order, such as that of the winter-2021 release, or a json of
            labels by synset (``22k_class_to_idx.json``). Images of other classes are left out.
        list_classes: Label set that the numbers in the list files belong to; default is
            ``classes``. Lists with synsets need none.
        imagenet_1k: Folder of class folders, such as ``data/imagenet/val``. If given, validation
            and test read these images, and predict among their classes alone. Images of classes
            that ``classes`` lacks are left out.
        class_names: Readable names in label order. Default: the first lemma of each synset.
        kwargs: See `ImageNetDataModule`.

    Raises:
        UserError: As `ImageNetDataModule`.
    """

    def __init__(
        self,
        root: str = "data/imagenet22k",
        train_list: str = "ILSVRC2011fall_whole_map_train.txt",
        val_list: str = "ILSVRC2011fall_whole_map_val.txt",
        classes: str = FALL_2011,
        list_classes: str | None = None,
        imagenet_1k: str | None = None,
        class_names: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, class_names=class_names, **kwargs)
        self._lists = {"train": train_list, "val": val_list, "test": val_list}
        self._label_set, self._listed_set = classes, list_classes or classes
        self.imagenet_1k = None if imagenet_1k is None else Path(imagenet_1k)
        self._left_out: dict[str, tuple[int, str]] = {}

    @cached_property
    def synsets(self) -> list[str]:
        """Synsets of the classes in label order."""
        return label_set(self._label_set)

    @cached_property
    def class_names(self) -> list[str]:
        """Readable names of the classes in label order."""
        if self._given_names is None:
            return readable_synsets(self.synsets)
        names = read_class_names(self._given_names)
        if len(names) != len(self.synsets):
            raise UserError(
                f"data.class_names has {len(names)} names, but data.classes {self._label_set} has"
                f" {len(self.synsets)} classes."
            )
        return names

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Readable names of the 21,841 classes of the fall-2011 release."""
        return readable_synsets(fall_2011_synsets())

    def labelled_files(self, split: str) -> tuple[list[str], list[int]]:
        """Image files of a split, and the label of each."""
        if split != "train" and self.imagenet_1k is not None:
            found, reason = self._files_of_1k(self.imagenet_1k), "of a class that the network lacks"
        else:
            listed = label_set(self._listed_set)
            path = self.root / self._lists[split]
            labels = map_labels(listed, self.synsets)
            found = read_list(path, labels, listed, str(self.root))
            reason = "of a class that data.classes lacks"
        self._left_out[split] = (found.left_out, reason)
        return found.files, found.labels

    @cached_property
    def candidates(self) -> torch.Tensor | None:
        """Labels that an evaluated image may have, ``(C,)``; ``None`` is all."""
        if self.imagenet_1k is None:
            return None
        labels = map_labels(_folders(self.imagenet_1k), self.synsets)
        return torch.tensor(sorted(label for label in labels if label >= 0))

    def normalise(self, batch: Any) -> Any:
        """Normalise images, and add the classes to choose from in evaluation."""
        batch = super().normalise(batch)
        is_training = self.trainer is not None and self.trainer.training
        if "label" in batch and not is_training and self.candidates is not None:
            batch["candidates"] = self.candidates.to(batch["label"].device)
        return batch

    def _labelled(self, split: str, *, train: bool = False) -> LabelledImages:
        dataset = super()._labelled(split, train=train)
        count, reason = self._left_out[split]
        if count:
            dataset.left_out[reason] = count
        return dataset

    def _files_of_1k(self, root: Path) -> ListedImages:
        files: list[str] = []
        labels: list[int] = []
        left_out = 0
        folders = _folders(root)
        for folder, label in zip(folders, map_labels(folders, self.synsets), strict=True):
            images = list_images(root / folder)
            if label < 0:
                left_out += len(images)
                continue
            files += images
            labels += [label] * len(images)
        if not files:
            raise UserError(f"{root} has no images in class folders of data.classes.")
        return ListedImages(files, labels, left_out)


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(
            f"The folder {root} (data.imagenet_1k) does not exist; expected one folder of images"
            f" per synset, {root}/<synset>/*.JPEG."
        )
    return list_class_folders(root)
