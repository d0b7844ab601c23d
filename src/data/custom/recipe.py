"""Write a recipe for a small dataset: a recipe of ``configs/`` with other settings.

The recipes in ``configs/`` are for a million images and many GPUs. For a few hundred images, this
shortens the warm-up, lowers the learning rate for fine-tuning, and chooses the number of epochs so
that there are enough steps. The new file is complete and meant to be edited.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
from pathlib import Path
from typing import Any

import yaml

from src import files
from src.config_files import CONFIGS
from src.errors import UserError, agreed, counted
from src.file_names import quoted
from src.types import ENOUGH_IMAGES

RECIPES = {
    "classification": {
        "nano": "internimage_nano_96",
        "t": "internimage_t_1k_224",
        "s": "internimage_s_1k_224",
        "b": "internimage_b_1k_224",
        "l": "internimage_l_22kto1k_384",
        "xl": "internimage_xl_22kto1k_384",
    },
    "detection": {
        "nano": "mask_rcnn_internimage_nano_laptop",
        "t": "mask_rcnn_internimage_t_fpn_3x_coco",
        "s": "mask_rcnn_internimage_s_fpn_3x_coco",
        "b": "mask_rcnn_internimage_b_fpn_3x_coco",
        "l": "cascade_internimage_l_fpn_3x_coco",
        "xl": "cascade_internimage_xl_fpn_3x_coco",
    },
    "boxes": {
        "nano": "dino_internimage_nano_laptop",
        "t": "dino_4scale_internimage_t_1x_coco_layer_wise_lr",
        "l": "dino_4scale_internimage_l_1x_coco_layer_wise_lr",
    },
    "segmentation": {
        "nano": "upernet_nano_camvid",
        "t": "upernet_internimage_t_512_160k_ade20k",
        "s": "upernet_internimage_s_512_160k_ade20k",
        "b": "upernet_internimage_b_512_160k_ade20k",
        "l": "upernet_internimage_l_640_160k_ade20k",
        "xl": "upernet_internimage_xl_640_160k_ade20k",
    },
}
"""Recipe by task and size; all but nano fine-tune the published weights of the same name.

``detection`` needs masks, ``boxes`` does not.
"""

_FOLDERS = {"boxes": "detection"}  # of configs/; others have the name of the task
_DETECTORS = ("detection", "boxes")
_NETWORKS = {
    "MaskRCNN": "Mask R-CNN",
    "CascadeMaskRCNN": "Cascade Mask R-CNN",
    "Segmentor": "UPerNet",
}  # names of classes for the user
_BATCH = {"classification": 16, "detection": 4, "boxes": 4, "segmentation": 8}
_LEFT_OUT = 0.1  # of the images, at most, of an epoch of whole batches
_STEPS = {True: 600, False: 400}  # from scratch or not; a target for any number of images
_SLOW = {"boxes": 2}  # a DINO decoder needs more steps from scratch
_EPOCHS = {True: (30, 200), False: (12, 100)}  # minimum and maximum
_FEW = 200  # images, which are read sooner than workers start
_VALIDATIONS = 10
_WARMUP_SHARE = 0.1
_FINE_TUNING_RATE = {
    "classification": 1e-4,
    "detection": 5e-5,
    "boxes": 5e-5,
    "segmentation": 6e-5,
}
_NANO_DATA: dict[str, dict[str, Any]] = {
    "classification": {"image_size": 128},
    "detection": {},
    "boxes": {},
    "segmentation": {"image_scale": [1024, 256], "crop_size": [256, 256]},
}


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Declare the choice of the network."""
    sizes = list(RECIPES[task])
    parser.add_argument(
        "--network",
        choices=sizes,
        default="nano",
        help="nano: from scratch, for a CPU; others fine-tune published weights, which are "
        "downloaded once (%(default)s)",
    )
    parser.add_argument("--weights", help="initial weights: a file or a hub name")


