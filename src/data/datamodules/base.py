"""Base class of the data modules: loaders, samplers, classes, and the report of skipped images.

A data module knows files and transforms, and neither the network nor the loss. Lightning seeds the
workers (``seed_everything`` in the configuration).
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from src.data.classes.palette import distinct_palette
from src.data.datamodules.loaders import LOADING, Loader, LoaderOptions, start_worker
from src.data.datasets.features import FeatureDataset
from src.data.datasets.files_to_predict import FilesToPredict
from src.data.datasets.readable import BrokenImages, ReadableImages
from src.data.samplers.distributed import CountOnceSampler, DistributedBatchSampler
from src.data.samplers.padding import CountedCollate
from src.data.transforms.batches import Normalization
from src.decoding import MAX_PIXELS
from src.errors import UserError
from src.types import Colour

MAX_SIDE = 8192
"""Maximum height and width of the input of a classifier and of crops, in pixels; recipes use up to
1280. Much larger values, for example in a model from a hub, would exhaust the memory."""

Collate = Callable[[list[Any]], Any]

_log = logging.getLogger(__name__)


class BaseDataModule(LightningDataModule, ABC):
    """Base of all data modules.

    A subclass defines `class_names`, and fills ``self._datasets`` in `setup`: ``train`` and ``val``
    for ``fit``, ``test`` for ``test``, ``predict`` for ``predict``.

    Args:
        batch_size: Training images per device and step.
        num_workers: Data loader workers per device; 0 loads in the main process.
        eval_batch_size: Images per device in validation, test and prediction; default
            ``batch_size``.
        broken_images: What to do with an image that cannot be decoded: "error" names it and stops;
            "skip" takes another one in training, leaves it out of evaluation, and reports the
            number at the end of the epoch. Prediction always continues with the next image; with
            "error" it reports the unreadable files at the end and exits with code 2.
        max_pixels: Largest width times height of an image; larger ones count as broken.
        predict_dir: A folder of images, searched at any depth, or a single image, for
            ``predict``.
        loading: Settings of the data loaders.

    Raises:
        UserError: If a value is out of range.
    """

    image_channels: ClassVar[int] = 3
    """Channels of the images in a batch."""
    upright: bool = False
    """Whether images for classification and segmentation are turned as their EXIF block says."""
    normalization: Normalization | None = None
    """Turns uint8 images into the network's input, on the device; None leaves them as they are."""

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        eval_batch_size: int | None = None,
        broken_images: BrokenImages = "error",
        max_pixels: int = MAX_PIXELS,
        predict_dir: str | None = None,
        loading: LoaderOptions = LOADING,
    ) -> None:
        super().__init__()
        check(batch_size >= 1, "batch_size", batch_size, "an integer of at least 1")
        check(num_workers >= 0, "num_workers", num_workers, "0 (no extra process) or more")
        check(
            eval_batch_size is None or eval_batch_size >= 1,
            "eval_batch_size",
            eval_batch_size,
            "null (the same as batch_size) or an integer of at least 1",
        )
        check(
            broken_images in ("error", "skip"), "broken_images", broken_images, '"error" or "skip"'
        )
        self.broken_images: BrokenImages = broken_images
        check(max_pixels >= 1, "max_pixels", max_pixels, "a positive number of pixels")
        self.max_pixels = max_pixels
        self.predict_dir = predict_dir
        self.batch_size = batch_size
        self.num_workers, self.loading = num_workers, loading
        self.eval_batch_size = eval_batch_size or batch_size
        self._datasets: dict[str, Dataset[Any]] = {}
        self._features: dict[str, FeatureDataset] = {}
        self._reported: dict[str, int] = {}
        self._epoch = 0

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Readable class names in label order."""

    @property
    def num_classes(self) -> int:
        """Number of classes; the command line hands it to the model."""
        return len(self.class_names)

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the dataset's own classes in label order, known without its files.

        Published weights have these classes.

        Raises:
            UserError: If the dataset has no classes of its own, as a folder of any images.
        """
        raise UserError(f"{cls.__name__} has no classes of its own; give data.class_names.")

    @property
    def has_test_images(self) -> bool:
        """Whether ``test`` has images of its own; otherwise it reads the validation images."""
        return True

    @property
    def category_ids(self) -> list[int]:
        """Category id of each class in the annotation files; default is its label."""
        return list(range(self.num_classes))

    @property
    def palette(self) -> list[Colour]:
        """Red, green and blue of each class, 0 to 255, in drawings; default is generated."""
        return distinct_palette(self.num_classes)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented training batches."""
        return self.loader("train", train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation image once."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every image of the test split once."""
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every image to predict once, without annotations."""
        return self.loader("predict")

    def files_to_predict(self, source: str | Sequence[str]) -> FilesToPredict:
        """Dataset of images to predict on.

        Args:
            source: A folder, searched at any depth, or a single image; or names of images.
        """
        raise TypeError(f"{type(self).__name__} must define files_to_predict()")

    def collate_fn(self, split: str) -> Collate:
        """Function that turns samples of a split into a batch; default is PyTorch's."""
        return default_collate

    def loader(
        self, split: str, *, train: bool = False, sampler: Sampler[int] | None = None
    ) -> DataLoader[Any]:
        """Loader of one of the datasets that `setup` has made.

        Training loaders shuffle and drop the last incomplete step, unless it is the only one, so
        that Mixup gets even batches.

        Args:
            split: Key of the dataset.
            train: Whether this is a training loader.
            sampler: Which samples, in which order; default is all of them, shuffled in training.
        """
        features = self._features.get(split)
        dataset = self._datasets[split] if features is None else features
        num_workers = self.num_workers if features is None else 0  # they are in mapped memory
        if sampler is None:
            sampler = self.training_sampler(dataset) if train else self._counted_once(dataset)
        collate = self.collate_fn(split)
        return Loader(
            dataset,
            batch_size=self.batch_size if train else self.eval_batch_size,
            sampler=sampler,
            **self.loading.arguments(num_workers),
            collate_fn=collate if train else CountedCollate(collate),
            worker_init_fn=start_worker,
        )

    def predict_source(self) -> str:
        """``predict_dir``.

        Raises:
            UserError: If it is not set.
        """
        if self.predict_dir is None:
            raise UserError(
                "predict needs images: give a folder or an image with --data.predict_dir."
            )
        return self.predict_dir

    def training_sampler(self, dataset: Dataset[Any]) -> DistributedBatchSampler:
        """Order of the training images."""
        return DistributedBatchSampler(dataset, self.batch_size, *self.ranks_and_seed())

    def ranks_and_seed(self) -> tuple[int, int, int]:
        """Number of ranks, index of this rank, and ``seed_everything`` of the configuration."""
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return *ranks, int(os.environ.get("PL_GLOBAL_SEED", 0))

    def _counted_once(self, dataset: Dataset[Any]) -> Sampler[int] | None:
        """Sampler that distributes the batches of a single rank over all ranks.

        Prediction uses it too. Lightning would give some ranks one batch less, but sharded networks
        and the gathering of results need all ranks at the same time.
        """
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return None
        return CountOnceSampler(
            dataset, self.eval_batch_size, trainer.world_size, trainer.global_rank
        )

    @property
    def images_in_use(self) -> str:
        """Number of images for training and validation, and how many each setting leaves out."""
        parts: list[str] = []
        for split, use in (("train", "training"), ("val", "validation")):
            dataset = self._datasets.get(split)
            if isinstance(dataset, ReadableImages):
                reasons = [f"{n} {reason}" for reason, n in dataset.left_out.items()]
                total = len(dataset) + sum(dataset.left_out.values())
                of_all = f" of {total}" if reasons else ""
                without = f" (left out: {'; '.join(reasons)})" if reasons else ""
                parts.append(f"{len(dataset)}{of_all} for {use}{without}")
        return ", ".join(parts)

    def warn_of_absent(self, present: Collection[int], where: str, hint: str = "") -> None:
        """Warn about classes that never occur.

        Args:
            present: Labels that occur.
            where: Place in the message, after "occur in", such as "no training label map".
            hint: A sentence about the likely cause.
        """
        names = self.class_names
        absent = [name for label, name in enumerate(names) if label not in present]
        if absent:
            listed = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            verb = "occurs" if len(absent) == 1 else "occur"
            rank_zero_warn(
                f"{len(absent)} of the {len(names)} classes {verb} in {where} and cannot be"
                f" learned: {listed}.{hint}"
            )

    @property
    def unreadable(self) -> list[str]:
        """Images to predict that this rank could not decode so far."""
        dataset = self._datasets.get("predict")
        return dataset.broken_paths if isinstance(dataset, ReadableImages) else []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Report the images that were skipped in the previous epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        if epoch != self._epoch:
            self._epoch = epoch
            self._report_skipped()
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the images on the device and, in training, apply `augment`."""
        batch = self.normalise(batch)
        if self.trainer is None:
            return batch
        if self.trainer.training and "image" in batch:
            batch = self.augment(batch)
        # Lightning has converted floating-point values to the precision of the run before.
        return self.trainer.precision_plugin.convert_input(batch)

    def normalise(self, batch: Any) -> Any:
        """Turn a batch of a loader into the network's input; the trainer does so automatically.

        Args:
            batch: A batch with uint8 images, on any device.

        Returns:
            The batch with normalised float32 images.
        """
        if self.normalization is None or "image" not in batch:
            return batch
        return {**batch, "image": self.normalization(batch["image"])}

    def denormalise(self, image: Any) -> Any:
        """Turn the network's input ``(N, 3, H, W)`` into uint8 images."""
        return image if self.normalization is None else self.normalization.inverse(image)

    def augment(self, batch: Any) -> Any:
        """Random transforms of a normalised training batch on the device; default is none."""
        return batch

    def teardown(self, stage: str) -> None:
        """Report the images that were skipped since the last report."""
        self._report_skipped()

    def _report_skipped(self) -> None:
        for split, dataset in self._datasets.items():
            if not isinstance(dataset, ReadableImages) or split == "predict":
                continue
            paths = dataset.broken_paths
            if len(paths) > self._reported.get(split, 0):
                self._reported[split] = len(paths)
                _log.warning(_skip_report(split, paths, len(dataset)))


def _skip_report(split: str, paths: list[str], total: int) -> str:
    shown = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
    return f"{len(paths)} of {total} {split} images cannot be read and were skipped: {shown}"


def check(accepted: bool, name: str, value: object, accepts: str) -> None:
    """Refuse an argument of a data module.

    Args:
        accepted: Whether the value is fine.
        name: Argument of the data module.
        value: What was given.
        accepts: What is accepted, as it reads after "accepts".

    Raises:
        UserError: If ``accepted`` is false.
    """
    if not accepted:
        raise UserError(f"data.{name} accepts {accepts}, got {value!r}.")
