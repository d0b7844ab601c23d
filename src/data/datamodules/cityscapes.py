"""Cityscapes for semantic segmentation, and Mapillary Vistas with the classes of Cityscapes.

The label maps contain train ids, ``*_labelTrainIds.png``; ``python -m src prepare cityscapes``
makes them from the polygons that are part of the download.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from src.data.classes.cityscapes import (
    CITYSCAPES_NAMES,
    CITYSCAPES_PALETTE,
    MAPILLARY_TO_CITYSCAPES,
)
from src.data.datamodules.ade20k import ADE20KDataModule
from src.data.datasets.cityscapes import CityscapesEvalDataset
from src.data.datasets.segmentation_folder import SegmentationEvalDataset, find_pairs
from src.data.formats.label_maps import ClassValues
from src.errors import UserError
from src.file_names import quoted
from src.types import Colour

_IMAGE = "_leftImg8bit.png"
_COARSE = {
    "refined": ("refinement_final/train_extra", "_gtFine_labelTrainIds.png"),
    "original": ("gtCoarse/train_extra", "_gtCoarse_labelTrainIds.png"),
}


class CityscapesDataModule(ADE20KDataModule):
    """Data module of Cityscapes: ``root/{leftImg8bit,gtFine}/{train,val}/<city>/*``.

    Args:
        root: Folder of the unpacked archives.
        coarse: Also train on ``leftImg8bit/train_extra``, with the ``original`` coarse label maps
            in ``gtCoarse``, or with ``refined`` ones in ``refinement_final``, as in the official
            models.
        instances: Read the instances in evaluation, ``*_gtFine_instanceIds.png``, for the IoU of
            instances (``--model.metric CityscapesMetric``).
        kwargs: See `ADE20KDataModule`.

    Raises:
        UserError: As `ADE20KDataModule`.
    """

    def __init__(
        self,
        root: str = "data/cityscapes",
        coarse: Literal["refined", "original"] | None = None,
        instances: bool = False,
        train_images: str = "leftImg8bit/train",
        train_labels: str = "gtFine/train",
        val_images: str = "leftImg8bit/val",
        val_labels: str = "gtFine/val",
        image_suffix: str | None = _IMAGE,
        label_suffix: str = "_gtFine_labelTrainIds.png",
        reduce_zero_label: bool = False,
        class_names: list[str] | str = "cityscapes",
        image_scale: tuple[int, int] = (2048, 1024),
        crop_size: tuple[int, int] = (512, 1024),
        **kwargs: Any,
    ) -> None:
        official = class_names == "cityscapes"
        super().__init__(
            root=root,
            train_images=train_images,
            train_labels=train_labels,
            val_images=val_images,
            val_labels=val_labels,
            image_suffix=image_suffix,
            label_suffix=label_suffix,
            reduce_zero_label=reduce_zero_label,
            class_names=self.official_class_names() if official else class_names,
            image_scale=image_scale,
            crop_size=crop_size,
            **kwargs,
        )
        self.coarse, self.instances = coarse, instances

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 19 evaluated classes."""
        return list(CITYSCAPES_NAMES)

    @classmethod
    def official_palette(cls) -> list[Colour] | None:
        """Colours of these classes."""
        return list(CITYSCAPES_PALETTE.values())

    def eval_dataset(self, split: str) -> SegmentationEvalDataset:
        """Images and label maps of ``val`` or ``test``."""
        if not self.instances:
            return super().eval_dataset(split)
        return CityscapesEvalDataset(
            self.labelled_files(split), self.eval_transform, **self._reading(split)
        )

    def labelled_files(self, split: str) -> list[tuple[str, str]]:
        """Image files of a split, each with its label map."""
        try:
            pairs = super().labelled_files(split)
            if split == "train" and self.coarse is not None:
                labels, suffix = _COARSE[self.coarse]
                images = self.root / "leftImg8bit/train_extra"
                pairs += find_pairs(images, self.root / labels, _IMAGE, suffix)
        except UserError as error:
            if next(self.root.glob("gt*/*/*/*_polygons.json"), None) is None:
                raise
            raise UserError(
                f"{error} `python -m src prepare cityscapes --root {quoted(self.root)}` makes label"
                " maps of train ids from the polygons."
            ) from error
        return pairs


class MapillaryDataModule(CityscapesDataModule):
    """Data module of Mapillary Vistas v1.2 with the classes of Cityscapes, for pretraining.

    As in the official models, training uses the training and the validation images of Mapillary,
    ``root/{training,validation}/{images,labels}/*``, and evaluation those of Cityscapes.

    Args:
        root: Folder of Mapillary Vistas.
        cityscapes_root: Folder of Cityscapes.
        high_values_are_road: Read numbers above 65, which v1.2 does not have, as road, like the
            official label transform; default is to refuse them, except 255 (unlabelled).
        kwargs: See `CityscapesDataModule`.

    Raises:
        UserError: As `ADE20KDataModule`.
    """

    def __init__(
        self,
        root: str = "data/Mapillary",
        cityscapes_root: str = "data/cityscapes",
        high_values_are_road: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=cityscapes_root, **kwargs)
        self.mapillary_root = Path(root)
        self.high_values_are_road = high_values_are_road

    def labelled_files(self, split: str) -> list[tuple[str, str]]:
        """Image files of a split, each with its label map."""
        if split != "train":
            return super().labelled_files(split)
        folders = [self.mapillary_root / name for name in ("training", "validation")]
        return [
            pair for folder in folders for pair in find_pairs(folder / "images", folder / "labels")
        ]

    def label_values(self, split: str) -> ClassValues | None:
        """Class of each number in the label maps of Mapillary."""
        if split != "train":
            return super().label_values(split)
        high = dict.fromkeys(range(len(MAPILLARY_TO_CITYSCAPES), 256), 0)
        return MAPILLARY_TO_CITYSCAPES | (high if self.high_values_are_road else {})

    def _without_suffix(self, split: str) -> dict[str, int]:
        return {}
