"""Images in class folders for classification: ImageNet-1k, or any dataset of the same layout.

The defaults are the official recipe; evaluation uses crop ratio 1.0. Mixup, CutMix and label
smoothing belong to the task. The list files and the in-memory caches of the official code are not
needed: folders are read as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from src.data.classes.class_names import (
    ClassSet,
    imagenet_synsets,
    readable_names,
    resolve_classes,
)
from src.data.datamodules.base import MAX_SIDE, BaseDataModule, check
from src.data.datamodules.image_source import ImageSource
from src.data.datamodules.loaders import LOADING, LoaderOptions
from src.data.datasets.features import FeatureDataset
from src.data.datasets.image_folder import (
    ImageFilesDataset,
    LabelledImages,
    class_folder_files,
)
from src.data.datasets.readable import BrokenImages
from src.data.samplers.balanced import BalancedBatchSampler
from src.data.samplers.distributed import DistributedBatchSampler
from src.data.transforms.batches import Erasing, ErasingMode, Normalization
from src.data.transforms.classification import EvalTransform, Interpolation, TrainTransform
from src.decoding import MAX_PIXELS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageNetDataModule(BaseDataModule):
    """Data module of ImageNet and other class folders: ``root/train/<class>/**``, ``root/val/...``.

    Labels follow the sorted folder names.

    Args:
        root: Folder that holds ``train`` and ``val``. Validation and prediction do not need
            ``train``.
        image_size: Height and width of the network's input in pixels.
        batch_size: Training images per device and step.
        num_workers: Data loader workers per device; 0 loads in the main process.
        eval_batch_size: Images per device in validation, test and prediction; default
            ``batch_size``.
        crop_scale: Smallest and largest area of the random training crop, relative to the image.
        crop_ratio: Smallest and largest width / height of the random training crop.
        hflip: Probability of a horizontal flip in training.
        color_jitter: Strength of colour jitter in training; used only when ``auto_augment`` is
            null.
        auto_augment: RandAugment or another policy in timm's notation; null switches it off.
        random_erasing: Probability of erasing a rectangle in training.
        erasing_mode: Filling of the rectangle: zeros, one random colour, or a random colour per
            pixel.
        erasing_count: Number of rectangles.
        interpolation: Filter of crops and resizes.
        crop_pct: Side of the centre crop relative to the resized shorter side in evaluation;
            official: 1.0.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel.
        train_split: Folder under ``root`` of the training images.
        val_split: Folder under ``root`` of the validation images.
        test_split: Folder under ``root`` that ``test`` reads; default is ``val_split``, which
            ImageNet is tested on.
        predict_dir: A folder of images, searched at any depth, or a single image, for
            ``predict``.
        class_names: Names of the classes: a list, a text file with one name per line, or
            "imagenet-1k". Names that include all class folders are folder names in label order
            (there may be more names than folders, so that a 1000-class model can be tested on a few
            classes); others are readable names for the sorted folders. Default: the folder names,
            with words in place of ImageNet synsets.
        broken_images: See `BaseDataModule`.
        upright: Turn images as their EXIF block says; the official recipe does not.
        max_pixels: Largest width times height of an image; larger ones count as broken.
        reduced_decoding: Where JPEG files are decoded at half, a quarter or an eighth of their size
            if that leaves as many pixels as the network needs: in "train", "always", or "never".
            The official pixels of evaluation need full size.
        class_balanced: Draw the images of all classes equally often in training: those of rare
            classes are repeated, and an epoch has some of those of frequent classes. Its length
            stays the same.
        loading: Settings of the data loaders.

    Raises:
        UserError: If a value is out of range; later, if files are missing or do not fit.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        eval_batch_size: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erasing: float = 0.25,
        erasing_mode: ErasingMode = "pixel",
        erasing_count: int = 1,
        interpolation: Interpolation = "bicubic",
        crop_pct: float = 1.0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        predict_dir: str | None = None,
        class_names: list[str] | str | None = None,
        broken_images: BrokenImages = "error",
        upright: bool = False,
        max_pixels: int = MAX_PIXELS,
        reduced_decoding: Literal["train", "always", "never"] = "train",
        class_balanced: bool = False,
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
        check(1 <= image_size <= MAX_SIDE, "image_size", image_size, f"1 to {MAX_SIDE} pixels")
        check(0.1 <= crop_pct <= 1, "crop_pct", crop_pct, "a ratio from 0.1 to 1")
        check(
            0 < crop_scale[0] <= crop_scale[1] <= 1,
            "crop_scale",
            crop_scale,
            "two areas in (0, 1], the smaller one first",
        )
        check(
            0 < crop_ratio[0] <= crop_ratio[1],
            "crop_ratio",
            crop_ratio,
            "two positive ratios, the smaller one first",
        )
        for name, value in (("hflip", hflip), ("random_erasing", random_erasing)):
            check(0 <= value <= 1, name, value, "a probability from 0 to 1")
        check(color_jitter >= 0, "color_jitter", color_jitter, "0 (off) or a positive strength")
        check(erasing_count >= 1, "erasing_count", erasing_count, "an integer of at least 1")
        check(min(std) > 0, "std", std, "three positive numbers")
        self.root = Path(root)
        self.image_size = image_size
        self.splits = {"train": train_split, "val": val_split, "test": test_split or val_split}
        self.upright, self.class_balanced = upright, class_balanced
        self._given_names = class_names
        check(
            reduced_decoding in ("train", "always", "never"),
            "reduced_decoding",
            reduced_decoding,
            '"train", "always" or "never"',
        )
        self.normalization: Normalization = Normalization(mean, std)
        self._erasing = Erasing(random_erasing, erasing_mode, erasing_count)
        self._train_transform = TrainTransform(
            image_size,
            mean=mean,
            interpolation=interpolation,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            hflip=hflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            reduced_decoding=reduced_decoding != "never",
        )
        self._eval_transform = EvalTransform(
            image_size, interpolation=interpolation, crop_pct=crop_pct
        )
        self._eval_reduction = (
            self._eval_transform.reduction if reduced_decoding == "always" else None
        )

    @cached_property
    def classes(self) -> ClassSet:
        """Folders and readable names in label order."""
        return resolve_classes(
            self.root, self._given_names, (self.splits["train"], self.splits["val"])
        )

    @property
    def has_test_images(self) -> bool:
        """Whether ``test`` has images of its own; otherwise it reads the validation images."""
        return self.splits["test"] != self.splits["val"]

    @property
    def class_names(self) -> list[str]:
        """Readable class names in label order."""
        return list(self.classes.names)

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Readable names of the 1000 classes of ImageNet-1k."""
        if cls is not ImageNetDataModule:  # a subclass may have other classes
            return super().official_class_names()
        return list(readable_names(imagenet_synsets()))

    def setup(self, stage: str) -> None:
        """List the files that a stage needs.

        Raises:
            UserError: If a folder is missing or empty, or the classes of train and val differ.
        """
        if stage == "fit":
            training = self._labelled("train", train=True)
            self._datasets["train"] = training
            where = f"none of the {len(training)} training images"
            self.warn_of_absent(set(training.labels.tolist()), where)
        if stage in ("fit", "validate"):
            self._datasets["val"] = self._labelled("val")
        if stage == "test":
            self._datasets["test"] = self._labelled("test")
        if stage == "predict":
            self._datasets["predict"] = self.files_to_predict(self.predict_source())

    def files_to_predict(self, source: str | Sequence[str]) -> ImageFilesDataset:
        """Images to classify."""
        dataset = ImageFilesDataset(
            source, self._eval_transform, upright=self.upright, max_pixels=self.max_pixels
        )
        dataset.reduce = self._eval_reduction
        return dataset

    def training_sampler(self, dataset: Dataset[Any]) -> DistributedBatchSampler:
        """Order of the training images; with `class_balanced`, all classes equally often."""
        if not self.class_balanced:
            return super().training_sampler(dataset)
        labels = cast("LabelledImages", dataset).labels
        return BalancedBatchSampler(dataset, labels, self.batch_size, *self.ranks_and_seed())

    def augment(self, batch: Any) -> Any:
        """Erase random rectangles."""
        self._erasing(batch["image"])
        return batch

    def use_features(self, split: str) -> FeatureDataset:
        """Load features instead of the images of a split from now on.

        Returns:
            The dataset, without features yet.
        """
        labels = cast("LabelledImages", self._datasets[split]).labels
        self._features[split] = FeatureDataset(labels)
        return self._features[split]

    def use_images(self) -> None:
        """Load images again, after `use_features`."""
        self._features.clear()

    def image_source(self, split: str, *, augmented: bool) -> ImageSource:
        """The images of a split in their order, with random augmentation or as in evaluation."""
        steps: list[Callable[[Tensor], Tensor]] = [self.normalization]
        steps += [self._erasing] if augmented else []
        return ImageSource(
            self._labelled(split, train=augmented),
            steps,
            self.eval_batch_size,
            self.num_workers,
            self.loading,
        )

    def labelled_files(self, split: str) -> tuple[list[str], list[int]]:
        """Image files of ``train``, ``val`` or ``test``, and the label of each.

        A dataset of another layout overrides this and `class_names`.
        """
        return class_folder_files(self.root / self.splits[split], self.classes.folders)

    def metadata(self, split: str) -> dict[str, NDArray[np.float32]]:
        """Further values of each image of a split, such as its date; default is none.

        A classifier gets those that its ``metadata_inputs`` name.
        """
        return {}

    def _labelled(self, split: str, *, train: bool = False) -> LabelledImages:
        dataset = LabelledImages(
            *self.labelled_files(split),
            self._train_transform if train else self._eval_transform,
            self.broken_images,
            upright=self.upright,
            max_pixels=self.max_pixels,
            train=train,
            metadata=self.metadata(split),
        )
        dataset.reduce = None if train else self._eval_reduction
        return dataset
