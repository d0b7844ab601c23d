"""Tiny recipes of the three tasks with synthetic data, for tests of the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("classification", "detection", "segmentation")
BACKBONE = {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}
_BACKBONE = {"class_path": "InternImageBackbone", "init_args": BACKBONE}
_NETWORKS: dict[str, dict[str, Any]] = {
    "classification": BACKBONE,
    "detection": {"channels": 16, "fc_channels": 32, "backbone": _BACKBONE},
    "segmentation": {
        "backbone": _BACKBONE,
        "decode_head": {"class_path": "UPerHead", "init_args": {"channels": 16}},
    },
}
_DATA: dict[str, dict[str, Any]] = {
    "classification": {"image_size": 32},
    "detection": {"train_scales": [[64, 48]], "eval_scale": [64, 48]},
    "segmentation": {"image_scale": [256, 64], "crop_size": [64, 64]},
}


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Save noise of width and height ``size``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def save_mask(
    path: Path, values: tuple[int, ...] = (0, 1), size: tuple[int, int] = (64, 48)
) -> Path:
    """Save a label map with vertical stripes of the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, np.uint8)[np.arange(size[0]) * len(values) // size[0]]
    Image.fromarray(np.tile(stripes, (size[1], 1))).save(path)
    return path


def write_data(root: Path, task: str, count: int = 4) -> dict[str, Any]:
    """Write ``count`` images of two classes, used for training and validation.

    Returns:
        Arguments of the data module.
    """
    if task == "classification":
        for number in range(count):
            for split in ("train", "val"):
                save_image(root / split / "ab"[number % 2] / f"{number}.png", number)
        return {"root": str(root)}
    for number in range(count):
        save_image(root / "images" / f"{number}.png", number)
    folders = {"root": str(root), "train_images": "images", "val_images": "images"}
    if task == "segmentation":
        for number in range(count):
            save_mask(root / "masks" / f"{number}.png")
        labels = {"train_labels": "masks", "val_labels": "masks"}
        return folders | labels | {"class_names": ["a", "b"], "reduce_zero_label": False}
    write_annotations(root / "labels.json", [(64, 48)] * count)
    return folders | {"train_annotations": "labels.json", "val_annotations": "labels.json"}


def write_annotations(path: Path, sizes: list[tuple[int, int]], **changes: Any) -> Path:
    """COCO json of images ``0.png``, ``1.png``, ... with one square each, plus ``changes``."""
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes)
    ]
    squares = [
        {
            "id": number + 1,
            "image_id": number,
            "category_id": 1 + number % 2,
            "bbox": [2, 2, 16, 16],
            "area": 256,
            "iscrowd": 0,
            "segmentation": [[2, 2, 18, 2, 18, 18, 2, 18]],
        }
        for number in range(len(sizes))
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": squares, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def write_recipe(folder: Path, task: str, data: dict[str, Any], name: str | None = None) -> Path:
    """Write a recipe with the given arguments of the data module and runs in ``folder/runs``."""
    recipe = yaml.safe_load((ROOT / "configs" / "toy" / f"{task}.yaml").read_text())
    recipe["model"]["init_args"]["network"]["init_args"] |= _NETWORKS[task]
    arguments = recipe["data"]["init_args"]
    for key in ("class_names", "predict_dir"):
        arguments.pop(key, None)
    arguments |= {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0} | _DATA[task] | data
    recipe["trainer"] |= {
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder / "runs"),
        "enable_model_summary": False,
    }
    path = folder / f"{name or task}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
