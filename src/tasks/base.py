"""Base class of all tasks: arguments, and hooks that a task implements.

A task receives data only as batches (``src.types``); the command line passes the number of classes
from the data module. Shared behaviour is in the base classes of `BaseTask`: ``building.py``,
``training.py``, ``evaluation.py`` and ``checkpointing.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.errors import UserError
from src.models.layers.compilation import Compilation, Mode
from src.optim.param_groups import LrScale, parameter_groups
from src.optim.schedules import WarmupCosine
from src.tasks.checkpointing import CheckpointHooks
from src.tasks.inference_copy import InferenceCopy
from src.tasks.optimization import Optimization, OptimizerFactory, SchedulerFactory, scale_by_depth
from src.tasks.partial_training import adapt


class BaseTask(CheckpointHooks):
    """Network, loss, metrics and optimizer of one task.

    Args:
        num_classes: Number of classes, taken from the data module on the command line.
        network: Factory of the network, called with `network_arguments`: ``num_classes``.
        weights: Pretrained weights: a file or a hub name. ``None`` is random initialisation.
            Ignored if a checkpoint is given.
        optimizer: Factory of the optimizer, called with parameter groups. Its learning rate is for
            ``reference_batch_size`` images.
        lr_scheduler: Factory of the schedule, called with the optimizer. Schedules of ``src.optim``
            are stepped after every optimizer step, others according to ``lr_interval``. ``None``
            keeps the rate constant.
        lr_interval: ``epoch`` or ``step``: when schedules of other packages are stepped.
        reference_batch_size: Global batch size that the learning rates are given for. They are
            multiplied by global batch size / this number, where the global batch size is images
            per device x devices x accumulated batches. ``None`` does not scale them.
        layer_decay: Ratio of the learning rates of adjacent blocks, in (0, 1]; ``None`` is off.
        dcn_lr_scale: Additional learning-rate factor of the offset layers. As in the official
            recipes, it has an effect only together with ``layer_decay``.
        freeze: Part of the network that is not trained and stays in evaluation mode: ``backbone``,
            or a number of stages (the stem and that many stages; 0 is the stem alone).
        lora: Rank of low-rank updates that are trained instead of the weights of the backbone
            (LoRA). Combined with ``freeze``, they are in the stages that are not frozen.
        compile: Compile the repeated parts of the network (blocks, layers of encoders and
            decoders): true, or a mode of ``torch.compile``.
    """

    monitor: ClassVar[str] = "val/loss"
    """Logged metric that decides which checkpoint is best."""
    monitor_mode: ClassVar[str] = "min"
    zero_score: ClassVar[str] = ""
    """Advice at the end of training if the best value of the metric is 0."""
    predicts: ClassVar[bool] = True
    """Whether the task defines `predict_step`."""
    compiles_all_sizes: ClassVar[bool] = True
    """Whether ``compile`` compiles for all image sizes at once, because they vary."""

    def __init__(
        self,
        num_classes: int,
        network: Callable[..., nn.Module],
        weights: str | None = None,
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(
            params, lr=5e-4, weight_decay=0.05
        ),
        lr_scheduler: SchedulerFactory | None = WarmupCosine,
        lr_interval: str = "epoch",
        reference_batch_size: int | None = 512,
        layer_decay: float | None = None,
        dcn_lr_scale: float | None = None,
        freeze: Literal["backbone"] | int | None = None,
        lora: int | None = None,
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
        if lora is not None and lora < 1:
            raise UserError(f"model.lora is a rank of at least 1 or null, got {lora}.")
        self.frozen, self.lora = freeze, lora
        self.compilation = None
        if compile:
            mode: Mode = "default" if compile is True else compile
            self.compilation = Compilation(mode, dynamic=self.compiles_all_sizes)
        self.network = None
        self.random_weights = ()
        self._averaged = ()
        self._inference_copy = InferenceCopy()
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

    # --------------------------------------------------- hooks that a task must implement

    def build_loss(self) -> nn.Module:
        """Build the training loss."""
        raise TypeError(f"{type(self).__name__} must define build_loss()")

    def build_metrics(self) -> MetricCollection:
        """Build the metrics of an evaluation, with names without prefix such as ``top1``."""
        raise TypeError(f"{type(self).__name__} must define build_metrics()")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch; logs it as ``train/loss``."""
        raise TypeError(f"{type(self).__name__} must define training_step()")

    def evaluation_step(self, network: nn.Module, batch: Any, stage: str, suffix: str) -> None:
        """Evaluate ``network`` on a batch and log values named ``<stage>/<metric><suffix>``."""
        raise TypeError(f"{type(self).__name__} must define evaluation_step()")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Predictions of a batch by name, including ``path``; empty for a padding batch."""
        raise TypeError(f"{type(self).__name__} must define predict_step()")

    # ----------------------------------------------------- hooks that a task may override

    def build_network(self) -> nn.Module:
        """Build the network, sharded if the strategy requires it, and load `weights`."""
        network = self.make_network()
        self.load_weights(network)
        if self.lora is not None:
            adapt(network, self.lora, self._trainer and self.trainer.strategy)
        return network

    def lr_scale(self) -> LrScale | None:
        """Learning-rate factor by parameter name; ``None`` for a single rate."""
        return scale_by_depth(self.training_network, self.layer_decay, self.dcn_lr_scale)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, each with its ``lr_scale``."""
        network = self.training_network
        names: Callable[[], set[str]] | None = getattr(network, "no_weight_decay", None)
        return parameter_groups(
            network.named_parameters(), lr_scale=self.lr_scale(), no_decay=names() if names else ()
        )


def can_predict(task: LightningModule) -> bool:
    """Whether ``predict`` works for a task; image-text pre-training has no predictions."""
    return type(task).predict_step is not BaseTask.predict_step


def not_finite(path: str) -> str:
    """Error message about an image for which a network gives NaN or infinite values."""
    return (
        f"The network has non-finite outputs for {path}: its weights are not finite, or values"
        " overflow in trainer.precision. Use an earlier checkpoint, or precision 32-true."
    )
