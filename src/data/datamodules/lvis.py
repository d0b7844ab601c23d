"""LVIS v1: 1203 classes on the images of COCO (Gupta et al., CVPR 2019).

Its annotation files have the format of COCO, with fields that say which classes were checked in an
image; `LVISMetric` needs them.
"""

from __future__ import annotations

from typing import Any

from src.data.classes.lvis import LVIS_NAMES
from src.data.datamodules.coco import COCODataModule


class LVISDataModule(COCODataModule):
    """Data module of LVIS v1.

    Args:
        root: Folder with ``train2017`` and ``val2017`` of COCO and ``annotations``.
        train_images: Folder that the ``coco_url`` of the images continues.
        train_annotations: Annotation file of the training images.
        val_images: As ``train_images``.
        val_annotations: Annotation file of the validation images.
        kwargs: See `COCODataModule`.
    """

    def __init__(
        self,
        root: str = "data/lvis_v1",
        train_images: str = ".",
        train_annotations: str = "annotations/lvis_v1_train.json",
        val_images: str = ".",
        val_annotations: str = "annotations/lvis_v1_val.json",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root=root,
            train_images=train_images,
            train_annotations=train_annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            **kwargs,
        )

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 1203 classes of LVIS v1."""
        return list(LVIS_NAMES)