def write(
    args: argparse.Namespace,
    path: Path,
    task: str,
    data: dict[str, Any],
    images: int,
    folder: Path,
    unseen: Path | None = None,
) -> None:
    """Write the recipe, and print what it does and the next commands.

    Args:
        args: What `add_arguments` declares.
        path: Where the file will be.
        task: A key of `RECIPES`.
        data: Arguments of the data module that describe the dataset.
        images: Number of training images.
        folder: Where the file is written now; the folder is moved when it is complete.
        unseen: Folder of images that are not trained on, for the commands, if there is one.
    """
    if args.network not in RECIPES[task]:
        raise UserError(
            f"--network {args.network}: there is no DINO of this size, which boxes without masks "
            f"need; expected one of {', '.join(RECIPES[task])}."
        )
    base, size = RECIPES[task][args.network], 0
    weights = args.weights
    if weights is None and args.network != "nano":
        weights, size = published_weights(task, base)
    recipe = small_data_recipe(task, base, weights, data, images)
    epochs, batch = recipe["trainer"]["max_epochs"], recipe["data"]["init_args"]["batch_size"]
    is_smaller = batch < min(_BATCH[task], images)  # so that few images are left out
    left_out = images % _BATCH[task]
    start = f"fine-tunes {weights}" if weights else "starts from scratch"
    source = f"configs/{_FOLDERS.get(task, task)}/{base}.yaml"
    comment = (
        f"# Made by `python -m src prepare` for {counted(images, 'training image')}; edit it"
        " freely.\n"
        f"# Network and augmentation of {source}; {start}. No published number.\n"
    )
    text = yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, default_flow_style=None)
    files.write_text(folder / path.name, comment + text)
    kept = _keep_edited(path, comment + text, folder)
    head = recipe["model"]["init_args"]["network"]["class_path"].rpartition(".")[2]
    network = f"InternImage-{args.network.upper()}"
    if task != "classification":
        network = f"{_NETWORKS.get(head, head)} with {network}"
    if kept is not None:
        print(f"Kept:    {kept}: the recipe that was there, with other content")
    print(f"Recipe:  {path}: {network}, {start}")
    usual = f"; {_BATCH[task]} would leave out {left_out} of {images} images"
    print(f"         {epochs} epochs, batches of {batch}{usual if is_smaller else ''}")
    if size:
        print(f"         `fit` downloads {weights}.pth once (about {size} MB) from Hugging Face;")
        print("         without a connection, add --weights FILE with a file downloaded elsewhere")
    first, *others = (name for name in RECIPES[task] if name != "nano")
    advice = f"add --network {first} (or {', '.join(others)}) to fine-tune published weights"
    if not weights and task in _DETECTORS and images < ENOUGH_IMAGES:
        print(
            f"note: {counted(images, 'training image')} {agreed(images, 'is', 'are')} few for a"
            f" detector from scratch, which needs more than {ENOUGH_IMAGES}; {advice}"
        )
    elif not weights:
        print(f"         {advice}, the usual choice with few images")
    name = quoted(path.stem)
    print(f"Train:   python -m src fit --config {quoted(path)}")
    some = "FOLDER" if unseen is None else quoted(unseen)
    print(f"Predict: python -m src predict --name {name} --data.predict_dir {some}")
    print(f"Export:  python -m src export --name {name} --check {some}")


def _keep_edited(path: Path, text: str, folder: Path) -> Path | None:
    """Copy a recipe that differs from the new one, because the user may have edited it.

    Args:
        path: The recipe that will be replaced.
        text: Content of the new one.
        folder: Where the copy is written; its content moves to the folder of ``path``.

    Returns:
        Where the copy will be; ``None`` if there is no other recipe.
    """
    if not path.is_file() or path.read_bytes() == text.encode():
        return None
    names = (path.with_name(f"{path.name}.bak{number or ''}") for number in itertools.count())
    kept = next(name for name in names if not name.exists())
    files.write_bytes(folder / kept.name, path.read_bytes())
    return kept


