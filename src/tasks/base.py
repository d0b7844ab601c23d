"""The base of all tasks: its arguments, and the hooks that a task fills in.

A task meets the data only as batches (``src.types``); the number of classes comes from the data
module through the command line. What all tasks do alike is in the parts that `BaseTask` inherits:
``building.py``, ``training.py``, ``evaluation.py`` and ``checkpointing.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.errors import UserError
from src.models.layers.compilation import Compilation, Mode
from src.optim.param_groups import LrScale, parameter_groups
from src.optim.schedules import WarmupCosine
from src.tasks.checkpointing import CheckpointHooks
from src.tasks.optimization import Optimization, OptimizerFactory, SchedulerFactory, scale_by_depth


class BaseTask(CheckpointHooks):
    """Network, loss, metrics and optimizer of one task.

    Args:
        num_classes: Number of classes, taken from the data module on the command line.
        network: Makes the network; called with ``num_classes``.
        weights: Pretrained weights: a file or a hub name. ``None`` is random initialisation.
            Ignored if a checkpoint is given.
        optimizer: Makes the optimizer from parameter groups. Its learning rate is for
            ``reference_batch_size`` images.
        lr_scheduler: Makes the schedule of an optimizer. Schedules of ``src.optim`` advance with
            every optimizer step, others as ``lr_interval`` says. ``None`` keeps the rate constant.
        lr_interval: ``epoch`` or ``step``, when a schedule of another package advances.
        reference_batch_size: Number of images per step that the learning rates are for. They are
            multiplied by global batch / this number, where global batch = images per device x
            devices x accumulated batches. ``None`` does not scale them.
        layer_decay: Ratio of the learning rates of neighbouring blocks, in (0, 1]; ``None`` is off.
        dcn_lr_scale: Additional learning-rate factor of the offset layers. As in the official
            recipes, it has an effect only together with ``layer_decay``.
        compile: Compile the repeated parts of the network (blocks, layers of encoders and
            decoders): true, or a mode of ``torch.compile``.
    """

    monitor: ClassVar[str] = "val/loss"
    """Logged value that decides which checkpoint is best."""
    monitor_mode: ClassVar[str] = "min"
    compiles_all_sizes: ClassVar[bool] = True
    """Whether ``compile`` compiles for all image sizes at once, because they vary."""

    def __init__(
        self,
        num_classes: int,
        network: Callable[[int], nn.Module],
        weights: str | None = None,
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(
            params, lr=5e-4, weight_decay=0.05
        ),
        lr_scheduler: SchedulerFactory | None = WarmupCosine,
        lr_interval: str = "epoch",
        reference_batch_size: int | None = 512,
        layer_decay: float | None = None,
        dcn_lr_scale: float | None = None,
        compile: bool | Mode = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"The number of classes must be at least 1, got {num_classes}.")
        self.network_factory, self.num_classes, self.weights = network, num_classes, weights
        self.optimization = Optimization(
            optimizer,
            lr_scheduler,
            lr_interval,
            reference_batch_size,
            self.monitor,
            self.monitor_mode,
        )
        self.layer_decay, self.dcn_lr_scale = layer_decay, dcn_lr_scale
        self.compilation = None
        if compile:
            mode: Mode = "default" if compile is True else compile
            self.compilation = Compilation(mode, dynamic=self.compiles_all_sizes)
        self.network = None
        self.random_weights = ()
        self._averaged = ()
        self._resumed = None
        self._save_plain_hyperparameters()

    def _save_plain_hyperparameters(self) -> None:
        """Save the settings in checkpoints for ``load_from_checkpoint``.

        From the command line they are the plain configuration. Factories that were passed as Python
        objects are left out, because a checkpoint must be readable without running code; so is
        ``compile``, which depends on the machine.
        """
        self.save_hyperparameters(ignore=["compile"])
        for name in [name for name, value in self.hparams.items() if callable(value)]:
            del self.hparams[name]

    # ---------------------------------------------------- hooks that a task must fill in

    def build_loss(self) -> nn.Module:
        """Make the training loss."""
        raise TypeError(f"{type(self).__name__} must define build_loss()")

    def build_metrics(self) -> MetricCollection:
        """Make the metrics of one evaluation, with bare names such as ``top1``."""
        raise TypeError(f"{type(self).__name__} must define build_metrics()")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch; logs it as ``train/loss``."""
        raise TypeError(f"{type(self).__name__} must define training_step()")

    def evaluation_step(self, network: nn.Module, batch: Any, stage: str, suffix: str) -> None:
        """Evaluate ``network`` on a batch and log values named ``<stage>/<metric><suffix>``."""
        raise TypeError(f"{type(self).__name__} must define evaluation_step()")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Predictions of a batch by name, among them ``path``; empty for a padding batch."""
        raise TypeError(f"{type(self).__name__} must define predict_step()")

    # ------------------------------------------------------- hooks that a task may change

    def build_network(self) -> nn.Module:
        """Make the network and load `weights`, in shards where the strategy asks for it."""
        network = self.make_network()
        self.load_weights(network)
        return network

    def lr_scale(self) -> LrScale | None:
        """Learning-rate factor by parameter name; ``None`` is one rate for all."""
        return scale_by_depth(self.training_network, self.layer_decay, self.dcn_lr_scale)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, each with its ``lr_scale``."""
        network = self.training_network
        names: Callable[[], set[str]] | None = getattr(network, "no_weight_decay", None)
        return parameter_groups(
            network.named_parameters(), lr_scale=self.lr_scale(), no_decay=names() if names else ()
        )


def not_finite(path: str) -> str:
    """Error message about an image for which a network gives NaN or infinite values."""
    return (
        f"The network gives values that are not finite for {path}: its weights are not, or numbers"
        " overflow in trainer.precision; take an earlier checkpoint, or precision 32-true."
    )
