"""Pascal Context for semantic segmentation: 59 classes.

Everything but folders, lists and names is inherited from ADE20K (``ade20k.py``).
"""

from __future__ import annotations

from typing import Any

from src.data.classes.pascal_context import PASCAL_CONTEXT_NAMES, pascal_context_palette
from src.data.datamodules.ade20k import ADE20KDataModule
from src.types import Colour


class PascalContextDataModule(ADE20KDataModule):
    """Data module of Pascal Context: images and label maps that text files list.

    ``root/JPEGImages/*.jpg`` and, with numbers from 1 to 59,
    ``root/SegmentationClassContext/*.png``, both listed in
    ``root/ImageSets/SegmentationContext/{train,val}.txt``. 0 is unlabelled.

    Args:
        root: Folder that the other folders and files are in.
        kwargs: See `ADE20KDataModule`.

    Raises:
        UserError: As `ADE20KDataModule`.
    """

    def __init__(
        self,
        root: str = "data/VOCdevkit/VOC2010",
        train_images: str = "JPEGImages",
        train_labels: str = "SegmentationClassContext",
        val_images: str = "JPEGImages",
        val_labels: str = "SegmentationClassContext",
        image_lists: dict[str, str] | None = None,
        image_suffix: str | None = ".jpg",
        class_names: list[str] | str = "pascal-context",
        image_scale: tuple[int, int] = (520, 520),
        eval_scale: tuple[int, int] | None = (4096, 520),
        crop_size: tuple[int, int] = (480, 480),
        **kwargs: Any,
    ) -> None:
        official = class_names == "pascal-context"
        super().__init__(
            root=root,
            train_images=train_images,
            train_labels=train_labels,
            val_images=val_images,
            val_labels=val_labels,
            image_lists=image_lists
            or {
                "train": "ImageSets/SegmentationContext/train.txt",
                "val": "ImageSets/SegmentationContext/val.txt",
            },
            image_suffix=image_suffix,
            class_names=self.official_class_names() if official else class_names,
            image_scale=image_scale,
            eval_scale=eval_scale,
            crop_size=crop_size,
            **kwargs,
        )

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 59 classes."""
        return list(PASCAL_CONTEXT_NAMES)

    @classmethod
    def official_palette(cls) -> list[Colour] | None:
        """Colours of these classes."""
        return pascal_context_palette()
