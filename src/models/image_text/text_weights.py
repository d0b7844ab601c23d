"""Load the weights of a text tower from a file of open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from src.distributed import load_whole
from src.errors import UserError
from src.models.image_text.text_tower import TextTower
from src.models.weights import files
from src.models.weights.match import shorten
from src.serialization import refuse_not_finite

PREFIXES = ("text.", "module.text.", "module.", "")
"""What precedes the names of a text tower in files of open_clip."""
_ANCHOR = "token_embedding.weight"


def load_text_weights(tower: TextTower, source: str | Path) -> None:
    """Load a text tower from a file of a whole model of open_clip, or of its text tower.

    Args:
        tower: Loaded in place.
        source: ``open_clip_pytorch_model.bin``, ``open_clip_model.safetensors`` or a checkpoint of
            open_clip.

    Raises:
        UserError: If the file cannot be found or read, or has another text tower.
    """
    path = files.resolve(source)
    tensors = files.tensors_of(files.read(path), str(path))
    targets: dict[str, Any] = tower.encoder.state_dict()
    prefix = next((p for p in PREFIXES if p + _ANCHOR in tensors), None)
    if prefix is None:
        raise UserError(
            f"{path} holds no text tower of open_clip: it has no {_ANCHOR}; its first entries are"
            f" {shorten(tensors)}."
        )
    found: dict[str, Tensor] = {
        name: tensors[prefix + name] for name in targets if prefix + name in tensors
    }
    missing = [name for name in targets if name not in found]
    wrong = [name for name, tensor in found.items() if tensor.shape != targets[name].shape]
    layers = [f"{prefix}transformer.resblocks.{i}." for i in range(len(tower.layers), 200)]
    surplus = [name for name in tensors if name.startswith(tuple(layers))]
    if missing or wrong or surplus:
        raise UserError(
            f"The text tower of {path} does not fit: missing {shorten(missing)}; of another shape"
            f" {shorten(wrong)}; further layers {shorten(surplus)}. Set model of"
            " OpenCLIPTextTower to the name of the model that the file is from."
        )
    refuse_not_finite(found, str(path))
    load_whole(targets, found)
