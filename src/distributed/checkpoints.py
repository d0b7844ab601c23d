"""Sharded checkpoints: folders to which each rank has written its shard (PyTorch's DCP format).

The folder also contains one small file with everything except the tensors of network and optimizer.
Lightning uses different key names for FSDP1 and FSDP2; this module reads both and converts them to
the content of an ordinary checkpoint file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Size, Tensor

from src.errors import UserError
from src.file_names import similar_file
from src.serialization import (
    REST,
    Folder,
    check_checkpoint,
    check_finite,
    check_optimizer_state,
    read_rest,
)

_WEIGHTS = {"state_dict": "state_dict", "model": "state_dict"}  # names of FSDP2 and FSDP1
_RAW = "current_model_state"
_MAX_LISTED = 10


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a path is a complete checkpoint folder."""
    return path.is_dir() and (path / ".metadata").is_file() and (path / REST).is_file()


def read_shapes(folder: Folder) -> dict[str, dict[str, Size]]:
    """Shapes of the tensors of the networks in a folder, without reading them.

    Returns:
        Shapes by name for ``state_dict`` (the EMA weights, if there are any) and, with EMA,
        ``current_model_state``.
    """
    shapes: dict[str, dict[str, Size]] = {}
    for key, entry in folder.entries.items():
        part, _, name = key.partition(".")
        if entry.size is not None and part in (*_WEIGHTS, _RAW):
            shapes.setdefault(_WEIGHTS.get(part, part), {})[name] = entry.size
    return shapes


def entry_names(folder: Folder) -> dict[str, str]:
    """Key names of ``state_dict`` and ``current_model_state`` in a folder."""
    is_fsdp1 = any(key.startswith("model.") for key in folder.entries)
    return {"state_dict": "model" if is_fsdp1 else "state_dict", _RAW: _RAW}


def consolidate(path: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Merge the shards of a checkpoint, in one process and without a process group.

    Args:
        path: Folder written by FSDP1 or FSDP2 with any number of ranks.
        weights_only: Skip the optimizer states.

    Returns:
        Content of an ordinary checkpoint file: ``state_dict``, with EMA ``current_model_state``,
        ``optimizer_states`` and the rest.

    Raises:
        UserError: If the folder is not a complete checkpoint or cannot be read.
    """
    if not path.exists():
        raise UserError(f"The checkpoint {path} does not exist.{similar_file(path)}")
    if not is_sharded_checkpoint(path):
        raise UserError(
            f"{path} is not a sharded checkpoint: expected a folder with the files .metadata and"
            f" {REST}. A checkpoint file does not need to be consolidated."
        )
    content = read_rest(path)
    parts = Folder(path).read({*_WEIGHTS, _RAW} if weights_only else None)
    content |= {_WEIGHTS.get(k, k): v for k, v in parts.items() if not k.startswith("optimizer_")}
    content.pop("group_sizes", None)
    states = [value for key, value in sorted(parts.items()) if key.startswith("optimizer_")]
    for state in states:
        check_optimizer_state(state, path)
    if states:
        content["optimizer_states"] = [_numbered(state) for state in states]
    check_checkpoint(content, path)
    check_finite(content, path)
    return content


def unreadable(path: Path, error: BaseException) -> str:
    """Error message for a folder that cannot be read."""
    return (
        f"Cannot read the checkpoint {path}: a shard is missing or damaged ({last_line(error)})."
        " Use an older checkpoint, or copy it again."
    )


def last_line(error: BaseException) -> str:
    """Last line of an error message; errors of several ranks start with their tracebacks."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:160]


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Optimizer state by parameter index, as in PyTorch, instead of by name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [g | {"params": [numbers[n] for n in g["params"]]} for g in state["param_groups"]]
    return {
        "state": {numbers[name]: value for name, value in state["state"].items()},
        "param_groups": groups,
    }


def replace(part: Path, path: Path) -> None:
    """Replace a checkpoint by a new complete file or folder.

    Folders cannot be exchanged atomically: between the two renames, the old one is available as
    ``<name>.old``.
    """
    if part.is_file() and not path.is_dir():
        part.replace(path)
        return
    old = path.with_name(path.name + ".old")
    remove(old)
    if path.exists():
        path.rename(old)
    part.rename(path)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def not_saved(path: Path, reason: str) -> str:
    """Error message for a checkpoint that could not be written."""
    kept = f" The previous {path.name} is intact." if path.exists() else ""
    return (
        f"The checkpoint {path} could not be written ({reason}). Check that the disk is not full"
        f" and that the folder is writable.{kept}"
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Size]:
    """Shape of every tensor by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def describe_mismatch(
    saved: Mapping[str, Size],
    expected: Mapping[str, Size],
    trained: Sequence[str] = (),
    now: Sequence[str] = (),
) -> str:
    """Differences of two sets of weights in names and shapes; empty if there are none.

    Args:
        saved: Shape of every saved weight by name.
        expected: Shape of every weight of the network.
        trained: Class names of the saved weights, if known.
        now: Class names of the data, if known. If their number is another one and only shapes
            differ, the classes are described instead.
    """
    missing = [name for name in expected if name not in saved]
    unknown = [name for name in saved if name not in expected]
    reshaped = [name for name in expected if name in saved and expected[name] != saved[name]]
    parts = []
    if reshaped and not missing and not unknown and trained and now and len(trained) != len(now):
        return (
            f"it has {len(trained)} classes ({_listed(trained)}), but the data have {len(now)}"
            f" ({_listed(now)})"
        )
    if missing:
        parts.append(f"{len(missing)} missing weights (first: {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} unexpected weights (first: {unknown[0]})")
    if reshaped:
        name = reshaped[0]
        shapes = f"expected {tuple(expected[name])}, got {tuple(saved[name])}"
        parts.append(f"{len(reshaped)} weights with another shape (first: {name}, {shapes})")
    return ", ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
