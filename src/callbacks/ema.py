"""Exponential moving average (EMA) of the weights, computed like timm's ``ModelEma``.

Every parameter *and* buffer is updated as ``ema = decay * ema + (1 - decay) * weight`` after each
optimizer step. The EMA weights are initialised with the initial weights. The decay is constant, or
increases to its final value as in mmdetection's ``ExpMomentumEMAHook``. The checkpoint format is
that of Lightning's weight averaging: ``state_dict`` contains the EMA weights and
``current_model_state`` the raw weights. Unlike Lightning's callback, this one never swaps weights:
validation evaluates both networks.

With the strategy ``fsdp2``, the EMA weights are sharded like the weights, and each rank updates its
own shard. FSDP1 stores its shards in internal buffers and is not supported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.distributed import copy_network, is_sharded, tensors_of
from src.errors import UserError
from src.strategies import FSDP2Strategy
from src.tasks import BaseTask

_PREFIX = "network."
_SHARDING = ("FSDP1Strategy", "FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class EMA(WeightAveraging):
    """Keep EMA weights and evaluate with them.

    During ``fit``, ``val/<metric>`` is measured with the EMA weights and ``val/<metric>_raw`` with
    the raw weights. After ``fit``, the task contains the EMA weights.

    Args:
        decay: Decay per step, in [0, 1]; the time constant is about ``1 / (1 - decay)`` steps.
        warmup_steps: If positive, the effective decay starts near 0 and approaches ``decay`` as
            ``1 - exp(-step / warmup_steps)``; mmdetection uses 2000.
        device: Device of the EMA weights; default is the training device. Ignored if the weights
            are sharded.

    Raises:
        UserError: If ``decay`` is outside [0, 1] or ``warmup_steps`` is negative; at the start, if
            the strategy shards the weights (except ``fsdp2``) or the precision is not 32-bit or
            mixed.
    """

    def __init__(
        self, decay: float = 0.9999, warmup_steps: int = 0, device: str | None = None
    ) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"EMA.decay: expected a value in [0, 1], got {decay}.")
        if warmup_steps < 0:
            raise UserError(f"EMA.warmup_steps: expected 0 or more, got {warmup_steps}.")
        update = _warmup_decay(decay, warmup_steps) if warmup_steps else None
        super().__init__(
            device=device, use_buffers=True, multi_avg_fn=update or get_ema_multi_avg_fn(decay)
        )
        self.decay = decay

    @property
    def average(self) -> AveragedModel | None:
        """The network with EMA weights during ``fit``."""
        return self._average_model

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Initialise the EMA weights with the current weights."""
        if stage != "fit":
            return
        _check_supported(trainer)
        if not isinstance(pl_module, BaseTask):
            raise UserError(f"EMA: expected a BaseTask, got {type(pl_module).__name__}.")
        pl_module.configure_model()
        # Copy only the network: a task also refers to factories and through them to the whole CLI.
        if is_sharded(_network(pl_module)):
            self._average_model = _ShardedAverage(pl_module.copy_in_shards(), **self._kwargs)
        else:
            self._average_model = AveragedModel(
                _network(pl_module),
                device=self._device or trainer.strategy.root_device,
                use_buffers=self._use_buffers,
                **self._kwargs,
            )
        # Otherwise the first update would copy the weights instead of averaging them.
        self._average_model.n_averaged.fill_(1)
        pl_module.set_averaged_network(self._average_model.module.eval().requires_grad_(False))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the EMA weights after every optimizer step."""
        if self._average_model is not None and trainer.global_step > self._latest_update_step:
            self._average_model.update_parameters(_network(pl_module))
            self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not swap weights, because the task evaluates both networks."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not swap weights, because the task evaluates both networks."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not copy the EMA weights before the last checkpoint is written."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the EMA weights as ``state_dict`` and the raw weights as ``current_model_state``."""
        if self._average_model is not None:
            average = _state_dict(trainer, self._average_model.module)
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = checkpoint["state_dict"] | {
                _PREFIX + name: value for name, value in average.items()
            }
            checkpoint["averaging_state"] = {"n_averaged": self._average_model.n_averaged}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both; outside of ``fit``, ``state_dict`` already contains the EMA weights."""
        if self._average_model is None:
            return
        if "averaging_state" in checkpoint:
            self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        if "state_dict" not in checkpoint:
            return  # a sharding strategy has loaded the weights
        average = {
            name.removeprefix(_PREFIX): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(_PREFIX)
        }
        self._average_model.module.load_state_dict(average)
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])
        else:
            rank_zero_warn(
                "The checkpoint was written without EMA, so EMA starts with its weights."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the EMA weights to the task."""
        if stage == "fit" and self._average_model is not None and isinstance(pl_module, BaseTask):
            copy_network(_network(pl_module), self._average_model.module)
            pl_module.set_averaged_network(None)
            self._average_model = None


class _ShardedAverage(AveragedModel):
    """EMA of a sharded network, given as a copy because ``AveragedModel`` cannot copy it."""

    def __init__(self, copy: nn.Module, multi_avg_fn: Callable[..., None]) -> None:
        nn.Module.__init__(self)
        self.module = copy
        self.register_buffer("n_averaged", torch.tensor(0))
        self.multi_avg_fn = multi_avg_fn

    def update_parameters(self, model: nn.Module) -> None:
        """Update the shard of this rank."""
        assert self.multi_avg_fn is not None
        pairs = list(zip(tensors_of(self.module), tensors_of(model), strict=True))
        for is_float in (True, False):  # counters of batch norm are integers
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == is_float]
            if chosen:
                averages, weights = (list(tensors) for tensors in zip(*chosen, strict=True))
                self.multi_avg_fn(averages, weights, self.n_averaged)
        self.n_averaged += 1


def _state_dict(trainer: Trainer, module: nn.Module) -> dict[str, Any]:
    strategy = trainer.strategy
    if isinstance(strategy, FSDP2Strategy):
        return strategy.module_state_dict(module)
    return module.state_dict()


def _network(task: LightningModule) -> nn.Module:
    return task.get_submodule("network")


def _warmup_decay(decay: float, warmup_steps: int) -> Callable[..., None]:
    """EMA update whose decay increases from nearly 0 to ``decay``."""

    def average(averages: Any, weights: Any, num_averaged: Any) -> None:
        # num_averaged is 1 in the first step
        missing = math.exp(-float(num_averaged) / warmup_steps)
        get_ema_multi_avg_fn(decay * (1 - missing))(averages, weights, num_averaged)

    return average


def _check_supported(trainer: Trainer) -> None:
    strategy = type(trainer.strategy).__name__
    if strategy in _SHARDING:
        raise UserError(
            f"EMA does not support weights sharded by {strategy}. Use the strategy fsdp2 or ddp, or"
            " remove the EMA callback."
        )
    if trainer.precision not in ("32-true", "16-mixed", "bf16-mixed"):
        raise UserError(
            f"EMA needs 32-bit weights, got precision {trainer.precision!r}. Use 32-true, 16-mixed"
            " or bf16-mixed, or remove the EMA callback."
        )
