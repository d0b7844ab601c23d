"""Resume training: description of the optimizer in a checkpoint, and checks before resuming.

Settings come from the configuration; weights, moments and progress come from the checkpoint.
Another optimizer or other parameter groups are an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Size, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from src.distributed import describe_mismatch
from src.errors import UserError
from src.serialization import shown
from src.tasks.optimization import Optimization, OptimizerFactory, Position, settings_of
from src.tasks.saved import check_schedules

KEY = "optimization"
"""Entry of a checkpoint that `describe` writes."""
_NEW_RUN = "or start a new run from the weights with --model.weights."
_WRAPPERS = r"_(?:fsdp_wrapped|checkpoint_wrapped|forward)_module\.|_orig_mod\."
_MOMENTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
_INTERNAL = ("name", "lr_scale", "initial_lr", "max_lr", "min_lr")


def describe(trainer: Trainer, optimization: Optimization, network: nn.Module) -> dict[str, Any]:
    """Additional entry of a checkpoint about the optimizer and schedule."""
    (optimizer,) = trainer.optimizers
    described: dict[str, Any] = {
        "optimizer": _class_name(optimizer),
        "lr": [group["lr"] for group in optimization.current],
        "current_lr": [float(group["lr"]) for group in optimizer.param_groups],
        "parameters": _names(optimizer.param_groups, network),
    }
    for config in trainer.lr_scheduler_configs:
        described["lr_scheduler"] = _class_name(config.scheduler)
        if isinstance(config.scheduler, ReduceLROnPlateau):
            value = trainer.callback_metrics.get(str(config.monitor))
            described |= {"monitor": config.monitor, "mode": config.scheduler.mode}
            described["monitored"] = None if value is None else float(value)
    return described


class Resumed:
    """Optimizer and schedule of the checkpoint that is resumed.

    Args:
        checkpoint: Its content. Settings in it are replaced by those of the configuration, and the
            states of schedules are removed, so that Lightning restores moments and progress only.
    """

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.described: Mapping[str, Any] = checkpoint.get(KEY, {})
        states = checkpoint.get("optimizer_states") or [{"param_groups": []}]
        self.groups = [settings_of(group) for group in states[0].get("param_groups", [])]
        saved = [group["lr"] for group in self.groups]
        self.rates: list[float] = list(self.described.get("current_lr", saved))
        check_schedules(checkpoint.get("lr_schedulers", []))
        self.schedules: list[Any] = list(checkpoint.get("lr_schedulers", []))
        checkpoint["lr_schedulers"] = []

    def restart(self, trainer: Trainer, optimization: Optimization) -> None:
        """Apply the settings of the configuration, and print those that have changed."""
        position = Position(trainer)
        optimization.restart(trainer, position)
        for config, state in zip(trainer.lr_scheduler_configs, self.schedules, strict=False):
            if isinstance(config.scheduler, ReduceLROnPlateau):
                self._restore_plateau(config, state, trainer.optimizers[0], position)
        changes = self._changes(optimization.current, trainer)
        if changes and trainer.ckpt_path is not None:  # not a checkpoint of a finder
            _tell(f"Changed since the checkpoint: {', '.join(changes)}")

    def _restore_plateau(
        self, config: Any, state: Mapping[str, Any], optimizer: Optimizer, position: Position
    ) -> None:
        scheduler, described = config.scheduler, self.described
        now = (config.monitor, scheduler.mode)
        before = (described.get("monitor", config.monitor), state.get("mode"))
        if now != before or "num_bad_epochs" not in state:
            return  # the values belong to another metric
        for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
            setattr(scheduler, name, state[name])
        bases = described.get("lr", [None] * len(self.rates))
        for group, rate, base in zip(optimizer.param_groups, self.rates, bases, strict=False):
            is_same = base is None or base == group["lr"]
            group["lr"] = rate if is_same else group["lr"] * rate / base
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        count = position.steps if config.interval == "step" else position.epochs
        value = described.get("monitored")
        # Lightning steps it after the checkpoint of an epoch has been written.
        if value is not None and scheduler.last_epoch < count // config.frequency:
            scheduler.step(value)

    def _changes(self, settings: Sequence[dict[str, Any]], trainer: Trainer) -> list[str]:
        changes: dict[str, str] = {}
        rates = self.described.get("lr", [])
        for i, (old, new) in enumerate(zip(self.groups, settings, strict=False)):
            old = old | ({"lr": rates[i]} if i < len(rates) else {"lr": new["lr"]})
            for name, value in new.items():
                before = old.get(name, value)
                if name not in _INTERNAL and not _equal(value, before):
                    changes.setdefault(name, f"{name} {_short(before)} -> {_short(value)}")
        now = [_class_name(config.scheduler) for config in trainer.lr_scheduler_configs]
        scheduler, before = next(iter(now), None), self.described.get("lr_scheduler")
        if self.described and scheduler != before:
            changes["lr_scheduler"] = f"lr_scheduler {_last(before)} -> {_last(scheduler)}"
        return list(changes.values())


def check_continues(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint without the state of the optimizer or without the progress.

    Raises:
        UserError: If they are missing.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            "The checkpoint contains only weights, so training cannot be resumed from it. To start"
            " a new run from its weights, use --model.weights instead of --ckpt_path."
        )
    missing = [key for key in ("loops", "lr_schedulers") if key not in checkpoint]
    if missing:
        raise UserError(
            f"The checkpoint does not contain {missing[0]}, so training cannot be resumed from it."
            " To start a new run from its weights, use --model.weights instead of --ckpt_path."
        )


def check_is_unfinished(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Refuse a checkpoint after which nothing is left to train.

    Raises:
        UserError: If it has finished as many epochs or steps as the trainer is to train.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    # Lightning increases `processed` before it saves the checkpoint at the end of an epoch.
    epochs = loop.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    for kind, finished in (("epoch", epochs), ("step", checkpoint.get("global_step", 0))):
        limit = getattr(trainer, f"max_{kind}s")
        if limit is not None and 0 <= limit <= finished:
            raise UserError(
                f"Nothing is left to train: {trainer.ckpt_path} has finished {finished}"
                f" {kind}{'s' * (finished != 1)}; trainer.max_{kind}s must be larger, and it is"
                f" {limit}."
            )


def check_moments(states: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse optimizer state whose tensors do not have the shapes of the parameters.

    Args:
        states: One for each optimizer, by the index of the parameter.
        groups: Current parameter groups.

    Raises:
        UserError: If an entry does not match; the message names the first one.
    """
    if len(states) != 1:
        raise UserError(f"The checkpoint has {len(states)} optimizers, expected one.")
    shapes = [p.shape for group in groups for p in group["params"]]
    numbers = [n for group in states[0]["param_groups"] for n in group["params"]]
    expected = dict(zip(numbers, shapes, strict=False))
    for number, values in states[0]["state"].items():
        for name, value in values.items():
            matches = not isinstance(value, Tensor) or value.shape in (expected[number], Size(()))
            if not matches or (isinstance(value, Tensor) and value.dtype not in _MOMENTS):
                raise UserError(
                    f"The optimizer state of the checkpoint does not match: {name} of parameter"
                    f" {number} has {tuple(value.shape)} {value.dtype}, and the parameter has"
                    f" {tuple(expected[number])}."
                )


