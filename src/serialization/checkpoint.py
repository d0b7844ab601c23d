"""Validation of training checkpoints.

Lightning and the optimizers do not validate the entries of a checkpoint, so the types of all
entries that they use are checked here first. ``src.tasks`` checks whether a checkpoint matches the
run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.errors import UserError
from src.file_names import quoted
from src.serialization.files import read_plain
from src.serialization.limits import NAME_LENGTH, shown
from src.serialization.tensors import first_not_finite, odd_kind

REST = "meta.pt"
"""File of a checkpoint folder for everything that is not sharded, as named by Lightning."""
VERSION = "pytorch-lightning_version"
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
_LARGEST_COUNT = 2**53
_OLDEST = (2, 1)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file.

    Weights are memory-mapped.

    Raises:
        UserError: If it cannot be read, or is not a checkpoint of a training run.
    """
    content = read_plain(path)
    check_checkpoint(content, path)
    checked: dict[str, Any] = content
    return checked


def read_rest(folder: Path) -> dict[str, Any]:
    """Read the entries of a checkpoint folder that are not sharded.

    These are progress, schedules, callbacks and settings.

    Raises:
        UserError: As in `read_checkpoint`.
    """
    content = read_plain(folder / REST)
    check_checkpoint(content, folder / REST, has_weights=False)
    checked: dict[str, Any] = content
    return checked


def read_entries(path: Path) -> dict[str, Any]:
    """Read the entries of a checkpoint file or folder, of a folder without the sharded ones.

    Raises:
        UserError: As in `read_checkpoint`.
    """
    return read_rest(path) if path.is_dir() else read_checkpoint(path)


def check_checkpoint(content: Any, path: Path, *, has_weights: bool = True) -> None:
    """Check that a content is a training checkpoint with entries of the expected types.

    Args:
        content: Content of the file.
        path: File, for messages.
        has_weights: Whether it must contain weights, which a folder has in other files.

    Raises:
        UserError: If an entry is invalid.
    """
    if not isinstance(content, dict) or VERSION not in content:
        raise UserError(
            f"{path} is not a checkpoint of a training run. To use pretrained weights, set"
            f" --model.weights {quoted(path)} instead of --ckpt_path."
        )
    for key, check in _CHECKS.items():
        if key in content:
            _require(check(content[key]), path, key, content[key])
    if not all(isinstance(key, str) for key in content):
        raise UserError(_invalid(path, "its keys", "must be strings"))
    if has_weights:
        _check_weights(content, path)


def check_finite(content: Mapping[str, Any], path: Path) -> None:
    """Check that weights and optimizer states have no NaN or infinite values.

    Raises:
        UserError: If they have; names the first tensor.
    """
    for part in ("state_dict", "current_model_state"):
        refuse_not_finite(content.get(part) or {}, f"The checkpoint {path}")
    for state in content.get("optimizer_states", ()):
        refuse_not_finite(flat_state(state), f"The optimizer state of the checkpoint {path}")


def refuse_not_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Check that tensors have no NaN or infinite values.

    Raises:
        UserError: If they have; names the first tensor.
    """
    pairs = ((name, value) for name, value in tensors.items() if isinstance(value, Tensor))
    name = first_not_finite(pairs)
    if name is not None:
        raise UserError(
            f"{source} has NaN or infinite values, first in {name}: training has diverged, or the"
            " file is damaged. Use an older checkpoint."
        )


def flat_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of an optimizer state, named ``<parameter>.<name>``."""
    return {
        f"{number}.{name}": value
        for number, values in state["state"].items()
        for name, value in values.items()
    }


def check_optimizer_state(state: Any, path: Path) -> None:
    """Check the types of the entries of an optimizer state.

    Raises:
        UserError: If an entry is invalid.
    """
    _require(_is_optimizer_state(state), path, "the optimizer state", state)


