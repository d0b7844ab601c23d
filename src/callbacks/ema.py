"""Exponential moving average of the weights, as timm's first ``ModelEma`` computes it.

Every parameter *and* buffer follows ``average = decay * average + (1 - decay) * weight`` after each
optimizer step; the average starts at the initial weights and the decay is constant, or, as in
mmdetection's ``ExpMomentumEMAHook``, grows to its value. It is stored as
Lightning's weight averaging stores it: ``state_dict`` of a checkpoint holds the average and
``current_model_state`` the weights in training. Unlike Lightning's callback, weights are never
swapped: validation evaluates both networks.

Under the strategy ``fsdp2`` the average is split over the processes like the weights, and every
process averages its own part. FSDP1 hides its parts in buffers of its own and is refused.
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
    """Keep an exponential moving average and evaluate with it.

    While fitting, ``val/<metric>`` is measured with the average and ``val/<metric>_raw`` with the
    weights in training. After fitting the task carries the average.

    Args:
        decay: Share of the old average kept at each step, in [0, 1]. About ``1 / (1 - decay)``
            steps are averaged.
        warmup_steps: If positive, the share of the new weights falls from nearly 1 to
            ``1 - decay`` as ``exp(-step / warmup_steps)``; mmdetection has 2000.
        device: Where the average lives; default is the device of the training. Without effect
            where the weights are split.

    Raises:
        UserError: If ``decay`` is outside [0, 1] or ``warmup_steps`` below 0; at the start, if the
            strategy shards the weights (``fsdp2`` is fine) or the precision is not 32 bit or mixed.
    """

    def __init__(
        self, decay: float = 0.9999, warmup_steps: int = 0, device: str | None = None
    ) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"The decay of EMA must be in [0, 1], got {decay}.")
        if warmup_steps < 0:
            raise UserError(f"warmup_steps of EMA must be 0 or more, got {warmup_steps}.")
        average = _growing_decay(decay, warmup_steps) if warmup_steps else None
        super().__init__(
            device=device, use_buffers=True, multi_avg_fn=average or get_ema_multi_avg_fn(decay)
        )
        self.decay = decay

    @property
    def average(self) -> AveragedModel | None:
        """The averaged copy of the network while fitting."""
        return self._average_model

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the average at the current weights."""
        if stage != "fit":
            return
        _check_supported(trainer)
        if not isinstance(pl_module, BaseTask):
            raise UserError(f"EMA works with a BaseTask, got {type(pl_module).__name__}.")
        pl_module.configure_model()
        # Only the network: a task also carries factories that lead to the whole command line.
        if is_sharded(_network(pl_module)):
            self._average_model = _AverageInShards(pl_module.copy_in_shards(), **self._kwargs)
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
        """Average after every optimizer step."""
        if self._average_model is not None and trainer.global_step > self._latest_update_step:
            self._average_model.update_parameters(_network(pl_module))
            self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap nothing: the task evaluates both networks."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap nothing: the task evaluates both networks."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights apart until the last checkpoint is written."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average where weights are looked for, and the weights in training beside it."""
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
        """Restore both; outside of fit the checkpoint's own weights are already the average."""
        if self._average_model is None:
            return
        if "averaging_state" in checkpoint:
            self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        if "state_dict" not in checkpoint:
            return  # a sharding strategy has loaded it
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
                "The checkpoint was written without EMA: the average starts at its weights."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the average to the task."""
        if stage == "fit" and self._average_model is not None and isinstance(pl_module, BaseTask):
            copy_network(_network(pl_module), self._average_model.module)
            pl_module.set_averaged_network(None)
            self._average_model = None


class _AverageInShards(AveragedModel):
    """Average of a network in shards, which ``AveragedModel`` cannot copy: it is given the copy."""

    def __init__(self, copy: nn.Module, multi_avg_fn: Callable[..., None]) -> None:
        nn.Module.__init__(self)
        self.module = copy
        self.register_buffer("n_averaged", torch.tensor(0))
        self.multi_avg_fn = multi_avg_fn

    def update_parameters(self, model: nn.Module) -> None:
        """Average the part of this process."""
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


def _growing_decay(decay: float, warmup_steps: int) -> Callable[..., None]:
    """Averaging whose decay grows from nearly 0 to ``decay``."""

    def average(averages: Any, weights: Any, num_averaged: Any) -> None:
        # num_averaged is 1 in the first step
        missing = math.exp(-float(num_averaged) / warmup_steps)
        get_ema_multi_avg_fn(decay * (1 - missing))(averages, weights, num_averaged)

    return average


def _check_supported(trainer: Trainer) -> None:
    strategy = type(trainer.strategy).__name__
    if strategy in _SHARDING:
        raise UserError(
            f"EMA cannot average the weights, which {strategy} shards over the devices; use the"
            " strategy fsdp2 or ddp, or remove the EMA callback."
        )
    if trainer.precision not in ("32-true", "16-mixed", "bf16-mixed"):
        raise UserError(
            f"EMA needs 32-bit weights, which precision {trainer.precision!r} has not;"
            " use 32-true, 16-mixed or bf16-mixed, or remove the EMA callback."
        )
