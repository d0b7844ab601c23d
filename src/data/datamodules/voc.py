"""PASCAL VOC 2007 and 2012: boxes of 20 classes in xml files (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from src.data.classes.voc import VOC_NAMES
from src.data.datamodules.base import check
from src.data.datamodules.coco import COCODataModule
from src.data.formats.voc_xml import read_voc


class VOCDataModule(COCODataModule):
    """Data module of PASCAL VOC: ``root/VOC2007/{JPEGImages,Annotations,ImageSets/Main}``.

    Args:
        root: ``VOCdevkit``.
        train_splits: Folder and list of each part of the training images.
        val_splits: The same of the validation images.
        test_splits: The same of the images for ``test``; default is the validation images.
        class_names: Names in label order: a list, or a text file with one name per line. Default:
            the 20 classes.
        kwargs: See `COCODataModule`; there are no masks.
    """

    def __init__(
        self,
        root: str = "data/VOCdevkit",
        train_splits: Sequence[str] = ("VOC2007/trainval", "VOC2012/trainval"),
        val_splits: Sequence[str] = ("VOC2007/test",),
        test_splits: Sequence[str] | None = None,
        class_names: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        self.parts = {
            "train": list(train_splits),
            "val": list(val_splits),
            "test": list(test_splits or val_splits),
        }
        for split, parts in self.parts.items():
            check(
                bool(parts) and all(part.count("/") == 1 for part in parts),
                f"{split}_splits",
                parts,
                "folders and lists, such as [VOC2007/trainval]",
            )
        names = {split: " + ".join(parts) for split, parts in self.parts.items()}
        super().__init__(
            root=root,
            train_images=".",
            train_annotations=names["train"],
            val_images=".",
            val_annotations=names["val"],
            test_images=".",
            test_annotations=names["test"],
            class_names=self.official_class_names() if class_names is None else class_names,
            masks=False,
            **kwargs,
        )

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 20 classes."""
        return list(VOC_NAMES)

    def read_annotations(self, split: str) -> dict[str, list[Any]]:
        """Images and boxes of a split; see `read_voc`."""
        ids = {name: number for number, name in self.categories.items()}
        return read_voc(self.root, self.parts[split], ids, self.max_pixels)
