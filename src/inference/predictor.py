"""Predict on batches of images with the data module and the task of a recipe.

The same datasets, transforms and prediction steps run as in ``python -m src predict``, in float32
and without data loader workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from src.data.datamodules.ade20k import ADE20KDataModule
from src.data.datamodules.base import BaseDataModule
from src.data.datamodules.coco import COCODataModule
from src.data.datamodules.imagenet import ImageNetDataModule
from src.data.datasets.files_to_predict import FilesToPredict
from src.errors import UserError
from src.inference.images import ImageSource, load_image
from src.inference.results import Classification, Detection, Prediction, Segmentation
from src.serialization.classes import check_arguments
from src.tasks.base import BaseTask
from src.tasks.classification import ClassificationTask
from src.tasks.detection import DetectionTask
from src.tasks.segmentation import SegmentationTask

_DATA: dict[str, type[BaseDataModule]] = {
    "classification": ImageNetDataModule,
    "detection": COCODataModule,
    "segmentation": ADE20KDataModule,
}
_TASKS: dict[str, type[BaseTask]] = {
    "classification": ClassificationTask,
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}
_OF_TASK = ("window_size", "window_stride")  # settings of a task, not of its data module


class Predictor:
    """A network that predicts on images.

    Args:
        network: The network; used as it is, in evaluation mode.
        task: ``classification``, ``detection`` or ``segmentation``.
        class_names: Class names in label order.
        settings: Arguments of the data module and of the task that change predictions.
        source: Where the settings are from, for messages.

    Raises:
        UserError: If a setting is invalid.
    """

    def __init__(
        self,
        network: nn.Module,
        task: str,
        class_names: Sequence[str],
        settings: Mapping[str, Any],
        source: str = "preprocessing",
    ) -> None:
        of_task = {key: settings[key] for key in _OF_TASK if key in settings}
        of_data = {key: value for key, value in settings.items() if key not in of_task}
        self.class_names = list(class_names)
        owner = _DATA[task]
        self.data = owner(**check_arguments(owner, of_data, source), class_names=self.class_names)  # type: ignore[call-arg]
        self.task = _TASKS[task](
            num_classes=len(self.class_names),
            network=lambda num_classes: network,
            **check_arguments(_TASKS[task], of_task, source),
        )
        self.task.configure_model()
        self.task.eval()

    @torch.inference_mode()
    def predict(
        self, images: Sequence[ImageSource], batch_size: int, device: str | torch.device
    ) -> list[Prediction]:
        """Predict on images.

        Args:
            images: The images.
            batch_size: Images per forward pass.
            device: Device of the network; it is moved there.

        Raises:
            UserError: If an image cannot be read, or the device cannot be used.
        """
        try:
            device = torch.device(device)
            self.task.to(device)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            if str(device).startswith("gpu"):
                reason = "use 'cuda' or 'cpu'."
            raise UserError(f"The device {str(device)!r} cannot be used: {reason}") from None
        self.task.image_count = len(images)
        found: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            found += self._predict(images[start : start + batch_size], start, device)
        return found

    def _predict(
        self, images: Sequence[ImageSource], start: int, device: torch.device
    ) -> list[Prediction]:
        names = [
            str(image) if isinstance(image, (str, Path)) else f"image {start + number}"
            for number, image in enumerate(images)
        ]
        files = self.data.files_to_predict(names)
        samples = [
            files.sample(self._load(image, start + number, files), number)
            for number, image in enumerate(images)
        ]
        batch = self.data.collate_fn("predict")(samples)
        batch = self.data.normalise(self.task.transfer_batch_to_device(batch, device, 0))
        output = self.task.predict_step(batch, 0)
        return [
            self._result(output, number, image, files.upright)
            for number, image in enumerate(images)
        ]

    def _load(self, image: ImageSource, index: int, files: FilesToPredict) -> Image.Image:
        """Read an image; an error says which one of several it is."""
        try:
            return load_image(
                image, upright=files.upright, max_pixels=files.max_pixels, reduce=files.reduce
            )
        except UserError as error:
            if self.task.image_count == 1:
                raise
            message = f"{error} This is images[{index}] of {self.task.image_count} images."
            raise type(error)(message) from None

    def _result(
        self, output: Mapping[str, Any], number: int, image: ImageSource, upright: bool
    ) -> Prediction:
        if "index" in output:
            labels, scores = output["index"][number].cpu(), output["probability"][number].cpu()
            return Classification(image, self.class_names, upright, labels, scores)
        if "results" in output:
            height, width = output["size"][number]
            kinds = getattr(self.task.evaluation_network, "kinds", ())
            return Detection(
                image,
                self.class_names,
                upright,
                (int(height), int(width)),
                output["results"][number],
                "segm" in kinds,
            )
        return Segmentation(
            image, self.class_names, upright, output["label_map"][number], self.data.palette
        )
