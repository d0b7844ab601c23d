"""Comparison of the classes of weights with those of the data."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from src.errors import UserError

CHECKPOINT = "The checkpoint"


def class_names_of(trainer: Any) -> list[str]:
    """Class names of the data module, if there are any."""
    data = getattr(trainer, "datamodule", None)
    return list(getattr(data, "class_names", []))


def compare_classes(
    trained: list[str], now: list[str], source: str = CHECKPOINT, *, is_fitting: bool
) -> None:
    """Warn if the data have other classes than the weights, in the same number.

    Args:
        trained: Class names of the weights.
        now: Class names of the data.
        source: Source of the weights, for the message.
        is_fitting: Whether the weights are for training.

    Raises:
        UserError: If an evaluation or prediction would have the same names in another order.
    """
    other = [(old, new) for old, new in zip(trained, now, strict=False) if old != new]
    if not other or (len(trained) != len(now) and source != CHECKPOINT):
        return  # classification layers with another number of classes are not loaded
    difference = (
        f"{len(other)} have other names, the first is {other[0][0]!r} in the weights and"
        f" {other[0][1]!r} in the data"
    )
    if sorted(trained) == sorted(now) and not is_fitting:
        raise UserError(
            f"{source} was trained for the classes of the data in another order, so the results"
            f" would have wrong class names: {difference}. Set data.class_names to the order of the"
            f" weights: {trained}."
        )
    rank_zero_warn(f"{source} was trained for other classes than those of the data: {difference}.")
