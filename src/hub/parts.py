"""A network with what is needed to use it: class names, task, preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from src.errors import UserError
from src.models.weights import load_official

TASKS = ("classification", "detection", "segmentation")
PREPROCESSING = (
    "image_size", "crop_pct", "interpolation", "eval_scale", "image_scale", "size_divisor",
    "mean", "std", "upright", "reduced_decoding", "tta", "tta_ratios", "palette",
    "window_size", "window_stride",
)  # fmt: skip
"""Arguments of data modules and tasks that change predictions."""
_UNUSED = {"reduced_decoding": ("train", "never"), "tta": (False,), "upright": (False,)}
"""Values that do not change predictions."""


@dataclass
class ModelParts:
    """A network with its class names, task and preprocessing.

    Attributes:
        network: The plain module, in evaluation mode.
        spec: ``class_path`` and ``init_args`` of the network, as in a recipe.
        class_names: Class names in label order.
        task: One of `TASKS`.
        preprocessing: Settings of the recipe that change predictions: arguments of the data module
            such as ``image_size``, ``mean`` and ``std``, and the sliding windows of a segmentor.
    """

    network: nn.Module
    spec: dict[str, Any]
    class_names: list[str]
    task: str
    preprocessing: dict[str, Any] = field(default_factory=dict)


def task_of(network: nn.Module) -> str:
    """The task that a network is for."""
    for task in ("detection", "segmentation"):
        if any(c.__module__.startswith(f"src.models.{task}.") for c in type(network).__mro__):
            return task
    return "classification"


def preprocessing_of(
    data: Mapping[str, Any], model: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings of a recipe that change predictions.

    Args:
        data: Arguments of the data module.
        model: Arguments of the task.
    """
    arguments = {**(model or {}), **data}
    given = {n: _plain(arguments[n]) for n in PREPROCESSING if arguments.get(n) is not None}
    if "image_scale" in given and "eval_scale" in given:  # the former is then for training only
        given["image_scale"] = given.pop("eval_scale")
    if not given.get("tta"):
        given.pop("tta_ratios", None)
    for name, values in _UNUSED.items():
        if given.get(name) in values:
            del given[name]
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return imagenet | given


def load_all(network: nn.Module, source: str | Path) -> None:
    """Load weights that must be complete.

    Raises:
        UserError: If a tensor is missing or does not match.
    """
    report = load_official(network, source)
    if report.fresh:
        raise UserError(
            f"{len(report.fresh)} tensors of the network are missing in {source}, the first is "
            f"{report.fresh[0]}."
        )


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
