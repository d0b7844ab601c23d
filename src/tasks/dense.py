"""Shared base of detection and segmentation: parameter groups, metrics at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from src.errors import UserError
from src.optim.dense_layer_decay import has_dense_weight_decay
from src.optim.param_groups import parameter_groups
from src.tasks.base import BaseTask


class DenseTask(BaseTask):
    """Base of tasks with dense predictions.

    Args:
        num_classes: See :class:`BaseTask`.
        network: See :class:`BaseTask`.
        kwargs: See :class:`BaseTask`. ``dcn_lr_scale`` does not exist in the official detection and
            segmentation recipes and is an error.
    """

    def __init__(
        self, num_classes: int, network: Callable[[int], nn.Module], **kwargs: Any
    ) -> None:
        super().__init__(num_classes=num_classes, network=network, **kwargs)
        if self.dcn_lr_scale is not None:
            raise UserError(
                "dcn_lr_scale is only supported for classification; set it to null for "
                f"{type(self).__name__}."
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer as in the official recipes."""
        named = list(self.training_network.named_parameters())
        no_decay = {name for name, p in named if not has_dense_weight_decay(name, p.ndim)}
        return parameter_groups(named, lr_scale=self.lr_scale(), no_decay=no_decay)

    def log_scores(self, stage: str, suffix: str) -> None:
        """Compute, log and reset the metrics ``<stage><suffix>``."""
        raise TypeError(f"{type(self).__name__} must define log_scores()")

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation images."""
        for suffix in ("", "_raw") if self.is_averaging else ("",):
            self.log_scores("val", suffix)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test images."""
        self.log_scores("test", "")
