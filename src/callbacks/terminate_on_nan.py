"""Stop training on all ranks when the loss or the weights are not finite.

A NaN or infinite loss is detected before the optimizer step, so it never affects the weights, the
EMA weights or a checkpoint. Infinite *gradients* are normal with 16-bit precision, where the
gradient scaler skips the step, and are not checked. Weights are checked before checkpoints are
written.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed
from torch.optim import Optimizer

from src.distributed import tensors_of
from src.errors import UserError
from src.tasks import BaseTask

_DISABLE = "Use --terminate_on_nan.enabled false to turn this check off"


class NonFiniteError(UserError):
    """A loss, a metric or the weights are NaN or infinite."""


class TerminateOnNaN(Callback):
    """Stop at the first non-finite loss, and refuse non-finite weights.

    Args:
        enabled: ``False`` turns the check off; non-finite weights are still never saved as best.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._losses: list[Tensor] = []  # of the accumulated batches of a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to train non-finite weights."""
        self._losses = []
        self._check_network(trainer, pl_module)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Store the loss of a batch without synchronising the device."""
        if self.enabled:
            self._losses.append(loss.detach().sum())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the losses of all ranks before they affect the weights.

        Raises:
            NonFiniteError: On every rank, if the loss of any rank is not finite.
        """
        losses, self._losses = self._losses, []
        if not self.enabled:
            return
        values = torch.stack(losses) if losses else torch.zeros(1, device=pl_module.device)
        if not _on_any_rank(~torch.isfinite(values).all()):
            return
        rate = max(group["lr"] for group in optimizer.param_groups)
        losses_found = _collect(_describe_losses(trainer, values))
        raise NonFiniteError(
            f"The loss is not finite at step {trainer.global_step} of epoch"
            f" {trainer.current_epoch}: {losses_found}, at a learning rate of {rate:.4g}."
            " Existing checkpoints are kept. Try a lower model.optimizer.lr, a longer warm-up,"
            " trainer.gradient_clip_val 1.0, or trainer.precision 32-true or bf16-mixed instead of"
            f" 16-mixed; configs/debug/anomaly.yaml finds the operation. {_DISABLE}."
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop training if the weights or the validation losses are not finite.

        Raises:
            NonFiniteError: On every rank.
        """
        if not self.enabled or trainer.state.fn != TrainerFn.FITTING:
            return
        require_finite_weights(pl_module)
        losses = pl_module.validation_losses() if isinstance(pl_module, BaseTask) else set()
        names = [
            f"{name} {float(value)}"
            for name, value in trainer.callback_metrics.items()
            if name in losses and not math.isfinite(float(value))
        ]
        if _on_any_rank(torch.tensor(bool(names), device=pl_module.device)):
            raise NonFiniteError(
                f"The validation of epoch {trainer.current_epoch} gives"
                f" {_collect(', '.join(names))} although the weights are finite: activations"
                " overflow, or no image has a label. Existing checkpoints are kept. Try"
                f" trainer.precision 32-true or a lower model.optimizer.lr. {_DISABLE}."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to validate non-finite weights."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._check_network(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to test non-finite weights."""
        self._check_network(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to predict with non-finite weights."""
        self._check_network(trainer, pl_module)

    def _check_network(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled:
            require_finite_weights(pl_module, str(trainer.ckpt_path or "") or None)


def is_checked(trainer: Trainer) -> bool:
    """Whether `TerminateOnNaN` is enabled."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(c, TerminateOnNaN) and c.enabled for c in callbacks)


def has_finite_weights(task: LightningModule) -> bool:
    """Whether all weights and EMA weights of a task are finite on all ranks."""
    tensors = [tensor for network in _networks(task) for tensor in tensors_of(network)]
    finite = [torch.isfinite(t).all() for t in tensors if t.is_floating_point() and t.numel()]
    if not finite:
        return True
    return not _on_any_rank(~torch.stack([flag.to(task.device) for flag in finite]).all())


def require_finite_weights(task: LightningModule, source: str | None = None) -> None:
    """Raise an error if weights are not finite.

    Args:
        task: The task.
        source: Checkpoint that the weights were loaded from, for the message.

    Raises:
        NonFiniteError: On every rank.
    """
    if has_finite_weights(task):
        return
    named = ((name, t) for network in _networks(task) for name, t in network.named_parameters())
    first = next((name for name, t in named if not torch.isfinite(t).all()), "")
    where = f" of {source}" if source else " of the network"
    raise NonFiniteError(
        f"Weights{where} are NaN or infinite{f' (first: {first})' if first else ''}, so training"
        " has diverged. Use an earlier checkpoint, and train with a lower model.optimizer.lr or"
        f" with trainer.gradient_clip_val. {_DISABLE}."
    )


def warn_about_weights(path: str) -> None:
    """Warn about a checkpoint with non-finite weights."""
    rank_zero_warn(
        f"Weights are NaN or infinite: {path} is not usable, and no best checkpoint is written."
    )


def _networks(task: LightningModule) -> list[torch.nn.Module]:
    if not isinstance(task, BaseTask):
        return [task]
    networks = [task.training_network]
    return [*networks, task.evaluation_network] if task.is_averaging else networks


def _on_any_rank(flag: Tensor) -> bool:
    """Whether a flag is set on any rank; must be called on all ranks."""
    if distributed.is_available() and distributed.is_initialized():
        flag = flag.int()
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


def _describe_losses(trainer: Trainer, values: Tensor) -> str:
    """Non-finite losses of this rank, by name if the task logs several."""
    named = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("train/") and not name.endswith("_epoch")
    }
    bad = [f"{name} {value}" for name, value in named.items() if not math.isfinite(value)]
    if not bad:  # it was in an earlier accumulated batch
        bad = [f"loss {value}" for value in values.tolist() if not math.isfinite(value)][:1]
    return ", ".join(bad)


def _collect(text: str) -> str:
    """The first non-empty text of all ranks, with its rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return text
    texts: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(texts, text)
    rank = next(i for i, found in enumerate(texts) if found)
    return f"{texts[rank]} on rank {rank}" if len(texts) > 1 else texts[rank]
