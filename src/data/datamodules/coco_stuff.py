"""COCO-Stuff for semantic segmentation: 171 classes of things and stuff on the images of COCO.

Everything but folders, names and numbering is inherited from ADE20K (``ade20k.py``).
"""

from __future__ import annotations

from typing import Any

from src.data.classes.coco_stuff import COCO_STUFF_CATEGORIES, COCO_STUFF_VALUES
from src.data.datamodules.ade20k import ADE20KDataModule


class COCOStuffDataModule(ADE20KDataModule):
    """Data module of COCO-Stuff: images of COCO 2017, and the published pixel maps.

    Args:
        root: Folder that the other folders are in.
        train_images: Folder of training images, searched at any depth.
        train_labels: Folder of their label maps, in the same subfolders: the content of
            ``stuffthingmaps_trainval2017.zip``.
        val_images: Folder of validation images.
        val_labels: Folder of their label maps.
        train_ids: The label maps hold class indices, as the converter of mmsegmentation writes them
            (``*_labelTrainIds.png``), instead of the published numbers.
        label_suffix: What replaces the extension of an image in the name of its label map; default
            is ``.png``, or ``_labelTrainIds.png`` with ``train_ids``.
        reduce_zero_label: Label maps count classes from 1, and 0 means unlabelled: the converted
            maps of COCO-Stuff-10k.
        class_names: ``"cocostuff"``, or other names in label order: a list, or a text file with one
            name per line.
        kwargs: See `ADE20KDataModule`.

    Raises:
        UserError: As `ADE20KDataModule`.
    """

    def __init__(
        self,
        root: str = "data/coco_stuff164k",
        train_images: str = "images/train2017",
        train_labels: str = "annotations/train2017",
        val_images: str = "images/val2017",
        val_labels: str = "annotations/val2017",
        train_ids: bool = False,
        label_suffix: str | None = None,
        reduce_zero_label: bool = False,
        class_names: list[str] | str = "cocostuff",
        **kwargs: Any,
    ) -> None:
        names = class_names
        if class_names == "cocostuff":
            names = self.official_class_names()
        super().__init__(
            root=root,
            train_images=train_images,
            train_labels=train_labels,
            val_images=val_images,
            val_labels=val_labels,
            label_suffix=label_suffix or ("_labelTrainIds.png" if train_ids else ".png"),
            reduce_zero_label=reduce_zero_label,
            class_names=names,
            class_values=None if train_ids else list(COCO_STUFF_VALUES),
            **kwargs,
        )

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 171 classes of COCO-Stuff."""
        return list(COCO_STUFF_CATEGORIES.values())
