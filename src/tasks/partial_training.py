"""Train a part of a network: ``model.freeze`` and ``model.lora``, the same in all tasks.

What "the backbone" and "a stage" are is defined by the methods ``freeze(stages)`` and
``add_low_rank(rank)`` of the network (classifiers) or of its ``backbone``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
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


def adapt(network: nn.Module, rank: int, strategy: Any = None) -> None:
    """Train low-rank updates of the backbone instead of its weights (``model.lora``).

    Args:
        network: A network of any task; changed in place, after its weights are loaded.
        rank: Rank of the updates.
        strategy: Strategy of the trainer, if there is one.

    Raises:
        UserError: If the network cannot be adapted, or the strategy shards it.
    """
    if isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)):
        raise UserError(
            "model.lora does not support sharded networks; use --trainer.strategy ddp, or set"
            " model.lora to null."
        )
    backbone: Any = getattr(network, "backbone", network)
    add_low_rank: Callable[[int], None] | None = getattr(backbone, "add_low_rank", None)
    if add_low_rank is None:
        raise UserError(
            "model.lora needs a network or a backbone with a method add_low_rank(rank), which"
            f" {type(backbone).__name__} does not have; set model.lora to null."
        )
    add_low_rank(rank)


def warn_if_random(part: Frozen, rank: int | None) -> None:
    """Warn that frozen weights are random. Call it if no pretrained weights are loaded."""
    if part is not None or rank is not None:
        setting = f"model.lora={rank}" if part is None else f"model.freeze={part}"
        rank_zero_warn(
            f"{setting} freezes randomly initialised weights, because model.weights is not set. Set"
            " it to pretrained weights (docs/model_zoo.md)."
        )