def check_optimizer_groups(state: Any, path: Path) -> None:
    """Like `check_optimizer_state`, for a state with sharded tensors.

    Raises:
        UserError: If the parameter groups are invalid.
    """
    groups = state.get("param_groups") if isinstance(state, dict) else None
    check_optimizer_state({"state": {}, "param_groups": groups}, path)


def _check_weights(content: dict[str, Any], path: Path) -> None:
    for part in ("state_dict", "current_model_state"):
        if part not in content:
            continue
        for name, value in content[part].items():
            _require(_is_name(name), path, f"a name in {part}", name)
            if not isinstance(value, Tensor):
                raise UserError(
                    _invalid(path, f"{part}.{name}", f"is {_kind(value)} instead of a tensor")
                )
            kind = odd_kind(value)
            if kind is not None:
                raise UserError(_invalid(path, f"{part}.{name}", f"is a tensor that is {kind}"))
    if "state_dict" not in content:
        raise UserError(_invalid(path, "state_dict", "is missing"))
    average, trained = content["state_dict"], content.get("current_model_state")
    if trained is not None and _shapes(average) != _shapes(trained):
        raise UserError(_invalid(path, "current_model_state", "has other weights than state_dict"))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _require(is_valid: bool, path: Path, key: str, value: Any) -> None:
    if not is_valid:
        raise UserError(_invalid(path, key, f"has an invalid value, {_kind(value)}"))


def _invalid(path: Path, key: str, problem: str) -> str:
    return (
        f"The checkpoint {path} is invalid: {shown(key)} {problem}. Use an older checkpoint, or"
        " copy it again."
    )


def _kind(value: Any) -> str:
    if isinstance(value, (str, int, float, bool, type(None))):
        return shown(repr(value), 40)
    return f"a {type(value).__name__}"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= NAME_LENGTH and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_COUNT


def _is_version(value: Any) -> bool:
    found = re.fullmatch(
        r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})(\.?(post|dev|rc|a|b)\d{1,8})?", str(value)
    )
    if not isinstance(value, str) or found is None:
        return False
    return (int(found[1]), int(found[2])) >= _OLDEST


