"""Optimizer and learning-rate schedule of a task, with learning rates scaled to the batch size.

Learning rates in the configuration are for a reference batch size and are scaled to the global
batch size. `Optimization.restart` resets an optimizer to the configuration and its schedule to any
position, which resuming (``src.tasks.resume``) and Lightning's batch-size and learning-rate finders
need. The tasks define the parameter groups.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.errors import UserError, counted
from src.optim.fused import unscale_before_step, use_fused
from src.optim.param_groups import LrScale, lr_scale_by_depth
from src.optim.schedules import StepSchedule

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
Settings = list[dict[str, Any]]
"""Hyper-parameters of each parameter group, without the parameters."""


class Optimization:
    """Factory of the optimizer and schedule of a trainer.

    Args:
        optimizer: Factory of the optimizer, called with parameter groups.
        lr_scheduler: Factory of the schedule; ``None`` keeps the rate constant.
        lr_interval: ``epoch`` or ``step``: when schedules of other packages are stepped.
        reference_batch_size: Global batch size that the rates are for; ``None`` does not scale
            them.
        monitor: Default metric for ``ReduceLROnPlateau``.
        monitor_mode: ``min`` or ``max``, for that metric.

    Raises:
        UserError: If a value is out of range.
    """

    def __init__(
        self,
        optimizer: OptimizerFactory,
        lr_scheduler: SchedulerFactory | None,
        lr_interval: str,
        reference_batch_size: int | None,
        monitor: str,
        monitor_mode: str,
    ) -> None:
        if reference_batch_size is not None and reference_batch_size < 1:
            raise UserError(
                f"reference_batch_size must be at least 1 or null, got {reference_batch_size}."
            )
        if lr_interval not in ("epoch", "step"):
            raise UserError(f"model.lr_interval must be 'epoch' or 'step', got {lr_interval!r}.")
        self.make_optimizer: OptimizerFactory = partial(_create, optimizer, "model.optimizer")
        self.make_scheduler: SchedulerFactory | None = lr_scheduler and partial(
            _create, lr_scheduler, "model.lr_scheduler"
        )
        self.lr_interval, self.reference_batch_size = lr_interval, reference_batch_size
        self.monitor, self.monitor_mode = monitor, monitor_mode
        self.found_lr: float | None = None
        self.current: Settings = []
        """Hyper-parameters of each group at the base rates, once there is an optimizer."""
        self._configured: Settings = []
        self._scale = 1.0
        self._warned = ""

    def configure(self, trainer: Trainer, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Optimizer and schedule as expected by Lightning, at the first step.

        Args:
            trainer: Determines the length of training and the global batch size.
            groups: Parameter groups with ``lr_scale``.

        Raises:
            UserError: If the schedule depends on a length or a batch size that is unknown.
        """
        self._warned = ""
        _check_settings(trainer)
        _set_up_data(trainer)  # the number of steps and the batch size come from the loader
        optimizer = self.make_optimizer(groups)
        if trainer.strategy.root_device.type == "cuda":
            use_fused(optimizer)
        unscale_before_step(optimizer)
        _check_step(self.make_optimizer, groups)
        self._configured = [settings_of(group) for group in optimizer.param_groups]
        self._configure(optimizer, trainer)
        if not any(group["lr"] for group in self.current):
            rank_zero_warn("The learning rate is 0, so nothing is learned.")
        if self.make_scheduler is None:
            return {"optimizer": optimizer}
        scheduler = self._new_scheduler(optimizer, trainer)
        return {"optimizer": optimizer, "lr_scheduler": self._described(scheduler, trainer)}

    def _configure(self, optimizer: Optimizer, trainer: Trainer) -> None:
        """Set every group to the configuration, with scaled rates."""
        self._scale = self.rate_scale(trainer)
        self.current = []
        for group in self._configured:
            lr = group["lr"] * group["lr_scale"] * self._scale
            if self.found_lr is not None:
                lr = self.found_lr * group["lr_scale"]
            self.current.append(group | {"lr": lr})
        # A callback such as BackboneFinetuning may have added groups, which it manages itself.
        for group, values in zip(optimizer.param_groups, self.current, strict=False):
            parameters = group["params"]
            group.clear()
            group.update({"params": parameters, **values})

    def rate_scale(self, trainer: Trainer) -> float:
        """Scale of the learning rates: global / reference batch size."""
        if self.reference_batch_size is None:
            return 1.0
        return global_batch_size(trainer) / self.reference_batch_size

    def is_outdated(self, trainer: Trainer) -> bool:
        """Whether a finder has changed the batch size or learning rate since `configure`."""
        return self.found_lr is not None or self.rate_scale(trainer) != self._scale

    def restart(self, trainer: Trainer, position: Position) -> None:
        """Reset the optimizer to the configuration and its schedule to a position.

        A new schedule is stepped repeatedly, so that its state is the same as if training had
        used this configuration from the beginning. The state of the optimizer (moments) is kept,
        and so is the state of a ``ReduceLROnPlateau``, which depends on metrics.

        Raises:
            UserError: If the schedule ends before the position.
        """
        (optimizer,) = trainer.optimizers
        self._configure(optimizer, trainer)
        for config in trainer.lr_scheduler_configs:
            config.scheduler = self._new_scheduler(optimizer, trainer)
            _advance(config, position)

    def _new_scheduler(self, optimizer: Optimizer, trainer: Trainer) -> Any:
        assert self.make_scheduler is not None
        scheduler: Any = self.make_scheduler(optimizer)
        if isinstance(scheduler, StepSchedule):
            _plan(scheduler, trainer, self._scale)
            self._warn_of_long_warmup(scheduler)
        elif isinstance(scheduler, ReduceLROnPlateau) and not hasattr(scheduler, "monitor"):
            scheduler._init_is_better(
                self.monitor_mode, scheduler.threshold, scheduler.threshold_mode
            )
            scheduler._reset()
        return scheduler

    def _warn_of_long_warmup(self, scheduler: StepSchedule) -> None:
        """Warn once, also if a resumed run plans the same schedule again."""
        total, warmup = scheduler.total_steps, scheduler.num_warmup_steps
        text = (
            f"The warm-up of {counted(warmup, 'step')} is not shorter than the training of"
            f" {counted(total, 'step')}, so the learning rate never reaches its full value. For a"
            f" short trial add --model.lr_scheduler.warmup_steps {total // 10}."
        )
        if warmup >= total and text != self._warned:
            self._warned = text
            rank_zero_warn(text)

    def _described(self, scheduler: Any, trainer: Trainer) -> dict[str, Any]:
        if isinstance(scheduler, StepSchedule):
            return {"scheduler": scheduler, "interval": "step"}
        described = {"scheduler": scheduler, "interval": self.lr_interval}
        if not isinstance(scheduler, ReduceLROnPlateau):
            return described
        monitor = getattr(scheduler, "monitor", None) or self.monitor
        described |= {"monitor": monitor, "reduce_on_plateau": True}
        if not monitor.startswith("val/"):
            return described
        # The value changes only after a validation.
        if self.lr_interval == "epoch":
            return described | {"frequency": trainer.check_val_every_n_epoch or 1}
        every = int(min(trainer.val_check_batch or 1, trainer.num_training_batches))
        return described | {"frequency": max(1, every), "strict": False}


