"""Models of the official model zoo, by the names of their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from src.config_files import CONFIGS
from src.errors import UserError
from src.hub.parts import TASKS, ModelParts, load_all, preprocessing_of
from src.models.building import build_network

if TYPE_CHECKING:
    from src.data.datamodules import BaseDataModule

_RECIPE_SUFFIXES = {
    "dino_4scale_internimage_t_1x_coco": "_layer_wise_lr",
    "dino_4scale_internimage_h_objects365_coco": "_ss",
    "dino_4scale_internimage_g_objects365_coco": "_ss",
    "dino_4scale_cbinternimage_h_objects365_coco": "_ss",
    "dino_4scale_cbinternimage_h_objects365_lvis": "_val_ss",
    "dino_4scale_cbinternimage_h_objects365_openimages": "_ss",
    "mask2former_internimage_h_896_80k_cocostuff2ade20k": "_ss",  # _ms differs in evaluation only
}
"""Suffix of the recipe name after the name of the published file."""

# Weights before the training on COCO and VOC, which already have their classes; and the weights for
# both years of VOC.
_SAME_NETWORK = {
    "dino_4scale_cbinternimage_h_objects365_80classes": (
        "dino_4scale_cbinternimage_h_objects365_coco"
    ),
    "dino_4scale_cbinternimage_h_objects365_20classes": (
        "dino_4scale_cbinternimage_h_objects365_voc07"
    ),
    "dino_4scale_cbinternimage_h_objects365_voc0712": (
        "dino_4scale_cbinternimage_h_objects365_voc07"
    ),
}

# Weights of ImageNet-22k at 384 pixels without a recipe: the network of a recipe of ImageNet-1k.
_PRETRAINED = {
    "internimage_h_jointto22k_384": "internimage_h_22kto1k_640",
    "internimage_g_pretrainto22k_384": "internimage_g_22kto1k_512",
    "flash_intern_image_l_22k_384": "flash_internimage_l_22kto1k_384",
}


def read_published(name: str, file: Path | None = None) -> ModelParts:
    """Build the network of a published file, and load its weights.

    Args:
        name: A key of `HUB_FILES`.
        file: The file, if it does not have to be downloaded.

    Raises:
        UserError: If the file has no recipe, or cannot be downloaded or read.
    """
    parts = build_published(name)
    load_all(parts.network, name if file is None else file)
    return parts


def build_published(name: str) -> ModelParts:
    """Build the network of a published file with random weights, from its recipe.

    Args:
        name: A key of `HUB_FILES`.

    Raises:
        UserError: If the file has no recipe.
    """
    recipe = _recipe_of(name)
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    spec, data = settings["model"]["init_args"]["network"], settings["data"]
    if name in _PRETRAINED:
        data = {"class_path": "ImageNet22kDataModule", "init_args": data["init_args"]}
        data["init_args"]["image_size"] = 384
    owner = _data_module(data["class_path"])
    names = owner.official_class_names()
    network = build_network(spec, len(names))
    preprocessing = preprocessing_of(data["init_args"], settings["model"]["init_args"])
    if palette := getattr(owner, "official_palette", lambda: None)():
        preprocessing["palette"] = [list(colour) for colour in palette]
    return ModelParts(network.eval(), spec, names, recipe.parent.name, preprocessing)


def _data_module(name: str) -> type[BaseDataModule]:
    from src import data  # imported here, because data modules import Lightning, which is slow

    found: type[BaseDataModule] = getattr(data, name)
    return found


def _recipe_of(name: str) -> Path:
    stem = (_SAME_NETWORK | _PRETRAINED).get(name, name)
    stem += _RECIPE_SUFFIXES.get(stem, "")
    recipes = [CONFIGS / task / f"{stem}.yaml" for task in TASKS]
    found = next((path for path in recipes if path.is_file()), None)
    if found is None:
        raise UserError(
            f"The recipe {stem} is not in {CONFIGS}, so the network of the published file {name} "
            "is unknown. Build the network and use src.models.weights.load_official."
        )
    return found
