"""Save and load models with their class names, in a folder or on the Hugging Face hub.

A folder contains ``config.json`` (network, class names, preprocessing), the weights in
``model.safetensors`` with the official parameter names, and ``README.md``. It can be read by
`Pretrained.from_pretrained`, and its weights also by ``--model.weights FOLDER`` and the official
code. Names of published files (``"internimage_t_1k_224"``) can be used instead of a folder.

Nothing in a folder is executed: only networks of ``src.models`` are built.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import Tensor, nn

from src import files
from src.config_files import CONFIGS
from src.errors import UserError
from src.models import DCNv4
from src.models.building import build_network, build_within
from src.models.weights import load_official, to_official
from src.models.weights.files import HUB_FILES, is_hub_reachable
from src.serialization import NAME_LENGTH, read_json, shown

if TYPE_CHECKING:
    from src.data.datamodules import BaseDataModule

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
_FORMAT = "internimage-lightning"
TASKS = ("classification", "detection", "segmentation")
_RECIPE_SUFFIXES = {
    "dino_4scale_internimage_t_1x_coco": "_layer_wise_lr",
    "dino_4scale_internimage_h_objects365_coco": "_ss",
    "dino_4scale_internimage_g_objects365_coco": "_ss",
    "dino_4scale_cbinternimage_h_objects365_coco": "_ss",
    "mask2former_internimage_h_896_80k_cocostuff2ade20k": "_ss",  # _ms differs in evaluation only
}
"""Suffix of the recipe name after the name of the published file."""

_PREPROCESSING = (
    "image_size", "crop_pct", "interpolation", "eval_scale", "image_scale", "size_divisor",
    "mean", "std", "upright",
)  # fmt: skip

# Weights before the training on COCO, which already have the 80 COCO classes.
_SAME_NETWORK = {
    "dino_4scale_cbinternimage_h_objects365_80classes": (
        "dino_4scale_cbinternimage_h_objects365_coco"
    ),
}


@dataclass
class Pretrained:
    """A network with its class names, task and preprocessing.

    Attributes:
        network: The plain module, in evaluation mode.
        spec: ``class_path`` and ``init_args`` of the network, as in a recipe.
        class_names: Class names in label order.
        task: One of `TASKS`.
        preprocessing: Arguments of the data module such as ``image_size``, ``mean`` and ``std``.
    """

    network: nn.Module
    spec: dict[str, Any]
    class_names: list[str]
    task: str
    preprocessing: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Pretrained:
        """Read a folder, a hub repository in the same format, or a published file.

        Args:
            source: A folder; ``"user/repository"``; a name of ``docs/model_zoo.md`` such as
                ``"upernet_internimage_t_512_160k_ade20k"``; or a file of such a name (``.pth``).
                An existing folder or file takes precedence over a name.

        Raises:
            UserError: If the model does not exist or is damaged, or the hub cannot be reached.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            return _read(folder)
        name = folder.name.removesuffix(".pth")
        if name in HUB_FILES and (folder.is_file() or folder.name == str(source)):
            return _published(name, folder if folder.is_file() else None)
        if str(source).count("/") == 1 and not folder.exists():
            return _read(_download(str(source)))
        raise UserError(
            f"There is no model '{source}'. Give a folder with {CONFIG_FILE}, a hub repository "
            f"(user/name), or one of {', '.join(HUB_FILES)}."
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder; existing files with the same names are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        tensors = {
            name: t.cpu().contiguous().clone() for name, t in to_official(self.network).items()
        }
        content = {
            "format": _FORMAT,
            "task": self.task,
            "network": self.spec,
            "class_names": self.class_names,
            "preprocessing": self.preprocessing,
        }
        with files.whole_folder(folder, last=[CONFIG_FILE]) as part:
            _save_tensors(tensors, part / WEIGHT_FILE)
            files.write_json(part / CONFIG_FILE, content, ensure_ascii=False, indent=1)
            files.write_text(part / "README.md", model_card(self))
        return folder

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to the Hugging Face hub as the user logged in with ``hf auth login``.

        Args:
            repository: ``"user/name"``; created if it does not exist.
            private: Whether a new repository is private.

        Returns:
            URL of the repository.

        Raises:
            UserError: If the upload fails.
        """
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            url = str(api.create_repo(repository, private=private, exist_ok=True))
            with tempfile.TemporaryDirectory() as folder:
                self.save_pretrained(folder)
                api.upload_folder(repo_id=repository, folder_path=folder)
        except UserError:
            raise
        except Exception as error:  # the hub client raises several unrelated classes
            raise UserError(
                f"Cannot upload the model to {repository} ({type(error).__name__}: "
                f"{str(error).splitlines()[0][:160]}). Log in with `hf auth login` and check the "
                "name."
            ) from error
        return url


def task_of(network: nn.Module) -> str:
    """The task that a network is for."""
    for task in ("detection", "segmentation"):
        if any(c.__module__.startswith(f"src.models.{task}.") for c in type(network).__mro__):
            return task
    return "classification"


def _read(folder: Path) -> Pretrained:
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
            f"{path}: expected task to be one of {', '.join(TASKS)}, got {shown(repr(task))}."
        )
    preprocessing = {} if preprocessing is None else _checked_preprocessing(preprocessing, path)
    spec: Any = content.get("network")
    network = build_within(spec, len(names), weights.stat().st_size, f"{path}: network")
    if task_of(network) != task:
        raise UserError(f"{path}: {type(network).__name__} is not a network for {task}.")
    _load_all(network, weights)
    return Pretrained(network.eval(), spec, names, task, preprocessing)


def _is_class_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and len(name) <= NAME_LENGTH


def _checked_preprocessing(given: Any, path: Path) -> dict[str, Any]:
    """Preprocessing settings, validated: strings, numbers, and lists of at most four of these."""
    plain = isinstance(given, dict) and set(given) <= set(_PREPROCESSING)
    for value in given.values() if plain else ():
        parts = value if isinstance(value, list) else [value]
        plain &= len(parts) <= 4 and all(isinstance(p, (int, float, str, bool)) for p in parts)
    if not plain:
        raise UserError(f"{path}: preprocessing has unknown or invalid settings.")
    checked: dict[str, Any] = given
    return checked


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # contains the error of the system as text
        code = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1] or code[2])
        raise OSError(number, os.strerror(number)) from error


def _load_all(network: nn.Module, source: str | Path) -> None:
    report = load_official(network, source)
    if report.fresh:
        raise UserError(
            f"{len(report.fresh)} tensors of the network are missing in {source}, the first is "
            f"{report.fresh[0]}."
        )


def _published(name: str, file: Path | None = None) -> Pretrained:
    recipe = _recipe_of(name)
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    spec, data = settings["model"]["init_args"]["network"], settings["data"]
    names = _data_module(data["class_path"]).official_class_names()
    network = build_network(spec, len(names))
    _load_all(network, name if file is None else file)
    preprocessing = preprocessing_of(data["init_args"])
    return Pretrained(network.eval(), spec, names, recipe.parent.name, preprocessing)


def _data_module(name: str) -> type[BaseDataModule]:
    from src import data  # imported here, because data modules import Lightning, which is slow

    found: type[BaseDataModule] = getattr(data, name)
    return found


def _recipe_of(name: str) -> Path:
    if "22k_" in name:
        raise UserError(
            f"The published file {name} was pretrained on 21841 classes, for which there is no "
            f"recipe and no class names. Fine-tune it with --model.weights {name}, or load it into "
            "your own network with src.models.weights.load_official."
        )
    stem = _SAME_NETWORK.get(name, name)
    stem += _RECIPE_SUFFIXES.get(stem, "")
    recipes = [CONFIGS / task / f"{stem}.yaml" for task in TASKS]
    found = next((path for path in recipes if path.is_file()), None)
    if found is None:
        raise UserError(
            f"The recipe {stem} is not in {CONFIGS}, so the network of the published file {name} "
            "is unknown. Build the network and use src.models.weights.load_official."
        )
    return found


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        offline = not is_hub_reachable()
        files = [CONFIG_FILE, WEIGHT_FILE]
        return Path(snapshot_download(repository, allow_patterns=files, local_files_only=offline))
    except Exception as error:  # the hub client raises several unrelated classes
        raise UserError(
            f"The model {repository} is not cached and could not be downloaded from "
            f"https://huggingface.co/{repository} ({type(error).__name__})."
        ) from error


def preprocessing_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a data module that define the preprocessing of images for evaluation."""
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    given = {n: _plain(arguments[n]) for n in _PREPROCESSING if arguments.get(n) is not None}
    return imagenet | given


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def model_card(model: Pretrained) -> str:
    """Model card, the content of ``README.md``."""
    kinds = {
        "classification": ("image-classification", "logits `(N, classes)`"),
        "detection": ("object-detection", "a list of detections: boxes, scores, labels, masks"),
        "segmentation": ("image-segmentation", "`out`: logits `(N, classes, H, W)`"),
    }
    tag, output = kinds[model.task]
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    names = ", ".join(model.class_names[:20]) + (", ..." if len(model.class_names) > 20 else "")
    settings = "\n".join(f"- {name}: {value}" for name, value in model.preprocessing.items())
    has_dcnv4 = any(isinstance(module, DCNv4) for module in model.network.modules())
    operator = "dcnv4" if has_dcnv4 else "dcnv3"
    call = "image, sizes=[image.shape[-2:]]" if model.task == "detection" else "image"
    return f"""---
pipeline_tag: {tag}
tags:
- internimage
- {operator}
---

# {type(model.network).__name__}, {len(model.class_names)} classes

InternImage ({millions:.1f} M parameters) for {model.task}. Classes: {names}.

## Input

RGB images with values in [0, 1], normalised with mean and standard deviation, float32,
`(N, 3, H, W)`.

{settings}

## Usage

```python
import torch
from src.hub import Pretrained

model = Pretrained.from_pretrained("THIS FOLDER")
image = torch.zeros(1, 3, 256, 256)  # a preprocessed image
with torch.no_grad():
    output = model.network({call})
```

The output is {output}. Parameters have the names of the official InternImage code.

## To be completed by the author

Training data and their license, evaluation results, intended use and limitations.
"""