class Position:
    """Progress of training, in optimizer steps and epochs of the current configuration.

    Attributes:
        steps: Finished optimizer steps. If training is counted in epochs, these are the steps that
            the finished epochs have with the current global batch.
        epochs: Finished epochs.
    """

    def __init__(self, trainer: Trainer) -> None:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        total: Any = trainer.fit_loop.epoch_progress.total
        self.epochs = max(0, total.started - (not progress.is_last_batch))
        self.steps = trainer.global_step
        if trainer.max_steps < 0 and trainer.num_training_batches != math.inf:
            within = 0 if progress.is_last_batch else progress.current.processed
            self.steps = (
                self.epochs * steps_per_epoch(trainer) + within // trainer.accumulate_grad_batches
            )


def global_batch_size(trainer: Trainer) -> int:
    """Images per optimizer step: images per device x devices x accumulated batches.

    Raises:
        UserError: If the batch size of the loader is unknown.
    """
    loader = trainer.train_dataloader
    # Smaller than that of the loader if there are fewer images than one batch.
    per_device = getattr(getattr(loader, "sampler", None), "batch_size", None)
    if per_device is None:
        per_device = getattr(loader, "batch_size", None)
    if per_device is None:
        per_device = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if per_device is None:
        raise UserError(
            "The batch size of the training data loader is unknown, so the learning rate cannot be"
            " scaled. Set model.init_args.reference_batch_size to null."
        )
    return int(per_device) * trainer.world_size * trainer.accumulate_grad_batches


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of an epoch."""
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))


def scale_by_depth(
    network: torch.nn.Module, layer_decay: float | None, dcn_lr_scale: float | None
) -> LrScale | None:
    """Learning-rate factor by parameter name for classification; ``None`` if layer decay is off.

    Raises:
        UserError: If the network has no ``depths``.
    """
    if layer_decay is None:
        if dcn_lr_scale is not None:
            rank_zero_warn(
                f"dcn_lr_scale={dcn_lr_scale} has no effect without layer_decay (as in the official"
                " recipe)."
            )
        return None
    depths = getattr(network, "depths", None)
    if depths is None:
        raise UserError(
            f"layer_decay={layer_decay} needs a network with `depths`, got"
            f" {type(network).__name__}. Set layer_decay to null."
        )
    return lr_scale_by_depth(depths, layer_decay, dcn_lr_scale)


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of a parameter group."""
    return {name: value for name, value in group.items() if name != "params"}


