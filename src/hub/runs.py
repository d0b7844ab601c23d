"""Models of training runs: the network and the preprocessing of ``config.yaml``, and a checkpoint.

As everywhere, a checkpoint is only read through ``src.serialization``. The configuration is read as
plain values, and only networks of ``src.models`` are built from it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from src.distributed import consolidate, describe_mismatch, is_sharded_checkpoint, shapes_of
from src.errors import UserError
from src.hub.parts import ModelParts, preprocessing_of, task_of
from src.models.building import build_within
from src.models.weights.merging import merged_state
from src.runs import init_arguments, instead_of_best, read_settings, trained_run
from src.serialization import read_checkpoint, refuse_not_finite

logger = logging.getLogger(__name__)


def read_run(path: Path) -> ModelParts:
    """Read the network of a run, with EMA weights if there are any.

    Args:
        path: A checkpoint, the folder of a run (its best checkpoint is used, or the last one if
            there is no best one, which is logged), or the folder of all runs of a name (the newest
            is used).

    Raises:
        UserError: If a part is missing or damaged, or the network is not one of this project.
    """
    run = trained_run(path)
    if (note := instead_of_best(path, run.checkpoint)) is not None:
        logger.warning(note)
    settings = read_settings(run.config)
    model, data = init_arguments(settings, "model"), init_arguments(settings, "data")
    content = _read(run.checkpoint)
    names = content.get("class_names") or data.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(
            f"The checkpoint {run.checkpoint} has no class names; add a list data.init_args"
            f".class_names to {run.config}. A pre-trained image tower has no classes before it is"
            " fine-tuned."
        )
    spec = without_num_classes(model.get("network"))
    weights = network_weights(content)
    size = sum(tensor.nbytes for tensor in weights.values())
    network = build_within(spec, len(names), size, f"{run.config}: model.network")
    load_weights(network, weights, run.checkpoint)
    preprocessing = preprocessing_of(data, model)
    task = task_of(network)
    if task == "segmentation" and "palette" not in preprocessing:
        preprocessing |= official_palette(str(settings["data"].get("class_path")), names)
    return ModelParts(network.eval(), spec, names, task, preprocessing)


def official_palette(class_path: str, names: Sequence[str]) -> dict[str, Any]:
    """``palette`` of a dataset with colours of its own, which its recipe does not name.

    Args:
        class_path: Data module of the recipe; others than those of ``src.data`` have no palette.
        names: Class names; those of the dataset have its colours.
    """
    from src.data import datamodules  # imported here, because Lightning takes seconds

    owner = getattr(datamodules, class_path.rpartition(".")[2], None)
    if not (isinstance(owner, type) and issubclass(owner, datamodules.ADE20KDataModule)):
        return {}
    colours = owner.official_palette()
    if colours is None or owner.official_class_names() != list(names):
        return {}
    return {"palette": [list(colour) for colour in colours]}


def load_checkpoint(network: nn.Module, path: Path, class_names: Sequence[str] = ()) -> list[str]:
    """Load the weights of a checkpoint into a network.

    Args:
        network: Loaded in place.
        path: A checkpoint file, or the folder of a sharded checkpoint.
        class_names: Classes of the data, for the error about another number of classes.

    Returns:
        Class names of the weights; empty if the checkpoint has none.

    Raises:
        UserError: If it cannot be read, or does not match the network.
    """
    content = _read(path)
    trained = list(content.get("class_names", []))
    load_weights(network, network_weights(content), path, trained, class_names)
    return trained


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    trained: Sequence[str] = (),
    now: Sequence[str] = (),
) -> None:
    """Load weights by the names of the network.

    Args:
        network: Loaded in place.
        weights: From `network_weights`.
        path: The checkpoint, for messages.
        trained: Class names of the weights, for messages.
        now: Class names of the data, for messages.

    Raises:
        UserError: If they are not finite, or do not match the network.
    """
    refuse_not_finite(weights, f"The checkpoint {path}")
    saved, expected = shapes_of(dict(weights)), shapes_of(network.state_dict())
    mismatch = describe_mismatch(saved, expected, trained, now)
    if mismatch:
        raise UserError(f"The checkpoint {path} does not match this network: {mismatch}.")
    network.load_state_dict(weights)


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the network in the content of a checkpoint.

    They are the EMA weights if the run has some; low-rank updates are merged.
    """
    prefix = "network."
    state = content["state_dict"]
    named = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return merged_state(named)


def without_num_classes(value: Any) -> Any:
    """A configuration as plain dictionaries and lists, without values that the program sets."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict):
        return {k: without_num_classes(item) for k, item in value.items() if k != "num_classes"}
    return [without_num_classes(v) for v in value] if isinstance(value, (list, tuple)) else value


def _read(path: Path) -> dict[str, Any]:
    if is_sharded_checkpoint(path):
        return consolidate(path, weights_only=True)
    return read_checkpoint(path)
