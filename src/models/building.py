"""Build the networks of this project that a file describes: hub folders and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import src.models.detection
import src.models.segmentation  # noqa: F401  the classes that a file may name
from src.errors import UserError
from src.models.image_text import ImageTextModel
from src.serialization.classes import LARGEST, make_factory


def build_network(spec: Any, num_classes: Any, source: str = "the network") -> nn.Module:
    """Build a network from ``class_path`` and ``init_args``.

    Args:
        spec: As in a recipe; parts may be nested.
        num_classes: Number of classes.
        source: Where the description is from, for messages.

    Raises:
        UserError: If a class is not one of ``src.models``, or an argument is wrong.
    """
    factory: Any = make_factory(spec, nn.Module, source)
    if issubclass(factory.func, ImageTextModel):
        raise UserError(
            f"{source}: {factory.func.__name__} has no classes. Fine-tune its image tower, with"
            " --model.weights set to the checkpoint (docs/pretraining.md)."
        )
    if type(num_classes) is not int or not 0 <= num_classes <= LARGEST:
        raise UserError(f"{source}: the number of classes is {str(num_classes)[:40]!r}.")
    try:
        network: nn.Module = factory(num_classes=num_classes)
    except UserError:
        raise
    # Arguments can be of the right kind and contradict each other in many ways.
    except Exception as error:
        name = spec.get("class_path") if isinstance(spec, Mapping) else spec
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{source}: the network {name} cannot be built: {reason}.") from error
    return network


def build_within(spec: Any, num_classes: Any, available: int, source: str) -> nn.Module:
    """Build a network, refusing one with more parameters than the weights file can hold.

    Args:
        spec: As for `build_network`.
        num_classes: Number of classes.
        available: Size of the file in bytes; a parameter takes at least one.
        source: Where the description is from, for messages.

    Raises:
        UserError: If the network has more parameters than the file can hold.
    """
    with torch.device("meta"):
        size = sum(
            tensor.numel() for tensor in build_network(spec, num_classes, source).parameters()
        )
    if size > available:
        raise UserError(
            f"{source} describes a network of {size:,} parameters, but the weights beside it"
            f" have only {available:,} bytes; give the description and the weights of one network."
        )
    return build_network(spec, num_classes, source)
