"""ADE20K for semantic segmentation, or any dataset of images and label maps in two folders.

The defaults are the official recipe for 512 pixels; the larger models change ``image_scale`` and
``crop_size``. ``transforms/segmentation.py`` has the official pipeline,
``datasets/segmentation_folder.py`` reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from src.data.classes.ade20k import ADE20K_NAMES, ade20k_palette
from src.data.classes.class_names import read_class_names
from src.data.classes.palette import distinct_palette
from src.data.datamodules.absent_classes import find_occurring_classes
from src.data.datamodules.base import MAX_SIDE, BaseDataModule, Collate, check
from src.data.datamodules.loaders import LOADING, LoaderOptions
from src.data.datasets.readable import BrokenImages
from src.data.datasets.segmentation_folder import (
    SegmentationCollate,
    SegmentationEvalDataset,
    SegmentationFilesDataset,
    SegmentationTrainDataset,
    find_pairs,
    listed_pairs,
)
from src.data.formats.image_files import first_images, list_images
from src.data.formats.label_maps import (
    MAX_CLASSES,
    ClassValues,
    is_own_value,
    number_of_each_class,
    to_own_numbers,
)
from src.data.transforms.batches import Normalization, clear_padding
from src.data.transforms.protocols import ViewsTransform
from src.decoding import MAX_PIXELS
from src.errors import UserError
from src.types import IGNORE_LABEL, Colour

Triple = tuple[float, float, float]


class ADE20KDataModule(BaseDataModule):
    """Data module of ADE20K: ``root/images/*`` and ``root/annotations/*``.

    Another dataset of two folders needs no code, only the names of its folders and classes.

    Args:
        root: Folder that the other folders are in.
        train_images: Folder of training images, searched at any depth.
        train_labels: Folder of their label maps, in the same subfolders.
        val_images: Folder of validation images.
        val_labels: Folder of their label maps.
        test_images: Folder of images for ``test``; default is the validation images.
        test_labels: Folder of their label maps.
        image_lists: Text files in ``root`` that list the images of ``train``, ``val`` and ``test``,
            one name per line without suffix; default is all images of the folders. The suffix of
            listed images is ``image_suffix``, by default ``.jpg``.
        image_suffix: Suffix of the image files, for example ``_leftImg8bit.png``; default is the
            extension of any image.
        label_suffix: What replaces it in the name of the label map.
        reduce_zero_label: Label maps count classes from 1, and 0 means unlabelled.
        class_values: Number of each class in the label maps, in label order, for numbers with gaps,
            or class of each number, such as ``{7: 0, 8: 0, 9: 255}``; default counts from 0 or,
            with ``reduce_zero_label``, from 1. 255 is unlabelled.
        own_values: Number or colour of each class in your own label maps, from which ``prepare
            from-masks`` has made others; ``predict --label_maps.values own`` writes them, and
            ``predict`` and ``export`` say numbers beside the class numbers.
        class_names: Names of the classes in label order: a list, a text file with one name per
            line, or ``"ade20k"``. Default: those of ADE20K; required if the images are not
            ADE20K's, whose file names start with ``ADE_``.
        palette: Red, green and blue of each class, 0 to 255. Default: ADE20K's for its classes,
            else generated.
        image_scale: Largest long and short side in pixels that images are scaled to.
        eval_scale: The same in evaluation and prediction; default is ``image_scale``.
        ratio_range: Smallest and largest random factor on ``image_scale`` in training.
        crop_size: Height and width of the training crop in pixels.
        cat_max_ratio: A crop in which one class has at least this share of the labelled pixels is
            drawn again, up to ten times; 1 is off.
        hflip: Probability of a horizontal flip in training.
        photometric: Whether to change brightness, contrast, saturation and hue in training.
        size_divisor: Images are resized to sides that are multiples of this in evaluation.
        tta: Test-time augmentation: evaluate and predict at the scales ``tta_ratios``, each with
            and without a flip, and average the probabilities.
        tta_ratios: Scales relative to ``image_scale``.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel.
        batch_size: Training images per device and step.
        num_workers: Data loader workers per device; 0 loads in the main process.
        eval_batch_size: Images per device in evaluation. Images of equal size are segmented
            together and never padded, so the metrics do not depend on it.
        predict_dir: A folder of images, searched at any depth, or a single image, for
            ``predict``.
        upright: Turn images as their EXIF block says; label maps are not turned.
        broken_images: See `BaseDataModule`.
        max_pixels: Largest width times height of an image; larger ones count as broken.
        loading: Settings of the data loaders.

    Raises:
        UserError: If a value is out of range; later, if files are missing or do not fit.
    """

    normalization: Normalization

    def __init__(
        self,
        root: str = "data/ADEChallengeData2016",
        train_images: str = "images/training",
        train_labels: str = "annotations/training",
        val_images: str = "images/validation",
        val_labels: str = "annotations/validation",
        test_images: str | None = None,
        test_labels: str | None = None,
        image_lists: dict[str, str] | None = None,
        image_suffix: str | None = None,
        label_suffix: str = ".png",
        reduce_zero_label: bool = True,
        class_values: list[int] | dict[int, int] | None = None,
        own_values: list[int] | list[tuple[int, int, int]] | None = None,
        class_names: list[str] | str | None = None,
        palette: list[tuple[int, int, int]] | None = None,
        image_scale: tuple[int, int] = (2048, 512),
        eval_scale: tuple[int, int] | None = None,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        crop_size: tuple[int, int] = (512, 512),
        cat_max_ratio: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
        size_divisor: int = 32,
        tta: bool = False,
        tta_ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        batch_size: int = 2,
        num_workers: int = 4,
        eval_batch_size: int | None = 1,
        predict_dir: str | None = None,
        upright: bool = False,
        broken_images: BrokenImages = "error",
        max_pixels: int = MAX_PIXELS,
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
        sides = "two positive numbers of pixels"
        eval_scale = eval_scale or image_scale
        check(min(image_scale) >= 1, "image_scale", image_scale, sides)
        check(min(eval_scale) >= 1, "eval_scale", eval_scale, sides)
        check(
            min(crop_size) >= 1 and max(crop_size) <= MAX_SIDE,
            "crop_size",
            crop_size,
            f"a height and a width from 1 to {MAX_SIDE} pixels",
        )
        check(
            0 < ratio_range[0] <= ratio_range[1],
            "ratio_range",
            ratio_range,
            "two positive factors, the smaller one first",
        )
        check(0 < cat_max_ratio <= 1, "cat_max_ratio", cat_max_ratio, "a share in (0, 1]")
        check(0 <= hflip <= 1, "hflip", hflip, "a probability from 0 to 1")
        check(1 <= size_divisor <= 1024, "size_divisor", size_divisor, "an integer from 1 to 1024")
        check(
            bool(tta_ratios) and min(tta_ratios) > 0, "tta_ratios", tta_ratios, "positive factors"
        )
        check(
            class_values is None or (not reduce_zero_label and _are_values(class_values)),
            "class_values",
            class_values,
            "different numbers from 0 to 254, or the class or 255 of numbers from 0 to 255, with "
            "data.reduce_zero_label false",
        )
        check(
            own_values is None or all(map(is_own_value, own_values)),
            "own_values",
            own_values,
            "numbers from 0 to 65535, or colours of three numbers from 0 to 255",
        )
        check(
            image_lists is None or image_lists.keys() <= {"train", "val", "test"},
            "image_lists",
            image_lists,
            "a text file for each of train, val and test",
        )
        check(min(std) > 0, "std", std, "three positive numbers")
        check(
            (test_images is None) == (test_labels is None),
            "test_labels",
            test_labels,
            "a folder together with data.test_images, or null for both",
        )
        self.root = Path(root)
        self.folders = {
            "train": (train_images, train_labels),
            "val": (val_images, val_labels),
            "test": (test_images or val_images, test_labels or val_labels),
        }
        lists = image_lists or {}
        self.image_lists = {**lists, "test": lists.get("test", lists.get("val"))}
        self.suffixes = (image_suffix, label_suffix)
        self.reduce_zero_label, self.class_values = reduce_zero_label, class_values
        self._own_values = own_values
        self.upright = upright
        self._given_names, self._given_palette = class_names, palette
        self.normalization = Normalization(mean, std)
        self._train_options = {
            "crop_size": crop_size,
            "scale": image_scale,
            "ratio_range": ratio_range,
            "cat_max_ratio": cat_max_ratio,
            "hflip": hflip,
            "photometric": photometric,
        }
        self._eval_options = {
            "scale": eval_scale,
            "size_divisor": size_divisor,
            "ratios": tta_ratios if tta else (1.0,),
            "flip": tta,
        }

    @cached_property
    def _names(self) -> list[str]:
        if self._given_names is None:
            self._check_is_ade20k()
        if self._given_names in (None, "ade20k"):
            return list(ADE20K_NAMES)
        assert self._given_names is not None
        first = int(self.reduce_zero_label) if self.class_values is None else None
        names = read_class_names(self._given_names, keyword="ade20k", first=first)
        most = MAX_CLASSES - self.reduce_zero_label  # 255 stays the value of unlabelled pixels
        check(len(names) <= most, "class_names", len(names), f"up to {most} names")
        values = self.class_values
        if isinstance(values, Mapping):
            check(
                all(label < len(names) or label == IGNORE_LABEL for label in values.values()),
                "class_values",
                values,
                f"classes from 0 to {len(names) - 1}, and 255 for unlabelled",
            )
        elif values is not None:
            check(
                len(values) == len(names),
                "class_values",
                values,
                f"one number for each of the {len(names)} classes",
            )
        return names

    def _check_is_ade20k(self) -> None:
        """Refuse to take other data for ADE20K.

        Raises:
            UserError: If there are training or validation images, and none has a name of ADE20K.
        """
        folders = (self.root / self.folders[split][0] for split in ("train", "val"))
        names = (Path(path).name for folder in folders for path in first_images(folder))
        first = next(names, None)
        if first is None or any(name.startswith("ADE_") for name in (first, *names)):
            return
        raise UserError(
            f"The images in {self.root} (such as {first}) are not ADE20K's, which are named "
            "ADE_train_00000001.jpg, so their classes are not its 150 either: give data.class_names"
            " (a list or a text file, in the order of the numbers in the label maps), or ade20k if "
            "these are its classes. `python -m src prepare from-masks` writes a recipe with names."
        )

    @property
    def has_test_images(self) -> bool:
        """Whether ``test`` has images of its own; otherwise it reads the validation images."""
        sources = ((self.folders[split], self.image_lists.get(split)) for split in ("val", "test"))
        return len(set(sources)) > 1

    @property
    def class_names(self) -> list[str]:
        """Readable class names in label order."""
        return list(self._names)

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 150 classes of ADE20K."""
        if cls is not ADE20KDataModule:  # a subclass may have other classes
            return super().official_class_names()
        return list(ADE20K_NAMES)

    @classmethod
    def official_palette(cls) -> list[Colour] | None:
        """Colours of `official_class_names`; ``None`` if the dataset has none of its own."""
        return ade20k_palette() if cls is ADE20KDataModule else None

    @cached_property
    def palette(self) -> list[Colour]:
        """Red, green and blue of each class, 0 to 255."""
        if self._given_palette is None:
            official = self.official_palette()
            if official is not None and self._names == self.official_class_names():
                return official
            return distinct_palette(self.num_classes)
        colours = [tuple(colour) for colour in self._given_palette]
        values = [value for colour in colours for value in colour]
        if len(colours) != self.num_classes or not all(0 <= value <= 255 for value in values):
            raise UserError(
                f"data.palette accepts {self.num_classes} colours, one for each class, of values "
                f"from 0 to 255; got {len(colours)} colours."
            )
        return colours  # type: ignore[return-value]

    @cached_property
    def eval_transform(self) -> ViewsTransform:
        """Preparation of images for evaluation and prediction."""
        # Imported here, because albumentations takes seconds and `--help` does not need it.
        from src.data.transforms.segmentation import EvalTransform

        return EvalTransform(**self._eval_options)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        """List the files that a stage needs.

        Raises:
            UserError: If a folder or a label map is missing.
        """
        if stage == "fit":
            from src.data.transforms.segmentation import TrainTransform

            transform = TrainTransform(**self._train_options)  # type: ignore[arg-type]
            pairs = self.labelled_files("train")
            dataset = SegmentationTrainDataset(pairs, transform, **self._reading("train"))
            dataset.left_out = self._without_suffix("train")
            self._datasets["train"] = dataset
            if getattr(rank_zero_only, "rank", 0) == 0:
                self.warn_of_absent(*find_occurring_classes(dataset))
        if stage in ("fit", "validate"):
            self._datasets["val"] = self.eval_dataset("val")
        if stage == "test":
            self._datasets["test"] = self.eval_dataset("test")
        if stage == "predict":
            self._datasets["predict"] = self.files_to_predict(self.predict_source())

    def eval_dataset(self, split: str) -> SegmentationEvalDataset:
        """Images and label maps of ``val`` or ``test``."""
        return SegmentationEvalDataset(
            self.labelled_files(split), self.eval_transform, **self._reading(split)
        )

    def files_to_predict(self, source: str | Sequence[str]) -> SegmentationFilesDataset:
        """Images to segment."""
        return SegmentationFilesDataset(
            source, self.eval_transform, upright=self.upright, max_pixels=self.max_pixels
        )

    def collate_fn(self, split: str) -> Collate:
        """Training crops are stacked (`src.types.SegmentationBatch`), whole images are listed.

        See `src.types.SegmentationEvalBatch`.
        """
        if split == "train":
            return super().collate_fn(split)
        return SegmentationCollate(self.eval_transform.flipped)

    def normalise(self, batch: Any) -> Any:
        """Turn a batch of a loader into the network's input, with padding of zero."""
        if "views" in batch:
            views = [[self.normalization(view) for view in image] for image in batch["views"]]
            return {**batch, "views": views}
        if batch["image"].dtype != torch.uint8:
            return batch
        return {**batch, "image": clear_padding(self.normalization(batch["image"]), batch["size"])}

    def labelled_files(self, split: str) -> list[tuple[str, str]]:
        """Image files of a split, each with its label map.

        Raises:
            UserError: If a folder, a list or a label map is missing.
        """
        images, labels = (self.root / folder for folder in self.folders[split])
        if (names := self.image_lists.get(split)) is None:
            return find_pairs(images, labels, *self.suffixes)
        image_suffix, label_suffix = self.suffixes
        return listed_pairs(self.root / names, images, labels, image_suffix or ".jpg", label_suffix)

    @property
    def own_values(self) -> list[int] | list[Colour] | None:
        """Number or colour of each class in the user's label maps.

        ``None`` if several numbers stand for one class, or ``own_values`` are not one per class.
        """
        values: list[Any] | None = [
            n + int(self.reduce_zero_label) for n in range(self.num_classes)
        ]
        if self._own_values is not None:
            values = [v if isinstance(v, int) else tuple(v) for v in self._own_values]
        elif self.class_values is not None:
            values = number_of_each_class(self.class_values)
        return values if values is not None and len(values) == self.num_classes else None

    @property
    def own_numbers(self) -> list[int] | None:
        """`own_values` if they are numbers that do not count from 0."""
        numbers = [value for value in self.own_values or () if isinstance(value, int)]
        return numbers if numbers not in ([], list(range(self.num_classes))) else None

    def to_own_numbers(self) -> str | None:
        """How to get `own_values` from predicted label maps, in a sentence."""
        if self.own_numbers is not None:
            return to_own_numbers(self.own_numbers)
        has_colours = any(not isinstance(value, int) for value in self.own_values or ())
        return "convert them to RGB to get your colours" if has_colours else None

    def label_values(self, split: str) -> ClassValues | None:
        """Number of each class in the label maps of a split, or class of each number."""
        return self.class_values

    def _without_suffix(self, split: str) -> dict[str, int]:
        """Images that ``image_suffix`` leaves out, with the reason."""
        ending = self.suffixes[0]
        files = list_images(self.root / self.folders[split][0]) if ending else []
        count = sum(not path.endswith(str(ending)) for path in files)
        return {f"not ending in {ending} (data.image_suffix)": count} if count else {}

    def _reading(self, split: str) -> dict[str, Any]:
        """How image files and label maps are read."""
        return {
            "num_classes": self.num_classes,
            "reduce_zero_label": self.reduce_zero_label,
            "class_values": self.label_values(split),
            "upright": self.upright,
            "broken_images": self.broken_images,
            "max_pixels": self.max_pixels,
        }


def _are_values(values: ClassValues) -> bool:
    if isinstance(values, Mapping):
        numbers = [*values, *values.values()]
        return len(values) > 0 and min(numbers) >= 0 and max(numbers) <= IGNORE_LABEL
    return len(set(values)) == len(values) > 0 and min(values) >= 0 and max(values) < IGNORE_LABEL
