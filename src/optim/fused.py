"""Fused optimizers on GPUs: one kernel for all parameters of a group."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def use_fused(optimizer: Optimizer) -> Optimizer:
    """Use the fused implementation, where the optimizer has one and its settings choose none.

    The result is that of the constructor's ``fused=True``.

    Args:
        optimizer: Changed in place. ``fused`` or ``foreach`` that are set stay as they are.
    """
    for group in optimizer.param_groups:
        is_free = group.get("fused", False) is None and group.get("foreach") is None
        if is_free and not group.get("differentiable"):
            group["fused"] = True
    optimizer.register_load_state_dict_post_hook(_steps_to_device)
    return optimizer


def unscale_before_step(optimizer: Optimizer) -> None:
    """Let gradients of mixed precision be clipped before the step of a fused optimizer.

    ``fused=True`` announces that the step unscales float16 gradients itself, and Lightning then
    refuses to clip. Without the announcement they are unscaled before, as for other optimizers.

    Args:
        optimizer: Changed in place.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def _steps_to_device(optimizer: Optimizer) -> None:
    """Move step counts of a checkpoint, which are on the CPU, to where fused kernels read them."""
    for parameter, state in optimizer.state.items():
        values: dict[str, Any] = state
        if isinstance(step := values.get("step"), Tensor):
            values["step"] = step.to(parameter.device)
