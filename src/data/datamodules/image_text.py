"""Image-text pairs in tars, for joint image-text pre-training (docs/data.md).

Training reads indexed tars in an order that depends only on the seed, the epoch and the step
(`src.data.samplers.windowed`). Validation reads held-out pairs (retrieval) and images in class
folders (zero-shot classification).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from src.data.classes.class_names import ClassSet, resolve_classes
from src.data.datamodules.base import MAX_SIDE, BaseDataModule, Collate, check
from src.data.datamodules.imagenet import IMAGENET_MEAN, IMAGENET_STD
from src.data.datamodules.loaders import LOADING, LoaderOptions
from src.data.datasets.image_folder import ImageFilesDataset, LabelledImages, class_folder_files
from src.data.datasets.image_text import ImageTextPairs
from src.data.datasets.readable import BrokenImages
from src.data.datasets.tokenizing import Tokenizer
from src.data.samplers.windowed import SourceOrder, WindowedOrder, WindowedSampler
from src.data.tars.cache import TarCache
from src.data.tars.index import read_index
from src.data.tars.reader import PairReader
from src.data.transforms.batches import Normalization
from src.data.transforms.classification import EvalTransform, Interpolation, TrainTransform
from src.decoding import MAX_PIXELS
from src.errors import UserError

_MOST_NAMES = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairSource:
    """An indexed set of tars.

    Attributes:
        index: Folder that ``prepare index-tars`` has written.
        weight: How often each pair is used in an epoch, on average. With 0.5, an epoch uses half of
            the pairs, and the next epoch the other half.
        root: Folder or URL of the tars, if they have moved since they were indexed.

    Raises:
        UserError: If the weight is not positive.
    """

    index: str
    weight: float = 1.0
    root: str | None = None

    def __post_init__(self) -> None:
        """Check the weight."""
        check(0 < self.weight < 1e6, "sources.weight", self.weight, "a positive number")


class ImageTextDataModule(BaseDataModule):
    """Data module of image-text pairs in tars that ``prepare index-tars`` has indexed.

    A training batch is ``{"image": uint8 (N, 3, H, W), "text": int64 (N, context_length), "id":
    int64 (N,)}``. There are up to two validation loaders: held-out pairs with the same kind of
    batch (`val_sources`), then images with ``label`` (`zero_shot_root`).

    Args:
        sources: Training pairs.
        val_sources: Held-out pairs for retrieval; all of each are used once.
        zero_shot_root: Folder of class folders for zero-shot classification.
        image_size: Height and width of the network's input in pixels.
        batch_size: Training pairs per device and step.
        num_workers: Data loader workers per device; 0 loads in the main process.
        eval_batch_size: Images per device in validation and test; default ``batch_size``.
        tokenizer: "clip", which open_clip contains, or a model of open_clip whose tokenizer is
            used, and downloaded if necessary.
        context_length: Tokens of a text; longer texts are cut.
        shuffle_tars: Tars of a source that are mixed with each other at a time. Each rank keeps its
            part of them open.
        cache_dir: Folder on a local disk for copies of remote tars.
        cache_gigabytes: Size of all copies in units of 10**9 bytes; more than those of
            ``shuffle_tars`` tars of each source, or tars are copied again and again.
        crop_scale: Smallest and largest area of the random training crop, relative to the image.
        crop_ratio: Smallest and largest width / height of the random training crop.
        hflip: Probability of a horizontal flip in training. Texts may mention left and right.
        color_jitter: Strength of colour jitter in training; used only if ``auto_augment`` is null.
        auto_augment: Policy in timm's notation; null switches it off.
        interpolation: Filter of crops and resizes.
        crop_pct: Side of the centre crop relative to the resized shorter side in evaluation.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel.
        class_names: Names of the zero-shot classes: see `ImageNetDataModule`.
        broken_images: See `BaseDataModule`; "skip" takes the next pair of the same tar.
        upright: Turn images as their EXIF block says.
        max_pixels: Largest width times height of an image; larger ones count as broken.
        reduced_decoding: Where JPEG files are decoded at a reduced size, see `ImageNetDataModule`.
        predict_dir: A folder of images or a single image for ``predict``.
        loading: Settings of the data loaders.

    Raises:
        UserError: If a value is out of range; later, if an index is missing or a tar has changed.
    """

    def __init__(
        self,
        sources: list[PairSource],
        val_sources: list[PairSource] | None = None,
        zero_shot_root: str | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        eval_batch_size: int | None = None,
        tokenizer: str = "clip",
        context_length: int = 77,
        shuffle_tars: int = 64,
        cache_dir: str | None = None,
        cache_gigabytes: float = 200.0,
        crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.0,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        interpolation: Interpolation = "bicubic",
        crop_pct: float = 1.0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        class_names: list[str] | str | None = None,
        broken_images: BrokenImages = "skip",
        upright: bool = False,
        max_pixels: int = MAX_PIXELS,
        reduced_decoding: Literal["train", "always", "never"] = "train",
        predict_dir: str | None = None,
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
        check(len(sources) >= 1, "sources", sources, "a list of at least one index of tars")
        check(1 <= image_size <= MAX_SIDE, "image_size", image_size, f"1 to {MAX_SIDE} pixels")
        check(context_length >= 2, "context_length", context_length, "an integer of at least 2")
        check(shuffle_tars >= 1, "shuffle_tars", shuffle_tars, "an integer of at least 1")
        check(cache_gigabytes > 0, "cache_gigabytes", cache_gigabytes, "a positive number")
        check(0 <= hflip <= 1, "hflip", hflip, "a probability from 0 to 1")
        check(0.1 <= crop_pct <= 1, "crop_pct", crop_pct, "a ratio from 0.1 to 1")
        check(min(std) > 0, "std", std, "three positive numbers")
        for name, pair, most in (("crop_scale", crop_scale, 1), ("crop_ratio", crop_ratio, 1e3)):
            accepts = f"two numbers above 0 and up to {most:g}, the smaller one first"
            check(0 < pair[0] <= pair[1] <= most, name, pair, accepts)
        modes = ("train", "always", "never")
        accepts = '"train", "always" or "never"'
        check(reduced_decoding in modes, "reduced_decoding", reduced_decoding, accepts)
        self.sources, self.val_sources = sources, val_sources or []
        self.zero_shot_root = None if zero_shot_root is None else Path(zero_shot_root)
        self.image_size, self.upright, self.shuffle_tars = image_size, upright, shuffle_tars
        self.tokenizer = Tokenizer(tokenizer, context_length)
        self.context_length = context_length
        self._cache = None if cache_dir is None else TarCache(cache_dir, int(cache_gigabytes * 1e9))
        self._given_names = class_names
        self.normalization: Normalization = Normalization(mean, std)
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
        self._broken: list[str] = []
        self._num_broken = 0

    @cached_property
    def classes(self) -> ClassSet | None:
        """Folders and readable names of the zero-shot classes in label order."""
        root = self.zero_shot_root
        if root is None:
            return None
        if not root.is_dir():
            raise UserError(
                f"data.zero_shot_root {root} does not exist; expected one folder of images per "
                f"class, {root}/<class>/*.jpg."
            )
        return resolve_classes(root.parent, self._given_names, (root.name, root.name))

    @property
    def has_test_images(self) -> bool:
        """Whether ``test`` has images of its own; otherwise it reads the validation images."""
        return False

    @property
    def class_names(self) -> list[str]:
        """Readable names of the zero-shot classes in label order; none without them."""
        return [] if self.classes is None else list(self.classes.names)

    def setup(self, stage: str) -> None:
        """Open the indices that a stage needs.

        Raises:
            UserError: If an index or a folder is missing.
        """
        if stage == "predict":
            self._datasets["predict"] = self.files_to_predict(self.predict_source())
            return
        self.tokenizer.check()
        if stage == "fit":
            self._datasets["train"] = self._pairs(self.sources, train=True)
        if self.val_sources:
            self._datasets["val"] = self._pairs(self.val_sources)
        if self.classes is not None:
            self._datasets["zero_shot"] = self._zero_shot(self.classes)
        if stage != "fit" and not self._evaluated():
            raise UserError(
                f"{stage} needs held-out pairs (data.val_sources) or class folders "
                "(data.zero_shot_root)."
            )

    def val_dataloader(self) -> Any:
        """Loaders of the held-out pairs and of the zero-shot images, as far as there are any."""
        return [self.loader(split) for split in self._evaluated()]

    def test_dataloader(self) -> Any:
        """The loaders of validation."""
        return self.val_dataloader()

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches in the order of `WindowedSampler`."""
        return self.loader("train", train=True)

    def files_to_predict(self, source: str | Sequence[str]) -> ImageFilesDataset:
        """Images to classify."""
        dataset = ImageFilesDataset(
            source, self._eval_transform, upright=self.upright, max_pixels=self.max_pixels
        )
        dataset.reduce = self._eval_reduction
        return dataset

    def loader(
        self, split: str, *, train: bool = False, sampler: Sampler[int] | None = None
    ) -> DataLoader[Any]:
        """See `BaseDataModule`; batches of pairs also name the broken images."""
        loader = super().loader(split, train=train, sampler=sampler)
        if split in ("train", "val"):
            loader.collate_fn = CollateBroken(loader.collate_fn)
        return loader

    def collate_fn(self, split: str) -> Collate:
        """Function that turns samples of a split into a batch."""
        return collate_pairs if split in ("train", "val") else default_collate

    def training_sampler(self, dataset: Dataset[Any]) -> WindowedSampler:  # type: ignore[override]
        """Order of the training pairs."""
        ranks, rank, seed = self.ranks_and_seed()
        readers = cast("ImageTextPairs", dataset).sources
        orders = [
            SourceOrder(reader.index.sizes, source.weight)
            for reader, source in zip(readers, self.sources, strict=True)
        ]
        order = WindowedOrder(orders, seed, self.shuffle_tars)
        return WindowedSampler(dataset, order, self.batch_size, ranks, rank)

    @property
    def images_in_use(self) -> str:
        """Number of pairs for training and validation, and how many the filters leave out."""
        parts = []
        for split, use in (("train", "training"), ("val", "retrieval")):
            dataset = self._datasets.get(split)
            if isinstance(dataset, ImageTextPairs):
                left_out = sum(sum(s.index.left_out.values()) for s in dataset.sources)
                without = f" (left out by their index: {left_out:,})" if left_out else ""
                parts.append(f"{len(dataset):,} pairs for {use}{without}")
        zero_shot = self._datasets.get("zero_shot")
        if isinstance(zero_shot, LabelledImages):
            parts.append(f"{len(zero_shot):,} images for zero-shot classification")
        return ", ".join(parts)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Collect the names of broken images, and report those of the previous epoch."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        names = batch.pop("broken", []) if isinstance(batch, dict) else []
        self._num_broken += len(names)
        self._broken += names[: _MOST_NAMES - len(self._broken)]
        return batch

    def _report_skipped(self) -> None:
        super()._report_skipped()
        if self._num_broken:
            shown = ", ".join(self._broken) + (", ..." if self._num_broken > _MOST_NAMES else "")
            _log.warning(
                f"{self._num_broken} images in tars cannot be read and were skipped: {shown}"
            )
        self._broken, self._num_broken = [], 0

    def _evaluated(self) -> list[str]:
        return [split for split in ("val", "zero_shot") if split in self._datasets]

    def _pairs(self, sources: Sequence[PairSource], *, train: bool = False) -> ImageTextPairs:
        readers = [
            PairReader(read_index(source.index, source.root), self.shuffle_tars, self._cache)
            for source in sources
        ]
        for source, reader in zip(sources, readers, strict=True):
            if not len(reader.index):
                raise UserError(f"The index in {source.index} has no pairs. Check its filters.")
        dataset = ImageTextPairs(
            readers,
            self._train_transform if train else self._eval_transform,
            self.tokenizer,
            self.broken_images,
            upright=self.upright,
            max_pixels=self.max_pixels,
            train=train,
        )
        dataset.reduce = None if train else self._eval_reduction
        return dataset

    def _zero_shot(self, classes: ClassSet) -> LabelledImages:
        assert self.zero_shot_root is not None
        dataset = LabelledImages(
            *class_folder_files(self.zero_shot_root, classes.folders),
            self._eval_transform,
            self.broken_images,
            upright=self.upright,
            max_pixels=self.max_pixels,
        )
        dataset.reduce = self._eval_reduction
        return dataset


def collate_pairs(samples: list[Any]) -> dict[str, Any]:
    """Batch of pairs."""
    kept = [{key: sample[key] for key in ("image", "text", "id")} for sample in samples]
    batch: dict[str, Any] = default_collate(kept)
    return batch


class CollateBroken:
    """Add the names of broken images, if there are any, to a batch.

    Args:
        collate: Makes a batch of samples; it may leave out the samples of broken images.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        """Batch with the entry ``broken``, which the main process takes out."""
        names = [name for sample in samples for name in sample["broken"]]
        batch: dict[str, Any] = self.collate(samples)
        return {**batch, "broken": names} if names else batch
