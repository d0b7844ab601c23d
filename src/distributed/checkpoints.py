"""Checkpoints that are folders: each process has written its part (PyTorch's format, DCP).

Beside the parts stands one small file with everything that is no tensor of network or optimizer.
Lightning writes such folders for FSDP1 and FSDP2 with different names for the same things; here
they are read alike and put together into the content of an ordinary checkpoint file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Size, Tensor

from src.errors import UserError
from src.serialization import (
    REST,
    Folder,
    check_checkpoint,
    check_finite,
    check_optimizer_state,
    read_rest,
)

_WEIGHTS = {"state_dict": "state_dict", "model": "state_dict"}  # FSDP2's and FSDP1's name
_TRAINED = "current_model_state"


def is_sharded_checkpoint(path: Path) -> bool:
    """Tell whether a path is a complete checkpoint folder."""
    return path.is_dir() and (path / ".metadata").is_file() and (path / REST).is_file()


def read_shapes(folder: Folder) -> dict[str, dict[str, Size]]:
    """Shapes of the tensors of the networks in a folder, without reading them.

    Returns:
        For ``state_dict`` (with EMA: the average) and, with EMA, ``current_model_state``: shape by
        name.
    """
    shapes: dict[str, dict[str, Size]] = {}
    for key, entry in folder.entries.items():
        part, _, name = key.partition(".")
        if entry.size is not None and part in (*_WEIGHTS, _TRAINED):
            shapes.setdefault(_WEIGHTS.get(part, part), {})[name] = entry.size
    return shapes


def entry_names(folder: Folder) -> dict[str, str]:
    """Names in a folder of ``state_dict`` and ``current_model_state``."""
    is_fsdp1 = any(key.startswith("model.") for key in folder.entries)
    return {"state_dict": "model" if is_fsdp1 else "state_dict", _TRAINED: _TRAINED}


def consolidate(path: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Put the parts of a folder together, in one process and without a process group.

    Args:
        path: Folder written by FSDP1 or FSDP2, by any number of processes.
        weights_only: Leave the state of the optimizers out.

    Returns:
        Content of an ordinary checkpoint file: ``state_dict``, with EMA ``current_model_state``,
        ``optimizer_states`` and the rest.

    Raises:
        UserError: If the folder is no complete checkpoint or cannot be read.
    """
    if not is_sharded_checkpoint(path):
        raise UserError(
            f"{path} is no sharded checkpoint: a folder with the files .metadata and {REST} is"
            " expected. A checkpoint that is a file needs no consolidation."
        )
    content = read_rest(path)
    parts = Folder(path).read({*_WEIGHTS, _TRAINED} if weights_only else None)
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
    """Sentence about a folder that cannot be read."""
    return (
        f"The checkpoint {path} cannot be read, a part is missing or damaged ({last_line(error)})."
        " Take an older checkpoint, or copy it again."
    )


def last_line(error: BaseException) -> str:
    """What an error says in the end; that of several processes has their tracebacks before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:160]


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Optimizer state by number of the parameter, as PyTorch writes it, instead of by name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [g | {"params": [numbers[n] for n in g["params"]]} for g in state["param_groups"]]
    return {
        "state": {numbers[name]: value for name, value in state["state"].items()},
        "param_groups": groups,
    }


def replace(part: Path, path: Path) -> None:
    """Put a complete file or folder in the place of another, which stays whole until then.

    There is no single step that exchanges two folders: between the two renamings the old one is
    found under ``<name>.old``.
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
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def not_saved(path: Path, reason: str) -> str:
    """Sentence about a checkpoint that could not be written."""
    kept = f" The previous {path.name} is intact." if path.exists() else ""
    return (
        f"The checkpoint {path} could not be written ({reason}); is the disk full, or not"
        f" writable?{kept}"
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Size]:
    """Shape of every tensor by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def describe_mismatch(saved: Mapping[str, Size], wanted: Mapping[str, Size]) -> str:
    """Say how two sets of weights differ in names and shapes; empty if they do not."""
    missing = [name for name in wanted if name not in saved]
    unknown = [name for name in saved if name not in wanted]
    reshaped = [name for name in wanted if name in saved and wanted[name] != saved[name]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} weights are missing (first: {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} have no place (first: {unknown[0]})")
    if reshaped:
        name = reshaped[0]
        shapes = f"{tuple(saved[name])} in the file, {tuple(wanted[name])} here"
        parts.append(f"{len(reshaped)} have another shape (first: {name}, {shapes})")
    return ", ".join(parts)
