"""Comparison of the classes of weights with those of the data."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from src.errors import UserError

CHECKPOINT = "The checkpoint"

_SHOWN = 10  # class names in messages


def class_names_of(trainer: Any) -> list[str]:
    """Class names of the data module, if there are any."""
    data = getattr(trainer, "datamodule", None)
    return list(getattr(data, "class_names", []))


def compare_classes(
    trained: list[str], now: list[str], source: str = CHECKPOINT, *, is_fitting: bool
) -> None:
    """Compare the classes of weights with those of the data, if there are equally many.

    Other names are a warning, because a class may only have been renamed. Weights of other classes
    may be fine-tuned.

    Args:
        trained: Class names of the weights.
        now: Class names of the data.
        source: Source of the weights, for the message.
        is_fitting: Whether the weights are for training.

    Raises:
        UserError: If a run is resumed, evaluated or predicts, and a class is at another place.
    """
    other = [(old, new) for old, new in zip(trained, now, strict=False) if old != new]
    if not other or (len(trained) != len(now) and source != CHECKPOINT):
        return  # classification layers with another number of classes are not loaded
    moved = [name for _, name in other if trained.count(name) == now.count(name) == 1]
    is_tuned = is_fitting and source != CHECKPOINT
    if moved and not is_tuned and len(trained) == len(now):
        raise UserError(
            f"{source} was trained for the classes of the data in another order, so classes would"
            f" have wrong names: {moved[0]!r} is number {trained.index(moved[0])} in the weights"
            f" and {now.index(moved[0])} in the data. The weights know {_shown(trained)} in this"
            " order. Train again with the classes of the data, or, to predict or export only, set"
            " data.class_names to the names in the order of the weights."
        )
    advice = (
        ""
        if is_fitting
        else f" Results have the names of the data; the weights know {_shown(trained)} in this"
        " order. Train again if a class is not only renamed."
    )
    rank_zero_warn(
        f"{source} was trained for other classes than those of the data: {len(other)} have other"
        f" names, the first is {other[0][0]!r} in the weights and {other[0][1]!r} in the"
        f" data.{advice}"
    )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