def small_data_recipe(
    task: str, base: str, weights: str | None, data: dict[str, Any], images: int
) -> dict[str, Any]:
    """Settings for a dataset of ``images`` training images.

    Args:
        task: A key of `RECIPES`.
        base: Name of a recipe, one of `RECIPES`.
        weights: Initial weights; ``None`` is from scratch.
        data: Arguments of the data module that describe the dataset.
        images: Number of training images, at least 1.

    Raises:
        UserError: If the recipe files are not there.
    """
    recipe: dict[str, Any] = yaml.safe_load(_read(_path(task, base)))
    is_nano = "nano" in base
    batch = batch_size(task, images)
    steps_per_epoch = max(1, images // batch)
    fewest, most = _EPOCHS[weights is None]
    steps, slow = _STEPS[weights is None], _SLOW.get(task, 1) if weights is None else 1
    epochs = min(max(fewest, -(-steps * slow // steps_per_epoch)), most * slow)
    _adapt_schedule(recipe["model"]["init_args"], task, weights, batch, epochs * steps_per_epoch)
    described = recipe["data"]["init_args"]
    for key in ("palette", "class_names"):
        described.pop(key, None)
    described |= {
        **(_NANO_DATA[task] if is_nano else {}),
        **data,
        "batch_size": batch,
        "num_workers": 0 if images < _FEW else min(2, os.cpu_count() or 1),
    }
    recipe["trainer"] = {
        "max_epochs": epochs,
        "check_val_every_n_epoch": max(1, epochs // _VALIDATIONS),
        "gradient_clip_val": recipe["trainer"].get("gradient_clip_val", 1.0),
    }
    return recipe


def batch_size(task: str, images: int) -> int:
    """Largest usual batch size with which an epoch has nearly all images.

    Training drops the last incomplete batch: of 47 images, batches of 16 would leave out 15, and
    batches of 15 leave out 2. Detectors fill it up instead.

    Args:
        task: A key of `RECIPES`.
        images: Number of training images, at least 1.
    """
    most = max(1, min(_BATCH[task], images))
    if task in _DETECTORS:
        return most
    return next(size for size in range(most, 0, -1) if images % size <= _LEFT_OUT * images)


def published_weights(task: str, base: str) -> tuple[str, int]:
    """Name and approximate size in MB of the published weights of a recipe, from its comment.

    Args:
        task: A key of `RECIPES`.
        base: Name of a recipe with published weights.

    Raises:
        UserError: If the recipe is missing, or has no such comment.
    """
    path = _path(task, base)
    text = _read(path)
    name = re.search(r"^# .*--model\.weights (\S+)", text, flags=re.MULTILINE)
    millions = re.search(r"^# .*\(([\d.]+) M parameters\)", text, flags=re.MULTILINE)
    if name is None or millions is None:
        raise UserError(f"The comment of {path} does not name its weights; add --weights NAME.")
    size = 2 if task == "segmentation" else 4  # published segmentors are in half precision
    return name[1], round(float(millions[1]) * size)


def _adapt_schedule(
    model: dict[str, Any], task: str, weights: str | None, batch: int, steps: int
) -> None:
    """Set warm-up, learning rates and regularisation for ``steps`` steps."""
    old_batch = model.get("reference_batch_size") or batch
    warmup = max(1, min(100, round(_WARMUP_SHARE * steps)))
    rates = model["optimizer"]["init_args"]
    rate = rates["lr"] * batch / old_batch if weights is None else _FINE_TUNING_RATE[task]
    rates["lr"] = float(f"{rate:.3g}")
    model["reference_batch_size"] = batch
    name = "WarmupPoly" if task == "segmentation" else "WarmupCosine"
    schedule: dict[str, Any] = {"warmup_steps": warmup}
    model["lr_scheduler"] = {"class_path": name, "init_args": schedule}
    for key in ("layer_decay", "dcn_lr_scale", "offset_lr_scale", "weights"):
        model.pop(key, None)
    if task == "classification":  # mixup needs long training
        model |= {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}
        model.pop("mixup_prob", None)  # without effect now
    if weights is not None:
        model["weights"] = weights
        network = model["network"]["init_args"]
        _lower_drop_path(network.get("backbone", {}).get("init_args", network))


def _lower_drop_path(backbone: dict[str, Any]) -> None:
    """Lower the drop path rate, which is meant for 300 epochs."""
    backbone["drop_path_rate"] = min(0.1, backbone.get("drop_path_rate", 0.0))


def _path(task: str, base: str) -> Path:
    return CONFIGS / _FOLDERS.get(task, task) / f"{base}.yaml"


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"The recipe {path} is missing; `prepare` needs the folder configs/ of the project. "
            "Run it from a clone."
        )
    return path.read_text(encoding="utf-8")
