"""COCO for detection and instance segmentation, or any dataset in the same format.

The classes are read from the annotation files, so that other data needs nothing but other paths.
The defaults are the official 12-epoch recipe; the long schedules change ``train_scales`` and
``crop_scales``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from src.data.classes.class_names import read_class_names
from src.data.classes.coco import COCO_CATEGORIES
from src.data.datamodules.base import BaseDataModule, Collate, check
from src.data.datamodules.loaders import LOADING, LoaderOptions
from src.data.datasets.coco_detection import (
    COCOEvalDataset,
    COCOTrainDataset,
    DetectionFilesDataset,
    collate,
)
from src.data.datasets.readable import BrokenImages
from src.data.formats.coco_json import MAX_ANNOTATIONS, CocoFile, read_coco
from src.data.formats.image_sizes import read_sizes
from src.data.samplers.aspect_ratio import AspectRatioSampler
from src.data.samplers.class_aware import ClassAwareSampler, repeat_factors
from src.data.transforms.batches import Normalization, clear_padding
from src.data.transforms.protocols import ImageTransform
from src.decoding import MAX_PIXELS, BrokenImageError
from src.errors import UserError
from src.types import ClassFacts

Scale = tuple[int, int]


class COCODataModule(BaseDataModule):
    """Data module of COCO: annotation files and folders of images.

    Args:
        root: Folder that the other paths are in.
        train_images: Folder of training images.
        train_annotations: Annotation file of the training images.
        val_images: Folder of validation images.
        val_annotations: Annotation file of the validation images.
        test_images: Folder of images for ``test``; default is the validation images.
        test_annotations: Annotation file of the images for ``test``.
        train_scales: Long and short side that a training image is resized to fit; one of them is
            drawn for each image.
        train_scale_mode: ``value`` takes one of ``train_scales``; ``range`` draws both sides
            between the smallest and the largest.
        crop_scales: If given, half of the training images are first resized to fit one of these
            sizes and cropped, then resized to ``train_scales``.
        crop_sides: Smallest and largest side of the crop in pixels.
        allow_empty_crop: Whether a crop may have no annotation; if not, another image is used.
        hflip: Probability of a horizontal flip in training.
        repeat: How often every training image occurs in an epoch.
        repeat_threshold: If given, images of rare classes occur more often: a class in a smaller
            part of the images than this is repeated (`src.data.samplers.repeat_factors`; LVIS).
        class_aware: Draw a class for every training image, all equally often, then one of its
            images (`src.data.samplers.class_aware`; OpenImages). Batches then mix orientations.
        keep_empty: Also train on images without annotations, as examples of background.
        min_size: Training images with a shorter side are left out.
        masks: Read masks as well as boxes; false saves memory for detectors without masks (DINO)
            and keeps annotations without a usable mask.
        eval_scale: Long and short side that images are resized to fit in evaluation.
        tta: Test-time augmentation for detectors without masks: in ``validate``, ``test`` and
            ``predict``, detect at several scales, with and without a flip, and fuse the boxes.
        tta_ratios: Scales relative to ``eval_scale``; 1.0 is always among them.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel.
        batch_size: Training images per device and step.
        num_workers: Data loader workers per device; 0 loads in the main process.
        eval_batch_size: Images per device in evaluation. The published results are for 1: larger
            batches pad images more, which changes results slightly.
        seed: Determines the order of the training images, together with the epoch.
        predict_dir: A folder of images, searched at any depth, or a single image, for
            ``predict``.
        class_names: Names of the classes in label order, as weights were trained with: a list, a
            text file with one name per line, or ``"coco"``. Annotation files may list fewer
            classes, which are matched by name. Default: the categories of the annotation files.
        broken_images: See `BaseDataModule`.
        max_pixels: Largest width times height of an image; larger ones count as broken.
        max_annotations: Largest number of annotations of an image. In training each mask takes a
            byte for every pixel of its image.
        loading: Settings of the data loaders.

    Raises:
        UserError: If a value is out of range; later, if files are missing or do not fit.
    """

    normalization: Normalization

    def __init__(
        self,
        root: str = "data/coco",
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        test_images: str | None = None,
        test_annotations: str | None = None,
        train_scales: list[Scale] = [(1333, 800)],  # noqa: B006 - read only; YAML needs a list
        train_scale_mode: Literal["value", "range"] = "value",
        crop_scales: list[Scale] | None = None,
        crop_sides: tuple[int, int] = (384, 600),
        allow_empty_crop: bool = True,
        hflip: float = 0.5,
        repeat: int = 1,
        repeat_threshold: float | None = None,
        class_aware: bool = False,
        keep_empty: bool = False,
        min_size: int = 32,
        masks: bool = True,
        eval_scale: Scale = (1333, 800),
        tta: bool = False,
        tta_ratios: tuple[float, ...] = (0.8, 1.0, 1.2),
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        batch_size: int = 2,
        num_workers: int = 4,
        eval_batch_size: int | None = 1,
        seed: int = 0,
        predict_dir: str | None = None,
        class_names: list[str] | str | None = None,
        broken_images: BrokenImages = "error",
        max_pixels: int = MAX_PIXELS,
        max_annotations: int = MAX_ANNOTATIONS,
        loading: LoaderOptions = LOADING,
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            eval_batch_size,
            broken_images,
            max_pixels,
            predict_dir,
            loading,
        )
        pairs = "pairs of positive numbers of pixels"
        for name, scales in (("train_scales", train_scales), ("crop_scales", crop_scales)):
            valid = scales is None or (bool(scales) and all(min(scale) >= 1 for scale in scales))
            check(valid, name, scales, pairs)
        check(min(eval_scale) >= 1, "eval_scale", eval_scale, "two positive numbers of pixels")
        check(
            1 <= crop_sides[0] <= crop_sides[1],
            "crop_sides",
            crop_sides,
            "two positive numbers of pixels, the smaller one first",
        )
        check(
            bool(tta_ratios) and min(tta_ratios) > 0, "tta_ratios", tta_ratios, "positive factors"
        )
        check(0 <= hflip <= 1, "hflip", hflip, "a probability from 0 to 1")
        check(repeat >= 1, "repeat", repeat, "an integer of at least 1")
        check(
            repeat_threshold is None or 0 < repeat_threshold <= 1,
            "repeat_threshold",
            repeat_threshold,
            "null (off) or a part of the images above 0 and up to 1",
        )
        check(
            not class_aware or (repeat == 1 and repeat_threshold is None),
            "class_aware",
            class_aware,
            "false together with data.repeat or data.repeat_threshold, which it replaces",
        )
        check(min(std) > 0, "std", std, "three positive numbers")
        check(
            (test_images is None) == (test_annotations is None),
            "test_annotations",
            test_annotations,
            "a file together with data.test_images, or null for both",
        )
        self.root = Path(root)
        self.splits = {
            "train": (train_images, train_annotations),
            "val": (val_images, val_annotations),
            "test": (test_images or val_images, test_annotations or val_annotations),
        }
        self.seed = seed
        check(max_annotations >= 1, "max_annotations", max_annotations, "a positive number")
        self.max_annotations = max_annotations
        self._given_names = class_names
        self._masks = masks
        self._repeat, self._repeat_threshold = repeat, repeat_threshold
        self._class_aware = class_aware
        self._filter = {"keep_empty": keep_empty, "min_size": min_size, "masks": masks}
        self.normalization = Normalization(mean, std)
        self._eval_scale = eval_scale
        self._tta_ratios = tta_ratios if tta else ()
        self._train_options = {
            "scales": train_scales,
            "scale_mode": train_scale_mode,
            "crop_scales": crop_scales,
            "crop_sides": crop_sides,
            "allow_empty_crop": allow_empty_crop,
            "hflip": hflip,
        }
        self._files: dict[str, CocoFile] = {}

    @cached_property
    def categories(self) -> dict[int, str]:
        """Id and name of every category in label order."""
        split = next((s for s in ("train", "val", "test") if self._path(s).is_file()), None)
        if split is not None:
            return self.annotation_file(split).categories
        if self._given_classes is None:
            raise UserError(
                f"There is no annotation file at {self._path('train')} or {self._path('val')}, so "
                "the classes are unknown. Check data.root, or for predict give the names with "
                "data.class_names (coco for the 80 classes of COCO)."
            )
        return {number: name for name, number in self._given_classes.items()}

    @cached_property
    def _given_classes(self) -> dict[str, int] | None:
        """Names of ``class_names``, each with the category id it has if no file gives one."""
        if self._given_names is None:
            return None
        if self._given_names == "coco":
            return {name: number for number, name in COCO_CATEGORIES.items()}
        names = read_class_names(self._given_names, keyword="coco")
        return {name: number for number, name in enumerate(names, start=1)}

    @property
    def has_test_images(self) -> bool:
        """Whether ``test`` has images of its own; otherwise it reads the validation images."""
        return self.splits["test"] != self.splits["val"]

    @property
    def class_names(self) -> list[str]:
        """Names of the categories in label order."""
        return list(self.categories.values())

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 80 categories of COCO."""
        if cls is not COCODataModule:  # a subclass may have other classes
            return super().official_class_names()
        return list(COCO_CATEGORIES.values())

    @property
    def category_ids(self) -> list[int]:
        """Category id of each class in the annotation files."""
        return list(self.categories)

    @property
    def class_facts(self) -> ClassFacts:
        """Frequencies of the classes, if an annotation file gives them (LVIS)."""
        found = [file.frequencies for file in self._files.values() if file.frequencies]
        return ClassFacts(frequencies=found[0]) if found else ClassFacts()

    @cached_property
    def eval_transform(self) -> ImageTransform:
        """Preparation of images for evaluation and prediction."""
        # Imported here, because albumentations takes seconds and `--help` does not need it.
        from src.data.transforms.detection import DetectionEvalTransform

        return DetectionEvalTransform(self._eval_scale, ratios=self._tta_ratios)

    def setup(self, stage: str) -> None:
        """Read the annotation files that a stage needs.

        Raises:
            UserError: If a file is missing or broken, or the splits have different categories.
        """
        if stage == "fit":
            from src.data.transforms.detection import DetectionTrainTransform

            transform = DetectionTrainTransform(**self._train_options)  # type: ignore[arg-type]
            self._datasets["train"] = COCOTrainDataset(
                self.annotation_file("train"),
                self.root / self.splits["train"][0],
                transform,
                broken_images=self.broken_images,
                max_pixels=self.max_pixels,
                **self._filter,  # type: ignore[arg-type]
            )
            if not any(self.annotation_file("val").num_annotations):
                rank_zero_warn(
                    f"{self._path('val')} has no annotations, so every AP will be -1 and the best "
                    "checkpoint cannot be told."
                )
            file = self.annotation_file("train")
            self.warn_of_absent(+file.objects_of_class, f"no usable annotation of {file.path}")
        if stage in ("fit", "validate"):
            self._datasets["val"] = self._evaluated("val")
        if stage == "test":
            self._datasets["test"] = self._evaluated("test")
        if stage == "predict":
            self._datasets["predict"] = self.files_to_predict(self.predict_source())

    def files_to_predict(self, source: str | Sequence[str]) -> DetectionFilesDataset:
        """Images to detect objects in, turned upright."""
        return DetectionFilesDataset(
            source, self.eval_transform, upright=True, max_pixels=self.max_pixels
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches of one orientation (`src.types.DetectionBatch`)."""
        dataset = self._datasets["train"]
        assert isinstance(dataset, COCOTrainDataset)
        trainer = self.trainer
        ranks = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        common = (self.batch_size, *ranks, self.seed)
        if self._class_aware:
            by_class = ClassAwareSampler(dataset, dataset.images_of_classes, *common)
            return self.loader("train", train=True, sampler=by_class)
        repeats = np.full(len(dataset), self._repeat)
        if self._repeat_threshold is not None:
            images = dataset.images_of_classes
            repeats *= repeat_factors(images, len(dataset), self._repeat_threshold)
        is_wide = dataset.is_wide
        sampler = AspectRatioSampler(dataset, is_wide, *common, repeats)  # type: ignore[arg-type]
        return self.loader("train", train=True, sampler=sampler)

    def collate_fn(self, split: str) -> Collate:
        """Pad images of different sizes to one size (`src.types.DetectionBatch`)."""
        return collate

    def normalise(self, batch: Any) -> Any:
        """Turn a batch of a loader into the network's input, with padding of zero."""
        if batch["image"].dtype != torch.uint8:
            return batch
        image = clear_padding(self.normalization(batch["image"]), torch.tensor(batch["size"]))
        done = {**batch, "image": image}
        if "views" in batch:
            done["views"] = [self.normalise(view) for view in batch["views"]]
        return done

    def _path(self, split: str) -> Path:
        return self.root / self.splits[split][1]

    def read_annotations(self, split: str) -> dict[str, list[Any]]:
        """Content of the annotation file of a split as COCO json; other formats override this.

        Raises:
            UserError: If the file is missing or broken.
        """
        return read_coco(self._path(split))

    def measured_images(self, files: Mapping[str, str], folder: str) -> list[dict[str, Any]]:
        """Entries ``images`` of a format that does not give the sizes of the images.

        Args:
            files: File name of each image by its id.
            folder: Folder of the images.

        Raises:
            UserError: If an image cannot be read; with ``broken_images: skip`` it is left out.
        """
        paths = [str(self.root / folder / name) for name in files.values()]
        images = []
        for (number, name), size in zip(
            files.items(), read_sizes(paths, self.max_pixels), strict=True
        ):
            if isinstance(size, BrokenImageError):
                if self.broken_images == "error":
                    raise size
                rank_zero_warn(f"{size} The image is left out.")
                continue
            height, width = size
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        return images

    def annotation_file(self, split: str) -> CocoFile:
        """The checked annotations of a split, read once."""
        path = str(self._path(split))
        if path not in self._files:
            self._files[path] = CocoFile(
                path,
                self._masks,
                self._given_classes,
                self.max_annotations,
                self.read_annotations(split),
            )
        return self._files[path]

    def _evaluated(self, split: str) -> COCOEvalDataset:
        file, wanted = self.annotation_file(split), self.categories
        if self._given_classes is not None:  # a file need not list all of them
            wanted = {number: name for number, name in wanted.items() if number in file.listed}
        if file.listed != wanted:
            raise UserError(
                f"{file.path} has other categories than the training annotations: "
                f"{_first_difference(file.listed, wanted)}."
            )
        folder = self.root / self.splits[split][0]
        return COCOEvalDataset(
            file, folder, self.eval_transform, self.broken_images, self.max_pixels
        )


def _first_difference(found: dict[int, str], wanted: dict[int, str]) -> str:
    for number in sorted(found.keys() | wanted.keys()):
        if found.get(number) != wanted.get(number):
            return f"category {number} is {found.get(number)!r} instead of {wanted.get(number)!r}"
    raise ValueError("the categories are equal")