def _is_progress(value: Any) -> bool:
    """Whether a value consists of nested dictionaries of counts and flags, as in loop states."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_progress(v) for k, v in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return _is_count(value)
    return _is_plain(value)


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple, set)):
        return depth < 20 and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        keys = all(isinstance(key, (str, int, float, bool)) for key in value)
        return depth < 20 and keys and all(_is_plain(v, depth + 1) for v in value.values())
    return isinstance(value, (str, int, float, bool, type(None), torch.dtype, bytes))


def _is_loops(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(_LOOPS)
        and all(isinstance(value[loop], dict) and _is_progress(value[loop]) for loop in _LOOPS)
    )


def _is_callbacks(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(_is_name(key) and _is_callback(state) for key, state in value.items())


def _is_callback(state: Any) -> bool:
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        return False
    models = state.get("best_k_models", {})
    paths = [state.get(f"{name}_model_path", "") for name in ("best", "last", "kth_best")]
    paths.append(state.get("dirpath") or "")
    if not isinstance(models, dict) or not all(map(_is_path, [*models, *paths])):
        return False
    scores = [state.get(n) for n in ("best_model_score", "kth_value", "current_score")]
    return all(score is None or _is_number(score) for score in [*scores, *models.values()])


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and "\0" not in value


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and odd_kind(value) is None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_optimizer_states(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_optimizer_state, value))


def _is_optimizer_state(state: Any) -> bool:
    """Whether a value has states and parameter groups, with parameters given by index or name."""
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        return False
    values, groups = state["state"], state["param_groups"]
    if not isinstance(values, dict) or not isinstance(groups, list) or not groups:
        return False
    if not all(map(_is_group, groups)):
        return False
    members = [member for group in groups for member in group["params"]]
    known = set(members)
    if len(known) != len(members) or not set(values) <= known:
        return False
    return all(isinstance(entry, dict) and _is_moments(entry) for entry in values.values())


def _is_group(group: Any) -> bool:
    if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
        return False
    members = group.get("params")
    if not isinstance(members, list) or not all(_is_count(m) or _is_name(m) for m in members):
        return False
    settings = [value for key, value in group.items() if key != "params"]
    numbers = [group[k] for k in ("lr", "initial_lr", "weight_decay", "eps") if k in group]
    plain = all(_is_plain(value) or _is_number(value) for value in settings)
    return plain and all(_is_number(n) and math.isfinite(float(n)) for n in numbers)


def _is_moments(entry: dict[Any, Any]) -> bool:
    return all(
        _is_name(name)
        and (
            isinstance(value, (int, float, type(None)))
            or (isinstance(value, Tensor) and odd_kind(value) is None)
        )
        for name, value in entry.items()
    )


def _is_schedulers(value: Any) -> bool:
    """Whether a value is a list of scheduler states, whose entries become attributes."""
    if not isinstance(value, list):
        return False
    return all(
        isinstance(state, dict)
        and all(isinstance(k, str) and k.isidentifier() and not k.startswith("__") for k in state)
        and "optimizer" not in state
        and all(_is_plain(v) or _is_number(v) for v in state.values())
        for state in value
    )


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_name, value)) and _is_plain(value)


def _is_texts(value: Any) -> bool:
    """Whether a value is a list of class names."""
    return isinstance(value, list) and all(
        isinstance(text, str) and len(text) <= NAME_LENGTH for text in value
    )


def _is_description(value: Any) -> bool:
    """Whether a value describes an optimizer and a schedule, as ``src.tasks.resume`` writes it."""
    if not isinstance(value, dict) or not set(value) <= set(_DESCRIPTION):
        return False
    return all(_DESCRIPTION[key](entry) for key, entry in value.items())


def _is_rates(value: Any) -> bool:
    return isinstance(value, list) and all(
        _is_number(rate) and math.isfinite(float(rate)) for rate in value
    )


def _is_optional_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= NAME_LENGTH)


def _is_groups_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(group, list) and all(map(_is_optional_text, group)) for group in value
    )


_DESCRIPTION: dict[str, Callable[[Any], bool]] = {
    "optimizer": _is_optional_text,
    "lr": _is_rates,
    "current_lr": _is_rates,
    "parameters": _is_groups_of_names,
    "lr_scheduler": _is_optional_text,
    "monitor": _is_optional_text,
    "mode": _is_optional_text,
    "monitored": lambda value: value is None or _is_number(value),
}
"""Entries of the description of an optimizer."""


def _is_average(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_number(value.get("n_averaged")):
        return False
    count = value["n_averaged"]
    return not isinstance(count, Tensor) or not count.is_floating_point()


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(sizes, list) and all(map(_is_count, sizes)) for sizes in value
    )


def _is_scaler(value: Any) -> bool:
    """Whether a value is the state of a gradient scaler."""
    return isinstance(value, dict) and all(
        isinstance(key, str) and _is_number(number) and math.isfinite(float(number))
        for key, number in value.items()
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    VERSION: _is_version,
    "legacy_" + VERSION: _is_version,
    "epoch": _is_count,
    "global_step": _is_count,
    "state_dict": lambda value: isinstance(value, dict),
    "current_model_state": lambda value: isinstance(value, dict),
    "loops": _is_loops,
    "callbacks": _is_callbacks,
    "optimizer_states": _is_optimizer_states,
    "lr_schedulers": _is_schedulers,
    "hyper_parameters": _is_settings,
    "hparams_name": lambda value: value in ("kwargs", "args") or _is_name(value),
    "datamodule_hyper_parameters": _is_settings,
    "averaging_state": _is_average,
    "class_names": _is_texts,
    "optimization": _is_description,
    "group_sizes": _is_sizes,
    "MixedPrecision": _is_scaler,
    "native_amp_scaling_state": _is_scaler,
}
"""Check of each entry."""