def check_weights(
    saved: Mapping[str, Size],
    expected: Mapping[str, Size],
    trained: Sequence[str] = (),
    now: Sequence[str] = (),
    tasks: tuple[str, str] = ("", ""),
) -> None:
    """Refuse weights whose names or shapes are not those of the network.

    Args:
        saved: Shape of every saved weight by name.
        expected: Shape of every weight of the network.
        trained: Class names of the saved weights, if known.
        now: Class names of the data, if known.
        tasks: Task and network of the checkpoint, and those of the recipe, from `task_of`.

    Raises:
        UserError: If they differ; the message says how.
    """
    mismatch = describe_mismatch(saved, expected, trained, now)
    if mismatch and all(tasks) and tasks[0] != tasks[1]:
        raise UserError(
            f"The checkpoint is of {tasks[0]}, and the recipe is of {tasks[1]}. Use the config.yaml"
            " of the run that wrote it. To initialise another network with pretrained weights, use"
            " --model.weights."
        )
    if mismatch:
        raise UserError(
            f"The checkpoint does not match this network: {mismatch}. Use the config.yaml and the"
            " data of the run that wrote it. To initialise another network with pretrained weights,"
            " use --model.weights."
        )


def task_of(settings: Mapping[str, Any]) -> str:
    """Task and network that the settings of a task name, for messages; empty if they do not.

    Args:
        settings: ``hyper_parameters`` of a checkpoint, or ``hparams`` of a task.
    """
    network = settings.get("network")
    path = network.get("class_path") if isinstance(network, Mapping) else None
    names = [_last(name) for name in (settings.get("_class_path"), path) if isinstance(name, str)]
    return shown(" with ".join(names)) if len(names) == 2 else ""


