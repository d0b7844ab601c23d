"""Evaluation of a task with EMA weights, if there are any, and with the raw weights."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Protocol, cast

from torch import nn
from torchmetrics import MetricCollection

from src.tasks.building import BuildingHooks
from src.tasks.inference_copy import InferenceCopy

MANY_IMAGES = 16
"""Images from which on `predict` makes a faster copy of the network, on a CPU."""


class EvaluationStep(Protocol):
    """See `BaseTask.evaluation_step`."""

    def __call__(self, network: nn.Module, batch: Any, stage: str, suffix: str) -> None:
        """Evaluate a batch."""


class EvaluationHooks(BuildingHooks):
    """Part of `BaseTask` that validates and tests."""

    _averaged: tuple[nn.Module, ...]  # a tuple, so that it is not a submodule

    _inference_copy: InferenceCopy

    image_count: int = 0
    """Images to predict on without a trainer."""

    evaluation_step: EvaluationStep

    @property
    def evaluation_network(self) -> nn.Module:
        """The network with EMA weights if there are any, else with the raw weights."""
        return self._averaged[0] if self._averaged else self.training_network

    @property
    def inference_network(self) -> nn.Module:
        """`evaluation_network`, or its faster copy in an evaluation on a CPU after training."""
        if self.compilation is not None or not self._is_worth_a_copy:
            return self.evaluation_network
        return self._inference_copy.of(self.evaluation_network)

    @property
    def _is_worth_a_copy(self) -> bool:
        """Whether making the copy takes less time than it saves.

        `predict` and ``Pretrained.predict`` decide alike, so that they agree to the last bit on a
        few images.
        """
        if self._trainer is None:
            return self.image_count >= MANY_IMAGES
        if self.trainer.predicting:
            images = getattr(self.trainer.predict_dataloaders, "dataset", None)
            return isinstance(images, Sized) and len(images) >= MANY_IMAGES
        return not self._is_fitting

    def on_validation_start(self) -> None:
        """Free the copy of an evaluation that did not come to its end."""
        self._inference_copy.forget()

    def on_test_start(self) -> None:
        """See `on_validation_start`."""
        self._inference_copy.forget()

    def on_predict_start(self) -> None:
        """See `on_validation_start`."""
        self._inference_copy.forget()

    def on_validation_end(self) -> None:
        """Free the copy, because weights may change."""
        self._inference_copy.forget()

    def on_test_end(self) -> None:
        """See `on_validation_end`."""
        self._inference_copy.forget()

    def on_predict_end(self) -> None:
        """See `on_validation_end`."""
        self._inference_copy.forget()

    @property
    def is_averaging(self) -> bool:
        """Whether EMA weights are kept."""
        return bool(self._averaged)

    def set_averaged_network(self, network: nn.Module | None) -> None:
        """Set the network with EMA weights to evaluate in addition; ``None`` removes it."""
        self._averaged = () if network is None else (network,)

    def metrics_of(self, key: str) -> MetricCollection:
        """The metrics ``val``, ``val_raw`` or ``test``."""
        return cast("MetricCollection", self.metrics[key])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the EMA weights, if there are any, and the raw weights."""
        self.evaluation_step(self.inference_network, batch, "val", "")
        if self._averaged:
            self.evaluation_step(self.training_network, batch, "val", "_raw")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate on the test split."""
        self.evaluation_step(self.inference_network, batch, "test", "")

    def loss_names(self) -> set[str]:
        """Names of the losses that a validation logs, without ``_raw``."""
        return {"val/loss"}

    def score_names(self) -> set[str]:
        """Names of the metrics that a validation logs, without ``_raw``."""
        return {str(name) for name in self.metrics_of("val").keys(keep_base=False)}

    def validation_losses(self) -> set[str]:
        """Names of all losses that a validation logs."""
        return self._with_raw(self.loss_names())

    def validation_names(self) -> set[str]:
        """Names of all losses and metrics of a validation that are known in advance."""
        return self._with_raw(self.loss_names() | self.score_names())

    def _with_raw(self, names: set[str]) -> set[str]:
        return names | {f"{name}_raw" for name in names} if self.is_averaging else names
