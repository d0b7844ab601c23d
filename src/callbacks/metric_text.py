"""Text of a metric for people; logged values and files contain fractions."""

from __future__ import annotations

from lightning.pytorch import LightningModule


def is_score(name: str, task: LightningModule) -> bool:
    """Whether a metric of a task is a score in [0, 1], and not a loss.

    Args:
        name: Name of the metric, also of that of the raw weights, for example ``val/top1_raw``.
        task: The task; other modules have no known scores.
    """
    return name.removesuffix("_raw") in getattr(task, "score_names", set)()


def percent(value: float) -> str:
    """A score in percent, ``-`` if it is not a number (no object that it could be measured on)."""
    return "-" if value != value else f"{value:.1%}"  # NaN differs from itself
