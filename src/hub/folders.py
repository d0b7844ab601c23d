"""Read and write a model in a folder: ``config.json``, ``model.safetensors`` and ``README.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src import files
from src.errors import UserError
from src.hub.card import model_card
from src.hub.parts import PREPROCESSING, TASKS, ModelParts, load_all, task_of
from src.models.building import build_within
from src.models.weights import to_official
from src.serialization import NAME_LENGTH, read_json, shown_repr

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
_MAX_CLASSES = 256  # of a palette


def read_folder(folder: Path) -> ModelParts:
    """Read a folder that `write_folder` has written.

    Raises:
        UserError: If it is incomplete or damaged, or describes a network of another package.
    """
    path, weights = folder / CONFIG_FILE, folder / WEIGHT_FILE
    if not path.is_file() or not weights.is_file():
        raise UserError(f"{folder} is not a saved model: expected {CONFIG_FILE} and {WEIGHT_FILE}.")
    content = read_json(path, "description")
    names, task = content.get("class_names"), content.get("task")
    preprocessing = content.get("preprocessing", content.get("pictures"))  # former name
    if not isinstance(names, list) or not names or not all(map(_is_class_name, names)):
        raise UserError(
            f"{path} was not written by this project: class_names must be strings of at most"
            f" {NAME_LENGTH} characters without control characters."
        )
    if task not in TASKS:
        raise UserError(
            f"{path}: expected task to be one of {', '.join(TASKS)}, got {shown_repr(task)}."
        )
    preprocessing = {} if preprocessing is None else _checked_preprocessing(preprocessing, path)
    spec: Any = content.get("network")
    network = build_within(spec, len(names), weights.stat().st_size, f"{path}: network")
    if task_of(network) != task:
        raise UserError(f"{path}: {type(network).__name__} is not a network for {task}.")
    load_all(network, weights)
    return ModelParts(network.eval(), spec, names, task, preprocessing)


def write_folder(model: ModelParts, folder: str | Path) -> Path:
    """Write a model; existing files with the same names are replaced.

    Returns:
        The folder.
    """
    folder = Path(folder)
    tensors = {name: t.cpu().contiguous().clone() for name, t in to_official(model.network).items()}
    content = {
        "task": model.task,
        "network": model.spec,
        "class_names": model.class_names,
        "preprocessing": model.preprocessing,
    }
    with files.whole_folder(folder, last=[CONFIG_FILE]) as part:
        files.write_tensors(part / WEIGHT_FILE, tensors, {"format": "pt"})
        files.write_json(part / CONFIG_FILE, content, ensure_ascii=False, indent=1)
        files.write_text(part / "README.md", model_card(model))
    return folder


def _is_class_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and len(name) <= NAME_LENGTH


def _checked_preprocessing(given: Any, path: Path) -> dict[str, Any]:
    """Preprocessing settings, validated: strings, numbers, and short lists of these."""
    plain = isinstance(given, dict) and set(given) <= set(PREPROCESSING)
    for value in given.values() if plain else ():
        parts = value if isinstance(value, list) else [value]
        plain &= len(parts) <= _MAX_CLASSES and all(map(_is_plain, parts))
    if not plain:
        raise UserError(f"{path}: preprocessing has unknown or invalid settings.")
    checked: dict[str, Any] = given
    return checked


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or a text, or a colour of a palette."""
    parts = value if isinstance(value, list) and len(value) == 3 else [value]
    return all(isinstance(part, (int, float, str, bool)) for part in parts)
