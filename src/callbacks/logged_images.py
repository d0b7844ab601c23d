"""Log images: a training batch as the network sees it, and predictions beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from src.callbacks.classification_writer import class_names, max_pixels
from src.callbacks.detection_writer import draw_results
from src.decoding import decode
from src.errors import UserError
from src.metrics.coco_results import annotated_results
from src.tasks import BaseTask
from src.visualization import draw_classes, draw_label_map

_GAP = 8  # pixels between ground truth and prediction


class LoggedImages(Callback):
    """Log a few images with every validation.

    ``train/batch`` has the input of the network in the first step after a validation, with all
    augmentation, in the colours of the images. ``val/image_<n>`` is the ground truth (left) and the
    prediction (right) of the first validation images. This costs the prediction of one batch.

    Args:
        number: Number of images of each kind.
        score: Minimum score of drawn detections.

    Raises:
        UserError: If a value is out of range.
    """

    def __init__(self, number: int = 4, score: float = 0.3) -> None:
        if number < 1:
            raise UserError(f"LoggedImages.number: expected 1 or more, got {number}.")
        if not 0 <= score <= 1:
            raise UserError(f"LoggedImages.score: expected a probability, got {score}.")
        self.number, self.score = number, score
        self._is_due = True
        self._input: Tensor | None = None
        self._hook: Any = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the input of the network in the next forward pass, after mixup."""
        if self._is_due and isinstance(pl_module, BaseTask):
            network = pl_module.training_network
            self._hook = network.register_forward_pre_hook(self._record)

    def _record(self, _: Any, arguments: tuple[Any, ...]) -> None:
        if self._input is None:
            image = arguments[0][: self.number].detach()
            self._input = image.float() if image.is_floating_point() else image

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the recorded input."""
        if self._hook is None:
            return
        self._hook.remove()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._input is not None and trainer.is_global_zero:
            grid = make_grid(_bytes(data.denormalise(self._input)).cpu(), padding=2)
            image = Image.fromarray(grid.permute(1, 2, 0).numpy())
            _log(trainer, "train/batch", image)
        self._hook = self._input = None
        self._is_due = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict the first batch of a validation and log its first images."""
        self._is_due = True
        is_first = batch_idx == 0 and not trainer.sanity_checking
        can_predict = isinstance(pl_module, BaseTask) and pl_module.predicts and "path" in batch
        if not is_first or not can_predict:
            return
        predicted = pl_module.predict_step(batch, 0)  # on all ranks, which may share the weights
        if trainer.is_global_zero and predicted:
            pairs = _pairs(trainer, batch, predicted, self.number, self.score)
            for number, (truth, prediction) in enumerate(pairs):
                _log(trainer, f"val/image_{number}", _beside(truth, prediction))


def _bytes(images: Tensor) -> Tensor:
    """Images as uint8; the range of values of a data module without normalisation is stretched."""
    if not images.is_floating_point():
        return images
    low, high = images.aminmax()
    return ((images - low) * (255 / (high - low).clamp(min=1e-6))).round().to(torch.uint8)


def _pairs(
    trainer: Trainer, batch: Any, predicted: dict[str, Any], number: int, score: float
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Drawings of the ground truth and the prediction of each image."""
    names = class_names(trainer)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    limit = max_pixels(trainer)
    for i, path in enumerate(batch["path"][:number]):
        if "results" in predicted:
            size = tuple(batch["original_size"][i])
            truth = annotated_results(batch["annotations"][i], size)
            yield (
                draw_results(path, truth, names, 0.0, limit, size),
                draw_results(path, predicted["results"][i], names, score, limit, size),
            )
            continue
        image = decode(path, upright=data.upright, max_pixels=limit)
        if "label_map" in predicted:
            true, found = (m[i].cpu().numpy() for m in (batch["label"], predicted["label_map"]))
            palette = list(data.palette)
            yield (
                draw_label_map(image, true, names, palette),
                draw_label_map(image, found, names, palette),
            )
        else:
            best = [names[index] for index in predicted["index"][i].tolist()]
            yield (
                draw_classes(image, [names[int(batch["label"][i])]], [1.0]),
                draw_classes(image, best, predicted["probability"][i].tolist()),
            )


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    height = max(left.height, right.height)
    both = Image.new("RGB", (left.width + _GAP + right.width, height), (255, 255, 255))
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return both


def _log(trainer: Trainer, name: str, image: Image.Image) -> None:
    for logger in trainer.loggers:
        log_image(logger, name, image, trainer.global_step)


def log_image(logger: Logger, name: str, image: Image.Image, step: int) -> None:
    """Log an image; loggers that cannot store images are skipped.

    Args:
        logger: TensorBoard, MLflow, or a logger with ``log_image`` (Weights & Biases).
        name: Name of the image.
        image: An RGB image.
        step: Optimizer step.
    """
    own: Any = logger
    if isinstance(logger, TensorBoardLogger):
        own.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        own.experiment.log_image(own.run_id, image, key=name.replace("/", "_"), step=step)
    elif hasattr(logger, "log_image"):
        own.log_image(name, [image], step=step)