def _create(factory: Callable[[Any], Any], setting: str, argument: Any) -> Any:
    try:
        return factory(argument)
    except (ValueError, TypeError) as error:  # raised by PyTorch for invalid settings
        raise UserError(f"Cannot create {setting} with these settings: {error}.") from error


def _check_settings(trainer: Trainer) -> None:
    """Refuse invalid settings that Lightning accepts."""
    clip, accumulated = trainer.gradient_clip_val, trainer.accumulate_grad_batches
    if clip is not None and clip < 0:  # PyTorch would change the sign of the gradients
        raise UserError(f"trainer.gradient_clip_val must be 0 or more, got {clip}.")
    if accumulated < 1:
        raise UserError(f"trainer.accumulate_grad_batches must be at least 1, got {accumulated}.")
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise UserError(f"There is nothing to train on: trainer.{name} must not be 0.")


def _set_up_data(trainer: Trainer) -> None:
    try:
        trainer.fit_loop.setup_data()
    except ValueError as error:
        if "val_check_interval" not in str(error):
            raise
        raise UserError(" ".join(str(error).split())) from error


def _check_step(make: OptimizerFactory, groups: list[dict[str, Any]]) -> None:
    """Refuse an optimizer that cannot step with dense gradients, before training starts."""
    parameter = groups[0]["params"][0]
    weight = torch.nn.Parameter(torch.zeros(2, 2, device=parameter.device, dtype=parameter.dtype))
    weight.grad = torch.zeros_like(weight)
    optimizer = make([weight])
    try:
        optimizer.step()
    except TypeError:  # it needs a closure, which the trainer passes
        return
    except RuntimeError as error:
        raise UserError(
            f"The optimizer {type(optimizer).__name__} is not supported: {error}."
        ) from error


def _plan(scheduler: StepSchedule, trainer: Trainer, scale: float) -> None:
    total_steps = trainer.estimated_stepping_batches
    if math.isinf(total_steps):
        raise UserError(
            "The length of training is unknown, which the learning-rate schedule needs. Set"
            " trainer.max_epochs or trainer.max_steps."
        )
    scheduler.plan(int(total_steps), steps_per_epoch(trainer), scale)


def _advance(config: LRSchedulerConfig, position: Position) -> None:
    """Step a new schedule to a position."""
    scheduler = config.scheduler
    if isinstance(scheduler, StepSchedule):
        scheduler.last_epoch = position.steps
        scheduler.apply()
    elif not isinstance(scheduler, ReduceLROnPlateau):
        count = position.steps if config.interval == "step" else position.epochs
        with warnings.catch_warnings():  # about steps without optimizer steps in between
            warnings.filterwarnings("ignore", message="Detected call of")
            try:
                for _ in range(count):
                    scheduler.step()
            except ValueError as error:
                raise UserError(
                    f"The schedule {type(scheduler).__name__} cannot be resumed at"
                    f" {config.interval} {count}: {error}"
                ) from error


def configured_lr(make_optimizer: OptimizerFactory) -> float:
    """Learning rate of an optimizer in the configuration."""
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    return float(optimizer.param_groups[0]["lr"])
