"""Train the head of a classifier on cached features of its frozen backbone.

The features of every image are computed once and stored in files. An epoch then only reads them and
runs the head, which takes a small part of the time of the network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

import src
from src.callbacks.epoch_seed import seed_all
from src.callbacks.feature_files import FeatureFiles
from src.callbacks.fingerprint import fingerprint
from src.callbacks.run_folder import is_dry_run, tell
from src.errors import UserError
from src.tasks import BaseTask, ClassificationTask

_PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy")
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class CachedFeatures(Callback):
    """Compute the features of a frozen backbone once, and train on them.

    The files are found by a fingerprint of the weights and code of the frozen part, the images
    (names, sizes, times), the transforms and the versions of the packages, so features of other
    weights or other data are never used. Features are computed in float32.

    Args:
        views: 0 trains on the view of the evaluation (a centre crop) in every epoch; otherwise the
            number of randomly augmented views of each image, used in turn by the epochs.
        folder: Folder of the files, which all runs may share.
        max_gigabytes: Largest size of the folder.

    Raises:
        UserError: If a value is out of range; at the start, if the backbone is not frozen, images
            are mixed, or the features do not fit on the disk.
    """

    def __init__(
        self, views: int = 0, folder: str = "data/features", max_gigabytes: float = 20.0
    ) -> None:
        if views < 0:
            raise UserError(f"CachedFeatures.views: expected 0 or more, got {views}.")
        if max_gigabytes <= 0:
            raise UserError(
                f"CachedFeatures.max_gigabytes: expected a positive size, got {max_gigabytes}."
            )
        self.views = views
        self.files = FeatureFiles(Path(folder), max_gigabytes)
        self._datasets: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module load features instead of images, before its loaders are made."""
        if stage != "fit" or is_dry_run(trainer):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        _check(trainer, pl_module, data)
        self._datasets = {split: data.use_features(split) for split in ("train", "val")}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the features, or compute them with the weights of the task."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for split, dataset in self._datasets.items():
            count = self.views if split == "train" else 0
            dataset.views = [
                self._features(cast("BaseTask", pl_module), data, split, view)
                for view in (range(count) if count else (None,))
            ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the view of an epoch that is resumed."""
        self._choose_view(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module load images again."""
        if self._datasets:
            trainer.datamodule.use_images()  # type: ignore[attr-defined]
            self._datasets = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the view of the epoch."""
        self._choose_view(trainer)

    def _choose_view(self, trainer: Trainer) -> None:
        if "train" in self._datasets:
            self._datasets["train"].view = trainer.current_epoch

    def _features(self, task: BaseTask, data: Any, split: str, view: int | None) -> list[Tensor]:
        """Features of a split, from the files if they are there.

        Args:
            task: Its network computes the features.
            data: The data module.
            split: ``train`` or ``val``.
            view: Number of an augmented view; ``None`` is the view of the evaluation.
        """
        source = data.image_source(split, augmented=view is not None)
        network: Any = task.training_network
        seed = None if view is None else (data.ranks_and_seed()[-1], view)
        frozen = [part for part in network.children() if not _is_trained(part)]
        key = fingerprint((type(network), frozen, source.identity(), seed, _versions()))
        found = self.files.read(key, len(source))
        if found is None:
            begin = time.perf_counter()
            with isolate_rng():
                if seed is not None:
                    seed_all(*seed, rank=0)
                self.files.write(key, _computed(network, source, task.device), len(source))
            found = self.files.read(key, len(source)) or []
            how = f"computed in {time.perf_counter() - begin:.0f} s"
        else:
            how = "found"
        size = sum(part.numel() * part.element_size() for part in found)
        number = "" if view is None else f", view {view + 1} of {self.views}"
        tell(
            f"Features:    {self.files.path(key)} ({split}{number}: {len(source)} images,"
            f" {size / 1e6:.0f} MB, {how})"
        )
        return found


def _computed(network: Any, source: Any, device: torch.device) -> Iterator[Tensor]:
    """Features of all images in batches, on the CPU."""
    for image in source:
        with torch.autocast(device.type, enabled=False):
            features = network.forward_features(source.to_input(image.to(device)))
        if features.requires_grad:
            raise UserError(
                "CachedFeatures needs a network whose features do not depend on weights that are"
                " trained. Remove the callback, or freeze the whole backbone."
            )
        yield features.float().cpu().contiguous()  # networks return channels-last views


def _versions() -> list[object]:
    """Versions of the packages, and the code of the networks and operators."""
    root = Path(src.__file__).parent
    code = [*sorted((root / "models").rglob("*.py")), *sorted((root / "ops").rglob("*.[ps][yo]"))]
    return [*map(version, _PACKAGES), *(path.read_bytes() for path in code)]


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _check(trainer: Trainer, task: LightningModule, data: Any) -> None:
    """Refuse settings with which features cannot replace images.

    Raises:
        UserError: If there is one; the message says how to change it.
    """
    if not isinstance(task, ClassificationTask) or not hasattr(data, "use_features"):
        raise UserError(
            "CachedFeatures works for classification of images in one folder per class, not with"
            f" the data in {data.root}. Remove the callback."
        )
    if task.frozen != "backbone":
        raise UserError(
            "CachedFeatures needs a frozen backbone, because features of changing weights would be"
            f" outdated. Set --model.freeze backbone; it is {task.frozen}."
        )
    if task.mixup is not None:
        raise UserError(
            "CachedFeatures cannot mix images, which are not loaded. Set --model.mixup_alpha 0 and"
            " --model.cutmix_alpha 0."
        )
    if trainer.precision not in _PRECISIONS:
        raise UserError(
            "CachedFeatures stores float32 features, which weights of another type cannot read. Set"
            f" --trainer.precision to {' or '.join(_PRECISIONS)}; it is {trainer.precision}."
        )
    if trainer.world_size > 1:
        raise UserError(
            "CachedFeatures trains on a single device, because the head is small. Set"
            f" --trainer.devices 1; it is {trainer.world_size}."
        )
    if data.broken_images != "error":
        raise UserError(
            "CachedFeatures needs every image. Remove broken files (python -m src verify imagenet"
            " --decode lists them) and set --data.broken_images error."
        )