def warn_about_dropped_ema() -> None:
    """Warn that EMA weights of a checkpoint are dropped."""
    rank_zero_warn(
        "The checkpoint has EMA weights, but the EMA callback is not used. Training resumes from"
        " the raw weights, and the EMA weights are dropped."
    )


def check_optimizer(
    described: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    make_optimizer: OptimizerFactory,
    network: nn.Module,
) -> None:
    """Refuse to resume with another optimizer or with other parameters in its groups.

    Args:
        described: Result of `describe` in the checkpoint; empty in older checkpoints.
        groups: Current parameter groups, with their parameters.
        make_optimizer: Factory of the current optimizer.
        network: Network of the parameters.

    Raises:
        UserError: If they differ; the message says how.
    """
    optimizer = make_optimizer([dict(group) for group in groups])
    name, saved = _class_name(optimizer), described.get("optimizer")
    if saved is not None and saved != name:
        raise UserError(
            f"The checkpoint was written with the optimizer {_last(saved)}, the settings have"
            f" {_last(name)}, which cannot resume from its state. Keep model.optimizer as it was,"
            f" {_NEW_RUN}"
        )
    now = _names(optimizer.param_groups, network)
    before = described.get("parameters")
    if before is not None and now != before:
        pairs = ((set(a), set(b)) for a, b in zip(before, now, strict=False))
        other = sorted(set().union(*(a ^ b for a, b in pairs)))
        raise UserError(
            "The checkpoint has other parameters in the groups of its optimizer (first:"
            f" {other[0] if other else 'another order'}). Keep layer_decay, dcn_lr_scale and"
            f" freeze as they were, {_NEW_RUN}"
        )


def check_states(state: Mapping[str, Any], make_optimizer: OptimizerFactory) -> None:
    """Refuse optimizer state with which the current optimizer cannot step.

    Args:
        state: State dict of the optimizer in the checkpoint.
        make_optimizer: Factory of the current optimizer.

    Raises:
        UserError: If the optimizer needs an entry that the state does not have.
    """
    known = set(settings_of(make_optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]))
    for group in state["param_groups"]:
        missing = known - set(group)
        if missing and set(group) - known - set(_INTERNAL):
            raise UserError(_incompatible_state(f"it has no {', '.join(sorted(missing))}"))
    _try_a_step(next(iter(state["state"].values()), {}), make_optimizer)


def settings_into(state: dict[str, Any], make_optimizer: OptimizerFactory) -> None:
    """Replace the settings in a saved optimizer state by the current ones.

    PyTorch then moves step counters to the device that settings such as ``fused`` need.
    """
    now = settings_of(make_optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0])
    for group in state["param_groups"]:
        group.update({name: value for name, value in now.items() if name not in ("lr", *_INTERNAL)})


def keep_settings_of_callbacks(checkpoint: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Keep the configured patience of early stopping, which Lightning would overwrite."""
    for callback in callbacks:
        state = checkpoint.get("callbacks", {}).get(getattr(callback, "state_key", None))
        if isinstance(callback, EarlyStopping) and state:
            state["patience"] = callback.patience


@rank_zero_only
def _tell(text: str) -> None:
    print(text, flush=True)


def _try_a_step(saved: Mapping[str, Any], make_optimizer: OptimizerFactory) -> None:
    """Try a step of a tiny optimizer with the saved state entries, unless none is missing."""
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer([weight])
    weight.grad = torch.zeros_like(weight)
    try:
        optimizer.step()
    except Exception:  # for example an optimizer that needs a closure, which cannot be checked
        return
    if not saved or set(optimizer.state[weight]) <= set(saved):
        return
    optimizer.state[weight] = {
        name: (torch.zeros_like(weight) if value.ndim else value.clone())
        if isinstance(value, Tensor)
        else value
        for name, value in saved.items()
    }
    try:
        optimizer.step()
    except Exception as error:  # the optimizer may be from another package
        raise UserError(_incompatible_state(f"it has no {error}")) from error


def _incompatible_state(reason: str) -> str:
    return (
        f"The optimizer state in the checkpoint is not compatible with the current optimizer:"
        f" {reason}. Keep model.optimizer as it was, {_NEW_RUN}"
    )


def _names(groups: Sequence[Mapping[str, Any]], network: nn.Module) -> list[list[str]]:
    names = {
        id(parameter): re.sub(_WRAPPERS, "", name) for name, parameter in network.named_parameters()
    }
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in groups]


def _class_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _last(name: str | None) -> str:
    return "null" if name is None else name.rpartition(".")[2]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-12)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) == list(other)
    return bool(one == other)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
