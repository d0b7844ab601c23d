"""NYU Depth v2 for semantic segmentation: 40 classes.

Everything but folders, lists and names is inherited from ADE20K (``ade20k.py``).
"""

from __future__ import annotations

from typing import Any

from src.data.classes.nyu_depth_v2 import NYU_DEPTH_V2_NAMES, nyu_depth_v2_palette
from src.data.datamodules.ade20k import ADE20KDataModule
from src.types import Colour


class NYUDepthV2DataModule(ADE20KDataModule):
    """Data module of NYU Depth v2: images and label maps that text files list.

    ``root/image/*.png`` and, with numbers from 1 to 40,
    ``root/label40/*.png``, both listed in ``root/{train,test}.txt``. Validation uses the latter.
    0 is unlabelled.

    Args:
        root: Folder that the other folders and files are in.
        kwargs: See `ADE20KDataModule`.

    Raises:
        UserError: As `ADE20KDataModule`.
    """

    def __init__(
        self,
        root: str = "data/nyu_depth_v2",
        train_images: str = "image",
        train_labels: str = "label40",
        val_images: str = "image",
        val_labels: str = "label40",
        image_lists: dict[str, str] | None = None,
        image_suffix: str | None = ".png",
        class_names: list[str] | str = "nyu-depth-v2",
        image_scale: tuple[int, int] = (2048, 512),
        eval_scale: tuple[int, int] | None = (640, 480),
        crop_size: tuple[int, int] = (480, 480),
        **kwargs: Any,
    ) -> None:
        official = class_names == "nyu-depth-v2"
        super().__init__(
            root=root,
            train_images=train_images,
            train_labels=train_labels,
            val_images=val_images,
            val_labels=val_labels,
            image_lists=image_lists or {"train": "train.txt", "val": "test.txt"},
            image_suffix=image_suffix,
            class_names=self.official_class_names() if official else class_names,
            image_scale=image_scale,
            eval_scale=eval_scale,
            crop_size=crop_size,
            **kwargs,
        )

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 40 classes."""
        return list(NYU_DEPTH_V2_NAMES)

    @classmethod
    def official_palette(cls) -> list[Colour] | None:
        """Colours of these classes."""
        return nyu_depth_v2_palette()
