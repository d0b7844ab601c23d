"""What every task shares: the network, its optimizer and schedule, evaluation with averaged weights.

A task fills small hooks: ``build_network``, ``build_loss``, ``build_metrics``, ``parameter_groups``
and ``evaluation_step``. It meets the data only as batches (``src.types``); the number of classes
comes from the data module through the command line. What is not here: anything about one task, and
the moving average itself (``src.callbacks.ema``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from src.errors import UserError
from src.optim.param_groups import LrScale, lr_scale_by_depth, parameter_groups
from src.optim.schedules import StepSchedule, WarmupCosine

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class BaseTask(LightningModule):
    """Network, loss, metrics and optimizer of one task.

    Args:
        network: Makes the network; called with ``num_classes``.
        num_classes: Number of classes, taken from the data module on the command line.
        weights: Published or own weights to start from: a file or a hub name. ``None`` keeps the
            network's own initialisation. Ignored when a checkpoint is given, which has its weights.
        optimizer: Makes the optimizer from parameter groups. Its learning rate is for
            ``reference_batch_size`` images.
        lr_scheduler: Makes the schedule of an optimizer. Schedules of ``src.optim`` advance with
            every optimizer step, others as ``lr_interval`` says. ``None`` keeps the rate constant.
        lr_interval: When a foreign schedule advances.
        reference_batch_size: Number of images that the learning rates are meant for. They are
            multiplied by global batch / this number, where global batch = images per device x
            devices x accumulated batches. ``None`` takes them as they are.
        layer_decay: Ratio of the learning rates of neighbouring blocks, in (0, 1]; ``None`` is off.
        dcn_lr_scale: Extra learning-rate factor of the offset layers. As in the official recipe it
            only acts together with ``layer_decay``.
    """

    monitor: ClassVar[str] = "val/loss"
    """Logged value that decides which checkpoint is best."""
    monitor_mode: ClassVar[str] = "min"

    def __init__(
        self,
        network: Callable[[int], nn.Module],
        num_classes: int,
        weights: str | None = None,
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(
            params, lr=5e-4, weight_decay=0.05
        ),
        lr_scheduler: SchedulerFactory | None = WarmupCosine,
        lr_interval: str = "epoch",
        reference_batch_size: int | None = 512,
        layer_decay: float | None = None,
        dcn_lr_scale: float | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"The number of classes must be at least 1, got {num_classes}.")
        if reference_batch_size is not None and reference_batch_size < 1:
            raise UserError(
                f"reference_batch_size must be at least 1 or null, got {reference_batch_size}."
            )
        self.network_factory, self.num_classes, self.weights = network, num_classes, weights
        self.optimizer_factory, self.lr_scheduler_factory = optimizer, lr_scheduler
        self.lr_interval, self.reference_batch_size = lr_interval, reference_batch_size
        self.layer_decay, self.dcn_lr_scale = layer_decay, dcn_lr_scale
        self.network: nn.Module | None = None
        self._averaged: tuple[nn.Module, ...] = ()  # a tuple, so that it is not a submodule

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Build network, loss and metrics once; Lightning calls this again for every stage."""
        if self.network is not None:
            return
        self.network = self.build_network()
        self.criterion = self.build_loss()
        self.metrics = nn.ModuleDict(
            {
                "val": self.build_metrics().clone(prefix="val/"),
                "val_raw": self.build_metrics().clone(prefix="val/", postfix="_raw"),
                "test": self.build_metrics().clone(prefix="test/"),
            }
        )

    def build_network(self) -> nn.Module:
        """Make the plain network and give it its starting weights."""
        network = self.network_factory(num_classes=self.num_classes)
        if self.weights is not None:
            from src.models.weights import load_official

            load_official(network, self.weights)
        return network

    def build_loss(self) -> nn.Module:
        """Make the training loss."""
        raise TypeError(f"{type(self).__name__} must define build_loss()")

    def build_metrics(self) -> MetricCollection:
        """Make the metrics of one evaluation, with bare names such as ``top1``."""
        raise TypeError(f"{type(self).__name__} must define build_metrics()")

    # -------------------------------------------------------------- evaluation

    @property
    def evaluation_network(self) -> nn.Module:
        """The averaged network while a moving average is kept, else the network."""
        network = self._averaged[0] if self._averaged else self.network
        if network is None:
            raise RuntimeError("the network is built by configure_model(), which has not run yet")
        return network

    def set_averaged_network(self, network: nn.Module | None) -> None:
        """Evaluate with ``network`` from now on, and with the raw one beside it; ``None`` ends it."""
        self._averaged = () if network is None else (network,)

    def evaluation_step(self, network: nn.Module, batch: Any, stage: str, suffix: str) -> None:
        """Evaluate ``network`` on a batch and log values named ``<stage>/<metric><suffix>``."""
        raise TypeError(f"{type(self).__name__} must define evaluation_step()")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the averaged network and, where there is one, the raw network as well."""
        self.evaluation_step(self.evaluation_network, batch, "val", "")
        if self._averaged and self.network is not None:
            self.evaluation_step(self.network, batch, "val", "_raw")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate on the test split."""
        self.evaluation_step(self.evaluation_network, batch, "test", "")

    # ------------------------------------------------------------ optimization

    def lr_scale(self) -> LrScale | None:
        """Learning-rate scale by parameter name, or ``None`` for one rate."""
        if self.layer_decay is None:
            if self.dcn_lr_scale is not None:
                rank_zero_warn(
                    f"dcn_lr_scale={self.dcn_lr_scale} has no effect without layer_decay"
                    " (the official recipe reads it only there)."
                )
            return None
        depths = getattr(self.network, "depths", None)
        if depths is None:
            raise UserError(
                f"layer_decay={self.layer_decay} needs a network with `depths`, which"
                f" {type(self.network).__name__} has not; set layer_decay to null."
            )
        return lr_scale_by_depth(depths, self.layer_decay, self.dcn_lr_scale)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the network."""
        network = self.evaluation_network if self.network is None else self.network
        no_decay = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
        return parameter_groups(
            network.named_parameters(), lr_scale=self.lr_scale(), no_decay=no_decay
        )

    def global_batch_size(self) -> int:
        """Images per optimizer step: images per device x devices x accumulated batches."""
        loader = self.trainer.train_dataloader
        per_device = getattr(loader, "batch_size", None)
        if per_device is None:
            per_device = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        if per_device is None:
            raise UserError(
                "The batch size of the training loader is unknown, so the learning rate cannot be"
                " scaled to it; set model.init_args.reference_batch_size to null."
            )
        return int(per_device) * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> Any:
        """Optimizer with grouped, scaled learning rates, and its schedule."""
        optimizer = self.optimizer_factory(self.parameter_groups())
        total_steps = self.trainer.estimated_stepping_batches  # also prepares the training loader
        scale = 1.0
        if self.reference_batch_size is not None:
            scale = self.global_batch_size() / self.reference_batch_size
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["lr_scale"] * scale
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        if not isinstance(scheduler, StepSchedule):
            config = {"scheduler": scheduler, "interval": self.lr_interval}
            return {"optimizer": optimizer, "lr_scheduler": config}
        if math.isinf(total_steps):
            raise UserError(
                "The length of training is unknown, so the learning-rate schedule cannot be"
                " planned; set trainer.max_epochs or trainer.max_steps."
            )
        batches = self.trainer.num_training_batches
        per_epoch = max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))
        scheduler.plan(int(total_steps), per_epoch, scale)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
