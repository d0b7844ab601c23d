"""Freeze a part of a network (``model.freeze``), with the same meaning in all tasks.

What "the backbone" and "a stage" are is defined by the network: a module with a method
``freeze(stages)``, which is the network itself (classifiers) or its ``backbone``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from src.errors import UserError

Frozen = Literal["backbone"] | int | None
"""``backbone``, the number of stages that are frozen with the stem, or nothing."""


def freeze(network: nn.Module, part: Frozen) -> None:
    """Freeze a part of a network: no gradients, and evaluation mode even in training.

    Args:
        network: A network of any task; changed in place.
        part: What is frozen; ``None`` leaves the network unchanged.

    Raises:
        UserError: If the network cannot be frozen, or does not have so many stages.
    """
    if part is None:
        return
    backbone: Any = getattr(network, "backbone", network)
    freeze_stages: Callable[[int | None], None] | None = getattr(backbone, "freeze", None)
    if freeze_stages is None:
        raise UserError(
            f"model.freeze needs a network or a backbone with a method freeze(stages), which"
            f" {type(backbone).__name__} does not have; set model.freeze to null."
        )
    freeze_stages(None if part == "backbone" else part)


def warn_if_random(part: Frozen) -> None:
    """Warn that frozen weights are random. Call it if no pretrained weights are loaded."""
    if part is not None:
        rank_zero_warn(
            f"model.freeze={part} freezes randomly initialised weights, because model.weights is"
            " not set. Set it to pretrained weights (docs/model_zoo.md)."
        )
