"""Clear messages for settings that Lightning's Trainer refuses or replaces."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from src.callbacks.run_folder import tell
from src.errors import UserError, counted

_RANKS_PER_CORE = 8
_NO_GPU = "PyTorch sees no GPU; use --trainer.accelerator auto."
_EXPLANATIONS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (
        r"No supported gpu backend found|CUDAAccelerator` can not run|can not run on your system"
        r"|GPU backend|machine only has: \[\]",
        lambda match: _NO_GPU,
    ),
    (
        r"machine only has: \[([\d, ]+)\]",
        lambda match: (
            f"This machine has {match[1].count(',') + 1} GPUs, with the numbers {match[1]}; choose"
            " among them with --trainer.devices."
        ),
    ),
    (
        r"strategy `fsdp\w*` requires",
        lambda match: (
            "Lightning's strategy fsdp needs a GPU. --trainer.strategy fsdp2 also runs on CPUs."
        ),
    ),
)


def explain_trainer(error: BaseException) -> str:
    """Message for an error that Lightning raised because of the settings of the Trainer."""
    text = " ".join(str(error).split())
    for pattern, explanation in _EXPLANATIONS:
        if match := re.search(pattern, text):
            return explanation(match)
    return f"The settings in `trainer` are incompatible: {text}"


def check_number_of_devices(config: Any) -> None:
    """Refuse far more processes than this computer has cores; they would block it.

    Args:
        config: ``trainer`` of the configuration.

    Raises:
        UserError: If CPUs are used, with more than `_RANKS_PER_CORE` processes on each.
    """
    is_on_cpu = config.accelerator == "cpu" or not torch.accelerator.is_available()
    cores, asked = os.cpu_count() or 1, str(config.devices)
    if is_on_cpu and asked.isdecimal() and int(asked) > _RANKS_PER_CORE * cores:
        raise UserError(
            f"trainer.devices is {asked}, the number of processes on CPUs, and this computer has"
            f" {counted(cores, 'core')}; one or two per core are useful."
        )


def warn_about_precision(asked: object, trainer: Trainer) -> None:
    """Warn if the Trainer has replaced the precision 16-mixed, which CPUs do not have.

    Args:
        asked: ``trainer.precision`` of the configuration.
        trainer: The Trainer made with it.
    """
    if str(asked) in ("16-mixed", "16") and trainer.precision == "bf16-mixed":
        rank_zero_warn("CPUs do not have the precision 16-mixed; bf16-mixed is used instead.")


def float32_on_cpu(config: Any) -> dict[str, str]:
    """Settings of the Trainer for a prediction on a CPU, where 16 bits of a recipe are for a GPU.

    Autocast on a CPU is slow, and its predictions differ from those of `Pretrained.predict`.

    Args:
        config: ``trainer`` of the configuration.

    Returns:
        The precision, which is also printed; empty if that of the configuration is used.
    """
    has_gpu = config.accelerator == "auto" and torch.accelerator.is_available()
    is_on_cpu = config.accelerator in ("cpu", "auto") and not has_gpu
    if not is_on_cpu or "16" not in str(config.precision):
        return {}
    precision = str(config.precision).replace("bf16", "16").replace("16", "bf16")  # CPUs have bf16
    tell(
        "note: predictions on a CPU are in float32; for 16 bits, as the recipe has them, add"
        f" --trainer.precision {precision}"
    )
    return {"precision": "32-true"}
