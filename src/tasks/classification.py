"""Image classification task: mixup, soft targets, top-1 and top-5 accuracy.

As in the official code, mixup and CutMix use ``timm.data.Mixup``, which also smooths the labels;
without them, the loss is cross entropy with label smoothing. Augmentation of single images is part
of the data module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from src.errors import UserError
from src.metrics.confusion import ConfusionMatrix
from src.models import InternImage
from src.tasks.base import BaseTask, not_finite
from src.types import ClassificationBatch, FeatureBatch

_MAX_CONFUSION = 2000
"""Largest number of classes whose confusion matrix is computed (16 bytes per pair of classes)."""


class ClassificationTask(BaseTask):
    """Train and evaluate an image classifier.

    Args:
        num_classes: Number of classes, taken from the data module on the command line.
        network: Factory of the classifier, called with ``num_classes``.
        mixup_alpha: Strength of mixup, 0 is off.
        cutmix_alpha: Strength of CutMix, 0 is off.
        mixup_prob: Probability that a batch is mixed, in [0, 1].
        mixup_switch_prob: Probability of CutMix if both are on, in [0, 1].
        label_smoothing: Label smoothing, in [0, 1).
        kwargs: See :class:`BaseTask`.
    """

    monitor: ClassVar[str] = "val/top1"
    monitor_mode: ClassVar[str] = "max"
    compiles_all_sizes: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], InternImage] = InternImage,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, network=network, **kwargs)
        for name, value in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            _check(value >= 0, name, value, "0 (off) or a positive strength")
        for name, value in (("mixup_prob", mixup_prob), ("mixup_switch_prob", mixup_switch_prob)):
            _check(0 <= value <= 1, name, value, "a probability from 0 to 1")
        _check(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "a value in [0, 1)")
        if num_classes < 2:
            raise UserError(
                f"Classification needs at least two classes, got {num_classes}. The data need one "
                "folder per class."
            )
        self.label_smoothing = label_smoothing
        self.class_scores: dict[str, Tensor] = {}
        self.confusion_counts: Tensor | None = None
        self.confusion: ConfusionMatrix | None = None
        if num_classes <= _MAX_CONFUSION:
            self.confusion = ConfusionMatrix(num_classes)
        self.mixup: Mixup | None = None
        if mixup_alpha > 0 or cutmix_alpha > 0:
            self.mixup = Mixup(
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mixup_prob,
                switch_prob=mixup_switch_prob,
                mode="batch",
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )
        else:
            _warn_inert("mixup_prob", mixup_prob, 1.0)
            _warn_inert("mixup_switch_prob", mixup_switch_prob, 0.5)

    def build_network(self) -> nn.Module:
        """Build the network; see `BaseTask`.

        Raises:
            UserError: If images are mixed and the network also reads metadata.
        """
        network = super().build_network()
        if self.mixup is not None and getattr(network, "metadata_inputs", None):
            raise UserError(
                "mixup and CutMix mix images, but not their dates and places, which"
                f" {type(network).__name__} reads. Set model.mixup_alpha and model.cutmix_alpha to"
                " 0."
            )
        return network

    def build_loss(self) -> nn.Module:
        """Cross entropy; with mixup, the targets are already smoothed."""
        return nn.CrossEntropyLoss(label_smoothing=0.0 if self.mixup else self.label_smoothing)

    def build_metrics(self) -> MetricCollection:
        """Top-1 accuracy and, with more than five classes, top-5 accuracy in [0, 1].

        With at most five classes, the top-5 accuracy of any network is 1.
        """
        return MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(self.num_classes, top_k=k, average="micro")
                for k in (1, 5)
                if k < self.num_classes
            }
        )

    def training_step(self, batch: ClassificationBatch | FeatureBatch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        inputs: Any = batch
        target = batch["label"]
        if self.mixup is not None:  # never with features
            image, target = self._mix(self.mixup, inputs["image"], target)
            inputs = {"image": image}
        loss: Tensor = self.criterion(_logits(self.training_network, inputs), target)
        size = len(target)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log(
            "train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True
        )
        return loss

    @staticmethod
    def _mix(mixup: Mixup, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and soft targets; timm pairs images, so an odd last image is dropped."""
        even = len(image) - len(image) % 2
        if even == 0:
            raise UserError(
                "mixup and CutMix need at least two images per device and step. Increase"
                " data.batch_size, or set mixup_alpha and cutmix_alpha to 0."
            )
        # A copy, because timm mixes in place and callbacks may still read the batch.
        mixed: tuple[Tensor, Tensor] = mixup(image[:even].clone(), label[:even])
        return mixed

    def evaluation_step(
        self,
        network: nn.Module,
        batch: ClassificationBatch | FeatureBatch,
        stage: str,
        suffix: str,
    ) -> None:
        """Update and log loss, top-1 and top-5."""
        label = batch["label"]
        logits = _among(self._full_logits(network, batch), batch.get("candidates"))
        metrics = self.metrics_of(stage + suffix)
        size = 0 if batch.get("is_padding") else len(label)
        if size:
            finite = _wrong_unless_finite(logits, label)
            metrics.update(finite, label)
            if self.confusion is not None and not suffix:
                self.confusion.update(finite.argmax(-1), label)
        loss = F.cross_entropy(logits, label)
        self.log(f"{stage}/loss{suffix}", loss, batch_size=size, sync_dist=True, prog_bar=True)
        self.log_dict(metrics, batch_size=size, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Store the accuracy of every class of the validation images."""
        self._store_class_scores()

    def on_test_epoch_end(self) -> None:
        """Store the accuracy of every class of the test images."""
        self._store_class_scores()

    def _store_class_scores(self) -> None:
        """Set `confusion_counts` ``(K, K)``, classes by predicted classes, and `class_scores`."""
        if self.confusion is None:
            return
        counts: Tensor = self.confusion.compute().cpu()
        self.confusion.reset()
        self.confusion_counts = counts
        images = counts.sum(1)
        self.class_scores = {"images": images, "accuracy": counts.diagonal().double() / images}

    def _full_logits(self, network: nn.Module, batch: ClassificationBatch | FeatureBatch) -> Tensor:
        """Logits without autocast, because published results were measured in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return _logits(network, batch).float()

    def predict_step(self, batch: ClassificationBatch, batch_idx: int) -> dict[str, Any]:
        """Top five classes of every image.

        Returns:
            ``path`` (``N`` strings), ``index`` and ``probability`` of shape ``(N, k)``, best first,
            with ``k`` = 5 or the number of classes if that is smaller. Empty for padding batches
            (see `CountOnceSampler`).
        """
        probabilities = self._full_logits(self.inference_network, batch).softmax(dim=-1)
        if batch.get("is_padding"):
            return {}
        finite = torch.isfinite(probabilities).all(-1).tolist()
        if not all(finite):
            raise UserError(not_finite(batch["path"][finite.index(False)]))
        best = probabilities.topk(min(5, self.num_classes), dim=-1)
        return {"path": batch["path"], "index": best.indices, "probability": best.values}


def _logits(network: nn.Module, batch: Any) -> Tensor:
    """Logits of images, or of cached features, which only pass through the head."""
    if "features" not in batch:
        given = {n: batch[n] for n in getattr(network, "metadata_inputs", ()) if n in batch}
        logits: Tensor = network(batch["image"], **given)
    else:
        logits = cast("InternImage", network).forward_head(batch["features"])
    return logits


def _among(logits: Tensor, candidates: Any) -> Tensor:
    """Logits ``(N, K)`` whose softmax is 0 outside of the classes ``candidates``, if given."""
    if candidates is None:
        return logits
    others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    others[candidates] = False
    return logits.masked_fill(others, torch.finfo(logits.dtype).min)


def _wrong_unless_finite(logits: Tensor, label: Tensor) -> Tensor:
    """Logits ``(N, K)``, with rows that are not finite replaced by a wrong prediction."""
    wrong = 1.0 - F.one_hot(label, logits.shape[1]).to(logits.dtype)
    return torch.where(torch.isfinite(logits).all(-1, keepdim=True), logits, wrong)


def _check(is_valid: bool, name: str, value: object, expected: str) -> None:
    if not is_valid:
        raise UserError(f"model.{name}: expected {expected}, got {value!r}.")


def _warn_inert(name: str, value: float, default: float) -> None:
    if value != default:
        rank_zero_warn(f"{name}={value} has no effect, because mixup_alpha and cutmix_alpha are 0.")
